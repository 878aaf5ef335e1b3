"""Ranks a folder of photos by their similarity with a text, before and after fine-tuning.

    python -m evals.search --base=openai/clip-vit-base-patch32 --model=runs/b32 \\
        --images=PHOTOS "a dog without a leash" "a street with no cars"

Prints the first photos with their cosines and writes report.html, a page that shows them side by
side, and results.json into --out. Embeddings are kept there and found again by the content of a
photo and the weights, so that the next search encodes what is new. Photos are looked for at any
depth, hidden folders aside; what cannot be read is listed and left out, and links that lead out of
the folder are not followed.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from evals import entry


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0, 1 after a sentence, 130 after Ctrl-C."""
    args = _parser().parse_args(argv)

    def work() -> int | None:
        from evals.search.command import run

        return run(args)

    stopped = "stopped; what was encoded is kept, and the same command continues"
    return entry.execute(work, stopped=stopped)


def _parser() -> argparse.ArgumentParser:
    parser = entry.parser("evals.search", __doc__)
    add = parser.add_argument
    add("queries", nargs="+", metavar="TEXT", help="what to look for, each in quotes")
    add("--model", required=True, metavar="[NAME=]PATH", help="as in python -m evals")
    add("--base", metavar="[NAME=]PATH", help="model to show beside it")
    add("--images", required=True, type=Path, metavar="DIR", help="folder of photos")
    add("--top", type=int, default=24, metavar="N", help="photos to show; default: %(default)s")
    add(
        "--out",
        type=Path,
        default=Path("runs/search"),
        metavar="DIR",
        help="folder to write into; default: %(default)s",
    )
    add("--cache", type=Path, metavar="DIR", help="of embeddings; default: OUT/embeddings")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the computation")
    add("--crop", choices=("openai", "transformers"), default="openai", help="centre-crop rounding")
    add("--activation", metavar="NAME", help="quick_gelu or gelu, for weights that do not say")
    add("--tokenizer", metavar="DIR", help="vocabulary for a model that has none")
    return parser


if __name__ == "__main__":
    entry.run(main)
