"""Draws negation prompts with a pipeline's own text encoder and with a tuned one, and judges both.

    python -m evals.text_to_image --pipeline=stable-diffusion-v1-5/stable-diffusion-v1-5 \\
        --model=runs/l14 --prompts=prompts_with_questions.json --judge=http://HOST:8000/v1 \\
        --out=runs/pictures

Only the text encoder that matches the tuned tower is replaced: that of Stable Diffusion 1.x or one
of SDXL's two. Both draw each prompt from the same noise. A visual question answering model behind
an OpenAI-compatible server then answers Question1 and Question2 about each picture; without one,
--stand-in=CLIP compares, and everything it says is labelled as not a judge's.
Writes images/, results.json and report.html into --out. The same command started again continues:
no picture is drawn and no question is asked twice.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from evals import command_line
from negclip_jax.common.arguments import split_name
from negclip_jax.common.errors import InputError, say

_LIBRARIES = ("diffusers", "torch", "transformers")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0, 1 after a user error, 130 after Ctrl-C."""
    stopped = "stopped; the same command continues in {out}"
    less = "Give a smaller --batch-size or --size, --dtype=float16, or --device=cpu"
    return command_line.execute(_parser(), run, argv, stopped=stopped, needs_less=less)


def run(args: argparse.Namespace) -> None:
    """Draws, judges and reports. Raises InputError."""
    import jax

    from evals.images import DataRoots
    from evals.text_to_image import scores
    from evals.text_to_image.judge import Judge, StandIn, patience
    from evals.text_to_image.pictures import Pictures
    from evals.text_to_image.pipelines import Pipelines
    from evals.text_to_image.prompts import DOWNLOAD, PUBLISHED, PUBLISHED_SIZE, read_prompts
    from negclip_jax.common import storage
    from negclip_jax.runtime.workdir import environment

    # The accelerator belongs to the pipeline: JAX only reads weights, and would take its memory.
    jax.config.update("jax_platforms", "cpu")
    if args.prompts is None and not args.data:
        raise InputError(
            f"give a list as --prompts=FILE; the 107 published negation prompts are {DOWNLOAD}"
        )
    file = args.prompts or DataRoots(tuple(args.data)).find(PUBLISHED, download=DOWNLOAD)
    prompts = read_prompts(file)
    judge: Judge | StandIn | None = None  # its mistakes show before an hour of drawing
    if args.judge:
        settings = patience(
            timeout=args.judge_timeout, tries=args.judge_tries, concurrency=args.judge_concurrency
        )
        judge = Judge(args.out, prompts, args.judge, model=args.judge_model, settings=settings)
    elif args.stand_in:
        judge = StandIn(args.out, prompts, args.stand_in)
    else:
        logging.warning(
            "nobody judges these pictures: give --judge=URL, or --stand-in=CLIP for a rough "
            "comparison"
        )
    texts = [prompt.text for prompt in prompts]
    options = ("device", "dtype", "encoder", "steps", "guidance", "size", "activation")
    pipelines = Pipelines(args.pipeline, args.model, **{n: getattr(args, n) for n in options})
    pipelines.check_prompts(texts)
    if file.name == PUBLISHED and len(prompts) != PUBLISHED_SIZE:
        pipelines.notes.append(
            f"{file} has {len(prompts)} of the {PUBLISHED_SIZE} published prompts"
        )
    for model, facts in pipelines.facts.items():
        logging.info("%s: %s", model, "; ".join(facts.values()))
    for note in pipelines.notes:
        logging.warning(note)
    pictures = Pictures(args.out, pipelines.settings, args.seed)
    drawn = pictures.draw(pipelines, texts, args.images_per_prompt, batch_size=args.batch_size)
    notes = [*pipelines.notes]
    if args.stand_in and Path(args.stand_in).resolve() == Path(args.model).resolve():
        notes.append(
            "the stand-in is the model that draws: it shares the faults that it should see"
        )
    try:
        if judge is not None:
            judge.look(drawn)
    finally:  # what was judged before a server went down, or Ctrl-C, has its page
        found = {picture: judge and judge.verdict(picture) for picture in drawn}
        content = {
            "judge": judge and {"kind": judge.kind, "label": judge.label} | judge.described(),
            "models": pipelines.facts,
            "settings": pipelines.settings | {"seed": args.seed},
            "notes": notes,
            "environment": environment(*_LIBRARIES),
            **scores.document(
                prompts, drawn, {p: v for p, v in found.items() if v}, seed=args.seed
            ),
        }
        if content["blank"]:
            notes.append(
                f"{content['blank']} of {content['drawn']} pictures are of one colour, as after an "
                "overflow of numbers: --dtype=float32 has more room"
            )
        storage.write_json(args.out / scores.RESULTS, content)
        say(scores.table_text(content))
        logging.info("open %s", scores.write_report(args.out))


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("evals.text_to_image", __doc__)
    parser.renamed = {"--base": "--pipeline"}
    parser.needed = (("--prompts", "--data"),)
    add = parser.add_argument
    add("--pipeline", required=True, metavar="DIR_OR_HUB_ID", help="pipeline as diffusers saves it")
    help_ = "checkpoint with the tuned text tower: a run, a Hugging Face directory, a .pt, ..."
    options = {"type": lambda text: split_name(text)[1], "metavar": "[NAME=]PATH"}
    add("--model", required=True, **options, help=help_)
    command_line.add_shared(parser, "--out")
    add("--prompts", type=Path, metavar="FILE", help=".json, .jsonl, .csv or .txt")
    help_ = "instead of --prompts: where prompts_with_questions.json is, at any depth"
    add("--data", action="append", type=Path, metavar="DIR", help=help_)
    add = parser.add_argument_group("drawing").add_argument
    add("--images-per-prompt", type=_positive, default=8, metavar="N", help="default: %(default)s")
    add("--steps", type=_positive, default=50, metavar="N", help="default: %(default)s")
    add("--guidance", type=float, metavar="S", help="default: the pipeline's own")
    add("--size", type=_positive, metavar="PIXELS", help="default: the pipeline's own")
    add("--seed", type=int, default=0, help="of noise and bootstrap; default: %(default)s")
    add("--device", default="", help="cpu, cuda, cuda:1, mps; default: the first GPU, else cpu")
    add("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    add("--batch-size", type=_positive, default=1, metavar="N", help="pictures drawn at once")
    help_ = "of SDXL, to replace; default: the one that fits"
    add("--encoder", choices=("text_encoder", "text_encoder_2"), default="", help=help_)
    add("--activation", metavar="NAME", help="quick_gelu or gelu, for weights that do not say")
    group = parser.add_argument_group("judging")
    who = group.add_mutually_exclusive_group()
    who.add_argument("--judge", metavar="URL", help="ends in /v1; the key is in OPENAI_API_KEY")
    who.add_argument("--stand-in", metavar="CLIP", help="checkpoint that compares in its place")
    add = group.add_argument
    add("--judge-model", default="", metavar="NAME", help="default: the only one it offers")
    add("--judge-timeout", type=_seconds, default=120.0, metavar="S", help="default: %(default)s")
    add("--judge-tries", type=_positive, default=5, metavar="N", help="default: %(default)s")
    help_ = "questions in flight; default: %(default)s"
    add("--judge-concurrency", type=_positive, default=8, metavar="N", help=help_)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


if __name__ == "__main__":
    command_line.exit_with(main)
