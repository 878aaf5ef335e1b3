"""The command behind `python -m evals.text_to_image`, once its arguments are well formed."""

import argparse
import logging
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from evals.images import DataRoots
from evals.text_to_image import page, scores
from evals.text_to_image.chat import Patience
from evals.text_to_image.judge import Judge
from evals.text_to_image.pictures import Picture, Pictures
from evals.text_to_image.pipelines import Pipelines
from evals.text_to_image.prompts import DOWNLOAD, PUBLISHED, Prompt, read_prompts
from evals.text_to_image.stand_in import StandIn
from negclip_jax.common.errors import InputError
from negclip_jax.runtime.workdir import environment

_LIBRARIES = ("diffusers", "torch", "transformers")


def run(args: argparse.Namespace) -> None:
    """Draws, judges and reports; see `evals.text_to_image` for the arguments. Raises InputError."""
    # The accelerator belongs to the pipeline: JAX only reads weights, and would take its memory.
    jax.config.update("jax_platforms", "cpu")
    prompts = read_prompts(_prompt_file(args))
    judge = _judge(args, prompts)  # its mistakes show before an hour of drawing
    texts = [prompt.text for prompt in prompts]
    pipelines = Pipelines(
        args.base,
        args.model,
        device=args.device,
        dtype=args.dtype,
        encoder=args.encoder,
        steps=args.steps,
        guidance=args.guidance,
        size=args.size,
        activation=args.activation,
    )
    pipelines.check_prompts(texts)
    for model, facts in pipelines.facts.items():
        logging.info("%s: %s", model, "; ".join(facts.values()))
    for note in pipelines.notes:
        logging.warning(note)
    pictures = Pictures(args.out, pipelines.settings, args.seed)
    drawn = pictures.draw(pipelines, texts, args.images_per_prompt, batch_size=args.batch_size)
    described = {
        "models": pipelines.facts,
        "settings": pipelines.settings | {"seed": args.seed},
        "notes": pipelines.notes,
        "environment": _environment(),
    }
    try:
        if judge is not None:
            judge.look(drawn)
    finally:  # what was judged before a server went down, or Ctrl-C, has its page
        _report(args, described, prompts, drawn, judge)


def _prompt_file(args: argparse.Namespace) -> Path:
    if args.prompts is not None:
        return args.prompts
    if not args.data:
        raise InputError(
            f"give a list as --prompts=FILE; the 107 published negation prompts are {DOWNLOAD}"
        )
    return DataRoots(tuple(args.data)).find(PUBLISHED, download=DOWNLOAD)


def _judge(args: argparse.Namespace, prompts: Sequence[Prompt]) -> Judge | StandIn | None:
    if args.judge:
        return Judge(
            args.out,
            prompts,
            args.judge,
            model=args.judge_model,
            patience=Patience(timeout=args.judge_timeout, tries=args.judge_tries),
            concurrency=args.judge_concurrency,
        )
    if args.stand_in:
        return StandIn(args.out, prompts, args.stand_in)
    logging.warning(
        "nobody judges these pictures: give --judge=URL, or --stand-in=CLIP for a rough comparison"
    )
    return None


def _report(
    args: argparse.Namespace,
    described: dict[str, Any],
    prompts: Sequence[Prompt],
    drawn: Sequence[Picture],
    judge: Judge | StandIn | None,
) -> None:
    found = {picture: judge and judge.verdict(picture) for picture in drawn}
    verdicts = {picture: verdict for picture, verdict in found.items() if verdict}
    content = {
        "judge": judge and {"kind": judge.kind, "label": judge.label} | judge.described(),
        **described,
        **scores.document(prompts, drawn, verdicts, seed=args.seed),
    }
    if args.stand_in and Path(args.stand_in).resolve() == Path(args.model).resolve():
        content["notes"] = [
            *content["notes"],
            "the stand-in is the model that draws: it shares the faults that it should see",
        ]
    if content["blank"]:
        content["notes"] = [
            *content["notes"],
            f"{content['blank']} of {content['drawn']} pictures are of one colour, as after an "
            "overflow of numbers: --dtype=float32 has more room",
        ]
    scores.write(args.out, content)
    print(scores.table_text(content))
    logging.info("open %s", page.write(args.out))


def _environment() -> dict[str, Any]:
    found = environment()
    found["packages"] |= {name: metadata.version(name) for name in _LIBRARIES}
    return found
