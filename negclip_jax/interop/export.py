"""Writes CLIP weights in a layout that other software reads.

    python -m negclip_jax.interop.export --model=runs/b32 --layout=huggingface --out=exported/b32
    python -m negclip_jax.interop.export --model=negationclip.pt --layout=open_clip --out=oc

A model is a training run (its best checkpoint; @last or @STEP for another, +ema for the moving
average), a Hugging Face directory or hub id, or a checkpoint of another layout, which is converted.
With --push-to-hub=NAME the export is uploaded to the Hugging Face Hub as well. What was written is
read back and compared, and a model card beside it records where it came from and how to load it,
before any of it appears under its name.
"""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from negclip_jax.common import signals, storage
from negclip_jax.common.arguments import Parser, split_name, warn_renamed
from negclip_jax.common.errors import InputError, device_errors, say
from negclip_jax.common.page.template import plural
from negclip_jax.common.progress import told
from negclip_jax.interop import (
    diffusers,
    huggingface,
    independent,
    model_card,
    open_clip,
    openai,
    readers,
    writing,
)
from negclip_jax.interop.config import tokenizer_beside
from negclip_jax.interop.files import read_json
from negclip_jax.interop.parameters import interpolate
from negclip_jax.interop.tensors import stored_dtypes
from negclip_jax.models import clip

_SAME_FEATURES = 1e-4  # float32 weights read back bit-equal; threads may sum in another order
_SAME_MODEL = 2e-3  # of the largest: another library adds in another order, over 48 layers


LAYOUTS = {
    "huggingface": huggingface.write,
    "openai": openai.write,
    "open_clip": open_clip.write,
    "diffusers": diffusers.write,
}
# Classes that a layout can be written as beside its usual one: their layout's name.
ARCHITECTURES = {
    "CLIPModel": "huggingface",
    **dict.fromkeys(huggingface.ARCHITECTURES, "huggingface"),
    "CustomTextCLIP": "open_clip",
}


