"""Writes trained weights in a layout that other software reads.

    python -m negclip_jax.interop.export --workdir=runs/b32 --layout=huggingface --out=exported/b32

With `--checkpoint` instead of `--workdir` it converts a checkpoint and needs no run.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from negclip_jax.errors import InputError
from negclip_jax.interop import huggingface, readers
from negclip_jax.models import clip

_DTYPES = ("float32", "float16", "bfloat16")
_SAME_FEATURES = 1e-4  # float32 weights read back bit-equal; threads may sum in another order


@dataclasses.dataclass(frozen=True)
class Source:
    """What is exported: a model, the directory whose other files go along, and words for it."""

    config: clip.CLIPConfig
    params: dict[str, Any]
    base: Path
    label: str


@dataclasses.dataclass(frozen=True)
class Layout:
    """A way to write weights.

    Attributes:
      save: `(out, config, params, base=, dtype=, overwrite=)`.
      load: reads `(config, params)` back from the directory, for the check after writing.
      usage: code that loads the result, with `{out}` for the directory.
    """

    save: Callable[..., Any]
    load: Callable[[Path], tuple[clip.CLIPConfig, dict[str, Any]]]
    usage: str


def _load_huggingface(directory: Path) -> tuple[clip.CLIPConfig, dict[str, Any]]:
    config = huggingface.read_config(directory)
    return config, huggingface.load_params(directory, config)


LAYOUTS = {
    "huggingface": Layout(
        save=huggingface.save,
        load=_load_huggingface,
        usage=(
            "from transformers import AutoProcessor, CLIPModel\n"
            'model = CLIPModel.from_pretrained("{out}")\n'
            'processor = AutoProcessor.from_pretrained("{out}")'
        ),
    ),
}


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0, or 1 after a sentence on stderr."""
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
        description="Write trained CLIP weights in a layout that other software reads.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", metavar="DIR", help="directory of a training run")
    source.add_argument(
        "--checkpoint", metavar="DIR_OR_HUB_ID", help="Hugging Face CLIP to convert instead"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="where to write")
    parser.add_argument(
        "--layout", choices=LAYOUTS, default="huggingface", help="default: %(default)s"
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
    parser.add_argument(
        "--dtype",
        choices=_DTYPES,
        help="of the weights; default: float32, or the checkpoint's own where nothing was trained",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    return parser


def export(args: argparse.Namespace) -> float:
    """Writes, reads back and reports; see `_parser` for the arguments.

    Returns:
      The greatest difference of a feature between the model in memory and the one on disk.

    Raises:
      InputError: no such run, step or checkpoint, an occupied destination, a full disk.
    """
    layout = LAYOUTS[args.layout]
    source = _from_checkpoint(args) if args.checkpoint else _from_workdir(args)
    layout.save(
        args.out,
        source.config,
        source.params,
        base=source.base,
        dtype=args.dtype,
        overwrite=args.overwrite,
    )
    difference = _difference(source, *layout.load(args.out))
    if args.dtype in (None, "float32") and difference > _SAME_FEATURES:
        raise InputError(
            f"{args.out} does not read back as it was written (features differ by "
            f"{difference:.1e}): do not use it, and check the disk"
        )
    print(f"wrote {args.out}: {_contents(args.out)}, from {source.label}")
    print(f"read back: features of a random batch differ by at most {difference:.1e}")
    print(f"load it with\n\n{layout.usage.format(out=args.out)}\n")
    return difference


def _from_checkpoint(args: argparse.Namespace) -> Source:
    if args.ema or args.step != "best":
        raise InputError("--step and --ema choose in a run: they need --workdir, not --checkpoint")
    config, params, info = readers.read_any(args.checkpoint)
    return Source(config, params, info.base, info.label)


def _from_workdir(args: argparse.Namespace) -> Source:
    config, params, info = readers.read_workdir(args.workdir, args.step, ema=args.ema)
    return Source(config, params, info.base, info.label)


def _contents(out: Path) -> str:
    files = [path for path in out.rglob("*") if path.is_file()]
    weights = [path for path in files if path.suffix == ".safetensors"]
    megabytes = sum(path.stat().st_size for path in weights) / 1e6
    return f"{megabytes:,.1f} MB of weights and {len(files) - len(weights)} other files"


def _difference(source: Source, config: clip.CLIPConfig, params: dict[str, Any]) -> float:
    """Greatest difference of a feature between the source and what was read back."""
    expected = _features(source.config, source.params)
    return max(
        float(np.abs(ours - read).max())
        for ours, read in zip(expected, _features(config, params), strict=True)
    )


def _features(config: clip.CLIPConfig, params: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    size, text = config.vision.image_size, config.text
    pixels = rng.standard_normal((2, size, size, 3), np.float32)
    ids = rng.integers(0, text.vocab_size, (2, text.context_length), np.int32)
    graphdef, _ = clip.abstract(config)

    @jax.jit
    def encode(params):
        model = nnx.merge(graphdef, params)
        return model.encode_image(pixels), model.encode_text(ids)

    return jax.device_get(encode(params))


if __name__ == "__main__":
    # The accelerator may be busy with the run whose checkpoint this is, and is not needed.
    jax.config.update("jax_platforms", "cpu")
    sys.exit(main())
