"""All commands of this project on one screen: `python -m negclip_jax`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from negclip_jax.common.arguments import Parser
from negclip_jax.common.errors import say

# Of a clone: a wheel holds the library, and of these those of negclip_jax.interop alone.
COMMANDS = {
    "Try": {
        "python -m quickstart": "the whole paper in small, offline",
    },
    "Write data": {
        "python -m data_gen run": "pairs, by servers or a grammar",
        "python -m data_gen": "others: plan, status, audit, export",
        "python -m data_gen statements": "statements for pairs from elsewhere",
        "python -m data_gen nouns": "texts of nouns, without a photo",
    },
    "Train": {
        "python launch.py": "fine-tune a CLIP on pairs, or continue",
    },
    "Evaluate": {
        "python -m evals": "benchmarks, models side by side",
        "python -m evals.catalogue": "what each benchmark is, and its traps",
        "python -m evals.search": "rank your own photos by a text",
        "python -m evals.segmentation": "segment with a tuned text tower",
        "python -m evals.text_to_image": "draw with a tuned text tower",
    },
    "Use elsewhere": {
        "python -m negclip_jax.interop.image_features": "features, by PyTorch",
        "python -m negclip_jax.interop.export": "for transformers, open_clip, ...",
    },
    "Measure speed": {
        "python -m bench": "against PyTorch, on this machine",
    },
}
_WIDEST = 38


def text() -> str:
    """The list, of at most 80 columns."""
    lengths = [len(command) for group in COMMANDS.values() for command in group]
    width = max(length for length in lengths if length <= _WIDEST)  # a longer one sticks out
    lines = [
        "Each says with --help what it does, and begins with an example. A model is",
        "--model=[NAME=]PATH[@STEP][+ema] in all of them: a training run (its best",
        "checkpoint, @last or @STEP, +ema for the moving average), a Hugging Face",
        "directory or hub id, or a checkpoint of open_clip or OpenAI's clip.",
    ]
    for title, group in COMMANDS.items():
        lines += ["", title]
        lines += [f"  {command:{width}}  {told}" for command, told in group.items()]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the list; returns the exit status."""
    Parser("python -m negclip_jax", text()).parse_args(argv)
    if not (Path(__file__).parents[1] / "launch.py").exists():
        say("This is the library alone: but for negclip_jax.interop, commands are of a clone.\n")
    say(text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