def outputs(one_tower: str, config: clip.CLIPConfig) -> tuple[str, ...]:
    """Methods of the model whose results an export keeps: of one tower, by its class, its own."""
    if not one_tower:
        return ("encode_text",) if config.vision is None else ("encode_image", "encode_text")
    tower, projected = huggingface.ARCHITECTURES[one_tower]
    if not projected:
        return (tower.name,)
    return ("encode_text" if tower is huggingface.TEXT else "encode_image",)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0, or 1 after a one-line message on stderr."""
    args = _arguments(argv)
    try:
        with device_errors():
            export(args)
    except (InputError, OSError) as error:
        say(f"error: {error}", sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser("python -m negclip_jax.interop.export", __doc__)
    add = parser.add_argument
    add(
        "--model",
        metavar="[NAME=]PATH[@STEP][+ema]",
        help="a run, a Hugging Face or open_clip directory, a hub id, a .pt of OpenAI's clip or of "
        "NegationCLIP, a state dict of open_clip; NAME is the title of the model card",
    )
    add("--out", metavar="DIR", help="where to write")
    # What --model was called before.
    for old in ("--workdir", "--checkpoint"):
        add(old, help=argparse.SUPPRESS)
    add("--step", default="best", help=argparse.SUPPRESS)
    add("--ema", action="store_true", help=argparse.SUPPRESS)
    add("--layout", choices=LAYOUTS, default="huggingface", help="default: %(default)s")
    add(
        "--architecture",
        choices=tuple(ARCHITECTURES),
        default="",
        help="class to write it as; default: the whole model. Of --layout=huggingface, one tower; "
        "of --layout=open_clip, CustomTextCLIP, whose text tower's names begin with text.",
    )
    add(
        "--alpha",
        type=float,
        metavar="A",
        help="mix with the base: (1 - A) base + A tuned, A between 0 and 1",
    )
    add(
        "--base",
        metavar="PATH_OR_HUB_ID",
        help="for --alpha, the model before training (default: what the run started from); for a "
        "checkpoint of one tower, the model that the rest comes from; for a file of weights alone, "
        "one of the same architecture with configuration and tokenizer",
    )
    add("--activation", help="quick_gelu or gelu, for a state dict that does not say")
    add("--tokenizer", metavar="DIR", help="for a checkpoint without one")
    add(
        "--dtype",
        choices=writing.DTYPES,
        help="of the weights; default: float32, or the checkpoint's own where a whole model is "
        "converted and nothing was trained",
    )
    add("--license", metavar="ID", help="of the weights, for the model card")
    add("--scores", metavar="FILE", type=Path, help="results.json of evals, for the model card")
    add("--overwrite", action="store_true", help="replace an earlier export")
    add("--push-to-hub", metavar="NAME", help="upload it as well, to this Hugging Face repository")
    add("--private", action="store_true", help="with --push-to-hub: not in public")
    return parser


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    """The parsed command line; `--model` as `workdir`, `step` and `ema`, or as `checkpoint`."""
    parser = _parser()
    args = parser.parse_args(argv)
    old = [f"--{n}" for n in ("workdir", "checkpoint", "ema") if getattr(args, n)]
    old += ["--step"] if args.step != "best" else []
    if (args.model and old) or (args.workdir and args.checkpoint):
        parser.error(f"{', '.join(old)}: --model=PATH@STEP+ema says it alone")
    missing = ["--model"] if not (args.model or args.workdir or args.checkpoint) else []
    if missing := [*missing, *([] if args.out else ["--out"])]:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    for flag in old:
        new = {"--step": "--model=PATH@STEP", "--ema": "--model=PATH+ema"}.get(flag, "--model=PATH")
        warn_renamed(flag, new)
    args.title = ""
    if args.model:
        name, path = split_name(args.model)
        args.title = name if path != args.model else ""
        args.ema, path = path.endswith("+ema"), path.removesuffix("+ema")
        run, mark, step = path.rpartition("@")
        if mark and readers.is_workdir(run) and not storage.path(path).exists():
            args.workdir, args.step = run, step
        elif readers.is_workdir(path):
            args.workdir = path
        else:
            args.checkpoint = path
    return args


def export(args: argparse.Namespace) -> None:
    """Writes, reads back and reports; see `_arguments` for the arguments.

    Raises InputError for no such run, step or checkpoint, a model that the layout cannot hold, an
    occupied destination, a full disk.
    """
    out = storage.path(args.out) if storage.is_remote(args.out) else Path(args.out)
    wanted = ARCHITECTURES.get(args.architecture, args.layout)
    if args.layout != wanted:
        raise InputError(f"--architecture={args.architecture} is of --layout={wanted}")
    one_tower = diffusers.ARCHITECTURE if args.layout == "diffusers" else args.architecture
    if one_tower not in huggingface.ARCHITECTURES:
        one_tower = ""
    if args.private and not args.push_to_hub:
        raise InputError("--private goes with --push-to-hub=NAME")
    # Before the weights are read, which may take a minute as each of these steps may.
    steps = told(("read", "write", "read back", "compare"), "export, steps")
    if args.push_to_hub:
        if storage.is_remote(args.out):
            raise InputError(f"--push-to-hub uploads a folder of this machine, not {args.out}")
        _check_hub(args.push_to_hub)
    scores = model_card.scores_of_evaluation(args.scores) if args.scores else {}
    next(steps)
    source, base_model = _read_source(args, one_tower)
    config, params, info = source
    dtype, whole = args.dtype, not one_tower and args.alpha is None
    converted = whole and info.layout in ("huggingface", "openai", "open_clip")
    if dtype is None and converted:
        # float16 or bfloat16 where all of it is stored so and nothing was changed.
        kinds = set(stored_dtypes(info.path).values()) & set(writing.DTYPES)
        dtype = kinds.pop() if len(kinds) == 1 else None
    cleaning = info.tokenizer_keys.keys() - {"hf_tokenizer_name"}
    if cleaning and args.layout != "open_clip":
        raise InputError(
            f"{info.label}: text_cfg.{' and '.join(sorted(cleaning))} change a caption's token ids "
            "in a way that only --layout=open_clip can say"
        )
    tokenizer = args.tokenizer and Path(args.tokenizer)
    what = writing.Export(
        config,
        params,
        base=info.base,
        dtype=dtype,
        tokenizer=tokenizer or (None if info.base else info.tokenizer),
        preprocessor=None if info.base else info.preprocessor,
        tokenizer_keys=info.tokenizer_keys,
        other_vision=info.other_vision,
        architecture=args.architecture,
    )
    keep = info.base or info.path
    with writing.export_directory(out, overwrite=args.overwrite, keep=keep) as stage:
        next(steps)
        LAYOUTS[args.layout](stage, what)
        exact = args.dtype in (None, "float32")
        source_path = info.path if converted and not info.uses_base else None
        check = _check(config, params, source_path, stage, one_tower, steps, exact=exact)
        files = [path for path in stage.rglob("*") if path.is_file()]
        weights = [path for path in files if path.suffix in (".safetensors", ".pt")]
        megabytes = sum(path.stat().st_size for path in weights) / 1e6
        template = _usage(args.layout, one_tower, config, stage)
        code = template.format(out=out)
        is_run = info.layout == "workdir"
        if is_run:
            scores = model_card.scores_of_run(info.path, info.step) | scores
        card = {
            "title": args.title or out.expanduser().resolve().name,
            "layout": args.layout,
            "source": info.label,
            "base_model": base_model or args.base or ("" if is_run else info.label),
            "licence": args.license or model_card.licence_of(info.base),
            "facts": _facts(config, info, one_tower),
            "recipe": model_card.recipe_of_run(info.path) if is_run else {},
            "scores": scores,
            "check": check,
            "code": usage_from_hub(template, args.push_to_hub) if args.push_to_hub else code,
        }
        places = (args.out, args.workdir, args.checkpoint, args.base, info.path, info.tokenizer)
        model_card.write(stage, card, (*places, info.base))
    others = plural(len(files) - len(weights), "other file")
    say(f"wrote {out}: {megabytes:,.1f} MB of weights and {others}, from {info.label}")
    say(check)
    if args.layout == "diffusers":
        say(f"text tower {diffusers.fitting_pipelines(config)}")
    if not (args.tokenizer or info.tokenizer):
        say("no tokenizer came along: --tokenizer=DIR adds one")
    if info.activation_source.startswith("assumed"):
        say(f"activation {info.activation}, {info.activation_source}")
    say(f"load it with\n\n{code}\n")
    if args.push_to_hub:
        say(f"uploaded to {_push(out, args.push_to_hub, private=args.private)}")


def _read_source(args: argparse.Namespace, one_tower: str) -> tuple[readers.Checkpoint, str]:
    """What is exported, mixed with its base for --alpha, and the name of what it was tuned from."""
    base_model = ""
    if args.workdir:
        if args.activation:
            raise InputError("a run knows its activation: --activation is for other checkpoints")
        source = readers.read_workdir(args.workdir, args.step, ema=args.ema)
        base_model = model_card.base_of_run(source[2].path)
    else:
        if args.ema or args.step != "best":
            raise InputError(
                f"@STEP and +ema choose in a training run, and {args.checkpoint} is none"
            )
        options = {"activation": args.activation, "base": args.base, "tower_class": one_tower}
        source = readers.read_any(args.checkpoint, **options)
        if args.base and args.alpha is None and not source[2].uses_base:
            raise InputError(
                "--base goes with --alpha, or with a checkpoint of one tower or of weights alone"
            )
    if args.alpha is None:
        return source, base_model
    if not 0 <= args.alpha <= 1:
        raise InputError(f"--alpha={args.alpha:g} is not between 0 (the base) and 1 (the tuned)")
    config, tuned, info = source
    name = args.base or base_model
    if not name:
        raise InputError(f"{info.label} does not say what it was tuned from: give --base")
    other, params, _ = readers.read_any(name)
    if other != config:
        raise InputError(f"{name} and {info.label} are different models and cannot be mixed")
    label = f"{args.alpha:g} of {info.label} and {1 - args.alpha:g} of {name}"
    mixed = interpolate(params, tuned, args.alpha)
    return (config, mixed, dataclasses.replace(info, label=label)), base_model


def _facts(config: clip.CLIPConfig, info: readers.CheckpointInfo, one_tower: str) -> dict[str, str]:
    """What the arithmetic of an export is; of one tower, nothing about the other."""
    text, vision = config.text, config.vision
    tower, projected = huggingface.ARCHITECTURES.get(one_tower, (None, True))
    facts = {"activation": f"{info.activation} ({info.activation_source})"}
    if vision is None:
        facts["vision tower"] = "of another library, as it stood in the source"
    elif tower is not huggingface.TEXT:
        pixels = vision.image_size
        facts["vision tower"] = f"{vision.layers} x {vision.width}, {pixels} pixels"
    if tower is not huggingface.VISION:
        facts["text tower"] = f"{text.layers} x {text.width}"
        facts["pooling"] = f"state at {info.pooling}"
    if projected:
        facts["features"] = f"{config.projection_dim} numbers"
    return facts


def _check(
    config: clip.CLIPConfig,
    params: dict[str, Any],
    source: Path | None,
    stage: Path,
    one_tower: str,
    steps: Iterator[str],
    *,
    exact: bool,
) -> str:
    """Reads an export back, and it and its source with other software as well.

    `steps` is told when it reads back, and when it compares. Returns what to say of the readings, a
    line for each: the greatest differences of a feature. Raises InputError for features that differ
    although the weights were not rounded (`exact`).
    """
    # Random, and two generators: the ids must not depend on the size of the pixels. The rules of
    # pooling read different places of the first row.
    size, text = config.vision.image_size if config.vision else 1, config.text
    pixels = np.random.default_rng(0).standard_normal((2, size, size, 3), np.float32)
    length = text.context_length
    ids = np.random.default_rng(1).integers(0, text.vocab_size, (2, length), np.int32)
    last = text.vocab_size - 1  # SigLIP has no end token, and a smaller vocabulary than CLIP's id
    ids[0, [length // 3, 2 * length // 3]] = min(text.eos_token_id, last), last
    next(steps)
    written = readers.read_any(stage, tower_class=one_tower)
    expected, again = (
        jax.device_get(_encode(clip.abstract(c)[0], outputs(one_tower, c), p, pixels, ids))
        for c, p in ((config, params), written[:2])
    )
    difference = max(float(np.abs(a - b).max()) for a, b in zip(expected, again, strict=True))
    if exact and difference > _SAME_FEATURES:
        raise InputError(
            f"what was written does not read back as it was (features differ by {difference:.1e}): "
            "check the disk. Nothing was written"
        )
    next(steps)
    lines = [f"read back: features of a random batch differ by at most {difference:.1e}"]
    encoder = stage / diffusers.ENCODER
    export = encoder if encoder.is_dir() else stage
    for what, path in (("the source", source), ("the export", export)):
        if path is None:
            continue
        try:
            images = pixels if config.vision else None
            found, reader = independent.features(path, images, ids, one_tower)
        except LookupError:
            lines.append(f"{what} has had no second reading: that takes transformers with torch")
            continue
        apart = max(
            float(np.abs(a - b).max() / np.abs(b).max())
            for a, b in zip(expected, found, strict=True)
        )
        if (exact or path is source) and apart > _SAME_MODEL:
            raise InputError(
                f"{reader} reads {what} as another model: features differ by {apart:.1%} of the "
                "largest. Nothing was written: its configuration does not say, or this version "
                "does not know, what the model is"
            )
        lines.append(f"{what} as {reader} reads it: features differ by {apart:.1e} of the largest")
    return "\n".join(lines)


def _usage(layout: str, one_tower: str, config: clip.CLIPConfig, stage: Path) -> str:
    """Code that loads an export that lies in `stage`, with `{out}` for its directory."""
    if layout == "open_clip":
        return (
            "import open_clip\n"
            'model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{out}")\n'
            'tokenizer = open_clip.get_tokenizer("local-dir:{out}")'
        )
    if layout == "openai":
        # clip.load alone rounds the weights to float16; the last line brings back all digits.
        return (
            "import clip, torch\n"
            'model, preprocess = clip.load("{out}/model.pt", device="cpu")\n'
            'model.float().load_state_dict(torch.load("{out}/model.pt", weights_only=True))'
        )
    if layout == "diffusers":
        return diffusers.usage(config)
    kind = read_json(stage / "config.json").get("model_type")
    name = one_tower or independent.CLASSES[kind]
    model = f'model = {name}.from_pretrained("{{out}}")'
    if name == "MetaClip2Model":
        model += "  # or AutoModel; CLIPModel would take an end token of 2 for the largest id"
    # The processor needs a tokenizer and an image processor, which not every base has.
    images = any((stage / f"{of}_config.json").is_file() for of in ("processor", "preprocessor"))
    if one_tower or not (images and tokenizer_beside(stage)):
        return f"from transformers import {name}\n{model}"
    processor = 'processor = AutoProcessor.from_pretrained("{out}")'
    return f"from transformers import AutoProcessor, {name}\n{model}\n{processor}"


def usage_from_hub(code: str, name: str) -> str:
    """Code that loads an export from `{out}`, from the Hub's repository `name` instead."""
    if "local-dir:{out}" in code:
        return code.replace("local-dir:{out}", f"hf-hub:{name}")
    if '"{out}/' not in code:
        return code.replace("{out}", name)
    got = f'from huggingface_hub import snapshot_download\n\nout = snapshot_download("{name}")\n'
    return got + code.replace('"{out}/', 'out + "/')


