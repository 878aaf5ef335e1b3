"""Draws negation prompts with a pipeline's own text encoder and with a tuned one, and judges both.

    python -m evals.text_to_image --base=stable-diffusion-v1-5/stable-diffusion-v1-5 \\
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
from collections.abc import Sequence
from pathlib import Path

from evals import entry


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0, 1 after a sentence, 130 after Ctrl-C."""
    args = _parser().parse_args(argv)

    def work() -> int | None:
        from evals.text_to_image.command import run

        return run(args)

    stopped = f"stopped; the same command continues in {args.out}"
    return entry.execute(work, stopped=stopped)


def _parser() -> argparse.ArgumentParser:
    parser = entry.parser("evals.text_to_image", __doc__)
    add = parser.add_argument
    add("--base", required=True, metavar="DIR_OR_HUB_ID", help="pipeline as diffusers saves it")
    add(
        "--model",
        required=True,
        metavar="PATH",
        help="checkpoint with the tuned text tower: a run, a Hugging Face directory, a .pt, ...",
    )
    add("--out", required=True, type=Path, metavar="DIR", help="folder to write into")
    add("--prompts", type=Path, metavar="FILE", help=".json, .jsonl, .csv or .txt")
    add(
        "--data",
        action="append",
        type=Path,
        metavar="DIR",
        help="instead of --prompts: where prompts_with_questions.json is, at any depth",
    )
    _add_drawing(parser.add_argument_group("drawing"))
    _add_judging(parser.add_argument_group("judging"))
    return parser


def _add_drawing(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--images-per-prompt", type=_positive, default=8, metavar="N", help="default: %(default)s")
    add("--steps", type=_positive, default=50, metavar="N", help="default: %(default)s")
    add("--guidance", type=float, metavar="S", help="default: the pipeline's own")
    add("--size", type=_positive, metavar="PIXELS", help="default: the pipeline's own")
    add("--seed", type=int, default=0, help="of noise and bootstrap; default: %(default)s")
    add("--device", default="", help="cpu, cuda, cuda:1, mps; default: the first GPU, else cpu")
    add("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    add("--batch-size", type=_positive, default=1, metavar="N", help="pictures drawn at once")
    add(
        "--encoder",
        choices=("text_encoder", "text_encoder_2"),
        default="",
        help="of SDXL, to replace; default: the one that fits",
    )
    add("--activation", metavar="NAME", help="quick_gelu or gelu, for weights that do not say")


def _add_judging(group: argparse._ArgumentGroup) -> None:
    who = group.add_mutually_exclusive_group()
    who.add_argument("--judge", metavar="URL", help="ends in /v1; the key is in OPENAI_API_KEY")
    who.add_argument("--stand-in", metavar="CLIP", help="checkpoint that compares in its place")
    add = group.add_argument
    add("--judge-model", default="", metavar="NAME", help="default: the only one it offers")
    add("--judge-timeout", type=_seconds, default=120.0, metavar="S", help="default: %(default)s")
    add("--judge-tries", type=_positive, default=5, metavar="N", help="default: %(default)s")
    add(
        "--judge-concurrency",
        type=_positive,
        default=8,
        metavar="N",
        help="questions in flight; default: %(default)s",
    )


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
    entry.run(main)
