"""Scores models on negation benchmarks, each by its own rules, with intervals and controls.

    python -m evals --model=before=DIR_OR_HUB_ID --model=after=runs/b32 \\
        --benchmarks=valse,negrefcocog,negbench_mcq --data=DIR --out=runs/eval

A model is a Hugging Face directory or hub id, a training workdir (its best checkpoint; @last or
@STEP for another, +ema for the moving average), an OpenAI .pt or an open_clip checkpoint.
Writes results.json, predictions.parquet and report.html into --out. The same command started again
continues: nothing that was encoded is encoded again.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from evals import entry, registry


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0, 1 after a sentence, 130 after Ctrl-C."""
    args = _parser().parse_args(argv)

    def work() -> int | None:
        from evals.command import evaluate

        return evaluate(args)

    stopped = f"stopped; what was scored is kept, and the same command continues in {args.out}"
    return entry.execute(work, stopped=stopped)


def _parser() -> argparse.ArgumentParser:
    parser = entry.parser("evals", __doc__)
    parser.epilog = "benchmarks: " + ", ".join(registry.names())
    add = parser.add_argument
    add("--model", action="append", default=[], metavar="[NAME=]PATH", help="may be repeated")
    add(
        "--benchmarks",
        type=_names,
        default="available",
        metavar="A,B",
        help="names from the list below; default: all whose files are there",
    )
    add(
        "--data",
        action="append",
        required=True,
        type=Path,
        metavar="DIR",
        help="published files and photos, at any depth; may be repeated: the first wins",
    )
    add("--images", action="append", default=[], type=Path, metavar="DIR", help="more photos")
    add("--out", required=True, type=Path, metavar="DIR", help="folder to write into")
    add("--allow-subset", action="store_true", help="score the items whose photos are there")
    add("--overwrite", action="store_true", help="replace results of other models in --out")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the computation")
    add("--crop", choices=("openai", "transformers"), default="openai", help="centre-crop rounding")
    add("--activation", metavar="NAME", help="quick_gelu or gelu, for weights that do not say")
    add("--tokenizer", metavar="DIR", help="vocabulary for a model that has none")
    add("--cache", type=Path, metavar="DIR", help="of embeddings; default: OUT/embeddings")
    add("--seed", type=int, default=0, help="of the bootstrap")
    add("--gallery", type=int, default=24, metavar="N", help="items a benchmark in the report")
    blend = parser.add_argument_group("weight-space ensembling")
    blend.add_argument(
        "--interpolate",
        type=_pair,
        metavar="BASE,TUNED",
        help="instead of --model: evaluate mixtures (1 - alpha) x BASE + alpha x TUNED",
    )
    blend.add_argument(
        "--alphas",
        type=_alphas,
        default="0,0.1,...,1",
        metavar="A,B,...,C",
        help="default: %(default)s",
    )
    blend.add_argument(
        "--max-loss",
        type=float,
        default=1.0,
        metavar="POINTS",
        help="of retention, that the best alpha may cost; default: %(default)s",
    )
    hosts = parser.add_argument_group("several hosts: the same command on each of them")
    hosts.add_argument(
        "--distributed",
        default="off",
        metavar="auto|HOST:PORT",
        help="auto on TPU pods and Slurm, else the first host's address with the next two",
    )
    hosts.add_argument("--process-id", type=int, metavar="I", help="of this host, from 0")
    hosts.add_argument("--num-processes", type=int, metavar="N", help="hosts in all")
    return parser


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _pair(text: str) -> list[str]:
    parts = text.split(",")
    if len(parts) != 2 or not all(parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not BASE,TUNED")
    return parts


def _alphas(text: str) -> list[float]:
    """`0,0.1,...,1` or a plain list."""
    try:
        parts = [part.strip() for part in text.split(",")]
        if "..." not in parts:
            return [float(part) for part in parts]
        at = parts.index("...")
        start, last, step = float(parts[at - 2]), float(parts[at + 1]), float(parts[at - 1])
        step -= start
        rest = [start + i * step for i in range(round((last - start) / step) + 1)]
        return [*map(float, parts[: at - 2]), *(round(x, 6) for x in rest)]
    except (ValueError, IndexError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list like 0,0.5,1 or 0,0.1,...,1"
        ) from None


if __name__ == "__main__":
    entry.run(main)