def _check_hub(name: str) -> None:
    """Raises InputError for a name that no repository has, and where there is no token."""
    import huggingface_hub  # a third of a second that other exports need not pay

    try:
        huggingface_hub.utils.validate_repo_id(name)
    except ValueError as error:
        raise InputError(f"--push-to-hub={name}: {error}") from None
    if not huggingface_hub.get_token():
        raise InputError(
            f"--push-to-hub={name} needs a token that may write: set HF_TOKEN, or run hf auth login"
        )


def _push(folder: Path, name: str, *, private: bool) -> str:
    """Uploads a folder in one commit, to a repository that is made where there is none.

    `private` makes it visible to its owners alone; an existing public one is refused. Returns the
    repository's address. Raises InputError for whatever the Hub or the network says.
    """
    import huggingface_hub

    try:
        api = huggingface_hub.HfApi()
        # Without --private an organisation's own default counts.
        made = api.create_repo(name, private=True if private else None, exist_ok=True)
        if private and not api.model_info(made.repo_id).private:
            raise InputError(f"{made.repo_id} is public already: --private is for a new repository")
        message = "Upload by negclip_jax.interop.export"
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message=message)
        return str(made)
    except InputError:
        raise
    except Exception as error:  # httpx, OSError, ValueError: the Hub's errors have no common base
        told = [line for line in str(error).splitlines() if line.strip()]
        shown = " ".join(dict.fromkeys((*told[:1], *told[-1:])))  # the status, and the Hub's words
        raise InputError(
            f"the export is in {folder}, and was not uploaded to {name} "
            f"({type(error).__name__}: {shown})"
        ) from error


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(graphdef, outputs, params, pixels, ids):
    model = nnx.merge(graphdef, params)
    of_images = ("encode_image", "vision")
    return [getattr(model, name)(pixels if name in of_images else ids) for name in outputs]


def _say_how_to_continue(what: str) -> None:
    say(f"{what}; no export is there in part, start the same command again", sys.stderr)


if __name__ == "__main__":
    signals.end_on_signals(_say_how_to_continue)
    # The accelerator may be busy with the run whose checkpoint this is, and is not needed.
    jax.config.update("jax_platforms", "cpu")
    try:
        sys.exit(main())
    except signals.Stopped as stopped:
        signals.end(stopped.signum, _say_how_to_continue)
