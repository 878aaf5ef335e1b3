"""Writes CLIP weights in a layout that other software reads.

    python -m negclip_jax.interop.export --workdir=runs/b32 --layout=huggingface --out=exported/b32
    python -m negclip_jax.interop.export --checkpoint=negationclip.pt --layout=open_clip --out=oc

With `--checkpoint` instead of `--workdir` it converts a checkpoint of any layout and needs no run.
What was written is read back and compared, and a model card beside it records where it came from
and how to load it, before any of it appears under its name.
"""

import argparse
import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx

from negclip_jax.common import signals, storage
from negclip_jax.common.errors import InputError
from negclip_jax.interop import model_card, readers, towers, writing
from negclip_jax.interop.export_formats import ARCHITECTURES, LAYOUTS, Layout
from negclip_jax.interop.parameters import interpolate
from negclip_jax.interop.tensors import stored_dtypes
from negclip_jax.models import clip

_SAME_FEATURES = 1e-4  # float32 weights read back bit-equal; threads may sum in another order


@dataclasses.dataclass(frozen=True)
class Source:
    """What is exported: a model, where it came from, and its label."""

    config: clip.CLIPConfig
    params: dict[str, Any]
    info: readers.CheckpointInfo
    label: str


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0, or 1 after a one-line message on stderr."""
    args = _parser().parse_args(argv)
    try:
        export(args)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m negclip_jax.interop.export",
        description="Write CLIP weights in a layout that other software reads.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", metavar="DIR", help="directory of a training run")
    source.add_argument(
        "--checkpoint",
        metavar="PATH_OR_HUB_ID",
        help="what to convert instead: a Hugging Face or open_clip directory, a .pt of OpenAI's "
        "clip or of NegationCLIP, a state dict of open_clip, a run's WORKDIR@STEP",
    )
    parser.add_argument(
        "--out", metavar="DIR", type=_destination, required=True, help="where to write"
    )
    parser.add_argument(
        "--layout", choices=LAYOUTS, default="huggingface", help="default: %(default)s"
    )
    parser.add_argument(
        "--architecture",
        choices=tuple(ARCHITECTURES),
        default="",
        help="class to write it as; default: the whole model. Of --layout=huggingface, one tower; "
        "of --layout=open_clip, CustomTextCLIP, whose text tower's names begin with text.",
    )
    parser.add_argument(
        "--step",
        default="best",
        metavar="best|last|N",
        help="checkpoint of the run; default: the best, or the last where nothing was evaluated",
    )
    parser.add_argument(
        "--ema", action="store_true", help="the moving average of the weights (train.ema_decay)"
    )
    _add_options(parser)
    return parser


def _destination(text: str) -> Path | epath.Path:
    return storage.path(text) if storage.is_remote(text) else Path(text)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--alpha",
        type=float,
        metavar="A",
        help="mix with the base: (1 - A) base + A tuned, A between 0 and 1",
    )
    parser.add_argument(
        "--base",
        metavar="PATH_OR_HUB_ID",
        help="for --alpha, the model before training (default: what the run started from); for a "
        "checkpoint of one tower, the model that the rest comes from",
    )
    parser.add_argument(
        "--activation", help="quick_gelu or gelu, for a state dict that does not say"
    )
    parser.add_argument("--tokenizer", metavar="DIR", help="for a checkpoint without one")
    parser.add_argument(
        "--dtype",
        choices=writing.DTYPES,
        help="of the weights; default: float32, or the checkpoint's own where a whole model is "
        "converted and nothing was trained",
    )
    parser.add_argument("--license", metavar="ID", help="of the weights, for the model card")
    parser.add_argument(
        "--scores", metavar="FILE", type=Path, help="results.json of evals, for the model card"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")


def export(args: argparse.Namespace) -> float:
    """Writes, reads back and reports; see `_parser` for the arguments.

    Returns:
      The greatest difference of a feature between the model in memory and the one on disk.

    Raises:
      InputError: no such run, step or checkpoint, a model that the layout cannot hold, an
        occupied destination, a full disk.
    """
    layout = _layout(args)
    # Before the weights are read, which may take a minute.
    scores = model_card.scores_of_evaluation(args.scores) if args.scores else {}
    tuned = _from_checkpoint(args, layout) if args.checkpoint else _from_workdir(args)
    source = _interpolated(args, tuned)
    info = source.info
    dtype = args.dtype or (None if layout.architecture else _kept_dtype(args, info))
    extras = {} if info.base else {"preprocessor": info.preprocessor}
    if args.tokenizer or not info.base:
        extras["tokenizer"] = args.tokenizer or info.tokenizer
    keep = info.base or info.path
    with writing.export_directory(args.out, overwrite=args.overwrite, keep=keep) as stage:
        layout.save(stage, source.config, source.params, base=info.base, dtype=dtype, **extras)
        difference = _difference(source, *layout.load(stage), layout.outputs)
        if args.dtype in (None, "float32") and difference > _SAME_FEATURES:
            raise InputError(
                f"what was written does not read back as it was (features differ by "
                f"{difference:.1e}): check the disk; {args.out} is as it was before"
            )
        contents, code = _contents(stage), layout.code(source.config, stage, args.out)
        check = f"read back: features of a random batch differ by at most {difference:.1e}"
        model_card.write(stage, _card(args, source, layout, scores, check, code))
    print(f"wrote {args.out}: {contents}, from {source.label}")
    print(check)
    for line in _notes(args, source, layout):
        print(line)
    print(f"load it with\n\n{code}\n")
    return difference


def _layout(args: argparse.Namespace) -> Layout:
    if not args.architecture:
        return LAYOUTS[args.layout]
    wanted, layout = ARCHITECTURES[args.architecture]
    if args.layout != wanted:
        raise InputError(f"--architecture={args.architecture} is of --layout={wanted}")
    return layout


def _from_checkpoint(args: argparse.Namespace, layout: Layout) -> Source:
    if args.ema or args.step != "best":
        raise InputError("--step and --ema choose in a run: they need --workdir, not --checkpoint")
    config, params, info = readers.read_any(
        args.checkpoint, activation=args.activation, base=args.base, tower_class=layout.architecture
    )
    if args.base and args.alpha is None and info.layout != "tower":
        raise InputError("--base goes with --alpha, or with a --checkpoint of one tower")
    return Source(config, params, info, info.label)


def _kept_dtype(args: argparse.Namespace, info: readers.CheckpointInfo) -> str | None:
    """float16 or bfloat16 where all of a checkpoint is stored so and nothing was changed."""
    if args.alpha is not None or info.layout not in ("huggingface", "openai", "open_clip"):
        return None
    kinds = set(stored_dtypes(info.path).values()) & set(writing.DTYPES)
    return kinds.pop() if len(kinds) == 1 else None


def _from_workdir(args: argparse.Namespace) -> Source:
    if args.activation:
        raise InputError("a run knows its activation: --activation goes with --checkpoint")
    config, params, info = readers.read_workdir(args.workdir, args.step, ema=args.ema)
    return Source(config, params, info, info.label)


def _interpolated(args: argparse.Namespace, tuned: Source) -> Source:
    if args.alpha is None:
        return tuned
    if not 0 <= args.alpha <= 1:
        raise InputError(f"--alpha={args.alpha:g} is not between 0 (the base) and 1 (the tuned)")
    name = args.base or _base_model(tuned)
    if not name:
        raise InputError(f"{tuned.label} does not say what it was tuned from: give --base")
    config, params, _ = readers.read_any(name)
    if config != tuned.config:
        raise InputError(f"{name} and {tuned.label} are different models and cannot be mixed")
    mixed = interpolate(params, tuned.params, args.alpha)
    label = f"{args.alpha:g} of {tuned.label} and {1 - args.alpha:g} of {name}"
    return dataclasses.replace(tuned, params=mixed, label=label)


def _base_model(source: Source) -> str:
    return model_card.base_of_run(source.info.path) if source.info.layout == "workdir" else ""


def _card(
    args: argparse.Namespace,
    source: Source,
    layout: Layout,
    scores: dict[str, str],
    check: str,
    code: str,
) -> model_card.Card:
    info = source.info
    is_run = info.layout == "workdir"
    if is_run:
        scores = model_card.scores_of_run(info.path, info.step) | scores
    return model_card.Card(
        title=args.out.expanduser().resolve().name,
        layout=args.layout,
        source=source.label,
        base_model=_base_model(source) or args.base or ("" if is_run else info.label),
        licence=args.license or model_card.licence_of(info.base),
        facts=_facts(source, layout),
        recipe=model_card.recipe_of_run(info.path) if is_run else {},
        scores=scores,
        check=check,
        code=code,
    )


def _facts(source: Source, layout: Layout) -> dict[str, str]:
    """What the arithmetic of an export is; of one tower, nothing about the other."""
    info, text, vision = source.info, source.config.text, source.config.vision
    tower, projected = towers.ARCHITECTURES.get(layout.architecture, (None, True))
    facts = {"activation": f"{info.activation} ({info.activation_source})"}
    if tower is not towers.TEXT:
        pixels = vision.image_size
        facts["vision tower"] = f"{vision.layers} x {vision.width}, {pixels} pixels"
    if tower is not towers.VISION:
        facts["text tower"] = f"{text.layers} x {text.width}"
        facts["pooling"] = f"state at {info.pooling}"
    if projected:
        facts["features"] = f"{source.config.projection_dim} numbers"
    return facts


def _notes(args: argparse.Namespace, source: Source, layout: Layout) -> list[str]:
    """What a user of this export must know."""
    notes = [f"text tower {layout.note(source.config)}"] if layout.note else []
    if not (args.tokenizer or source.info.tokenizer):
        notes.append("no tokenizer came along: --tokenizer=DIR adds one")
    if source.info.activation_source.startswith("assumed"):
        notes.append(f"activation {source.info.activation}, {source.info.activation_source}")
    return notes


def _contents(out: Path) -> str:
    """Sizes and numbers of what was written; the card comes after it."""
    files = [path for path in out.rglob("*") if path.is_file()]
    weights = [path for path in files if path.suffix in (".safetensors", ".pt")]
    megabytes = sum(path.stat().st_size for path in weights) / 1e6
    others = len(files) - len(weights)
    return f"{megabytes:,.1f} MB of weights and {others} other file{'' if others == 1 else 's'}"


def _difference(
    source: Source, config: clip.CLIPConfig, params: dict[str, Any], outputs: tuple[str, ...]
) -> float:
    """Greatest difference of a feature between the source and what was read back."""
    expected = _features(source.config, source.params, outputs)
    return max(
        float(np.abs(ours - read).max())
        for ours, read in zip(expected, _features(config, params, outputs), strict=True)
    )


def _features(
    config: clip.CLIPConfig, params: dict[str, Any], outputs: tuple[str, ...]
) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    size, text = config.vision.image_size, config.text
    pixels = rng.standard_normal((2, size, size, 3), np.float32)
    # A generator of their own: the ids must not depend on the size of the pixels.
    ids = np.random.default_rng(1).integers(0, text.vocab_size, (2, text.context_length), np.int32)
    graphdef, _ = clip.abstract(config)
    return jax.device_get(_encode(graphdef, outputs, params, pixels, ids))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(graphdef, outputs, params, pixels, ids):
    model = nnx.merge(graphdef, params)
    of_images = ("encode_image", "vision")
    return [getattr(model, name)(pixels if name in of_images else ids) for name in outputs]


def _say_how_to_continue(what: str) -> None:
    print(f"{what}; no export is there in part, start the same command again", file=sys.stderr)


if __name__ == "__main__":
    signals.end_on_signals(_say_how_to_continue)
    # The accelerator may be busy with the run whose checkpoint this is, and is not needed.
    jax.config.update("jax_platforms", "cpu")
    try:
        sys.exit(main())
    except signals.Stopped as stopped:
        signals.end(stopped.signum, _say_how_to_continue)
