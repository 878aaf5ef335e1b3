"""A few scenes of the quickstart's world with negated captions, and a tiny CLIP: in a second.

    python -m quickstart.few_scenes --out=runs/few --scenes=96

For `configs/debug.py`, which asks whether a run works at all. What the quickstart trains on is
written by `python -m data_gen`, with many words and orders and with labels of both kinds.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from negclip_jax.common import atomic_files
from negclip_jax.common.arguments import Parser
from negclip_jax.common.errors import InputError, say
from quickstart.tiny_clip import write_tiny_clip
from quickstart.world import KINDS, describe, draw_combinations, place, render, split_combinations


def write(out: Path, scenes: int, seed: int = 0) -> None:
    """Writes `images/`, `pairs.jsonl` (one of each scene) and `checkpoint/`: all or nothing."""
    pool, _ = split_combinations(seed)
    rng = np.random.default_rng([seed, 20])
    with atomic_files.whole_directory(out) as folder:
        (folder / "images").mkdir()
        lines = []
        for number, names in enumerate(draw_combinations(pool, scenes, rng), start=1):
            render(place(names, rng), rng).save(folder / "images" / f"{number:04d}.png")
            present = [name.split()[1] for name in names]
            absent = rng.choice([kind for kind in KINDS if kind not in present])
            caption = describe(names, rng)[0]
            record = {"image": f"{number:04d}.png", "caption": caption}
            record["negated"] = f"{caption} and no {absent}"
            record["foils"] = [f"{caption} and no {rng.choice(present)}"]
            lines.append(json.dumps(record) + "\n")
        (folder / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")
        write_tiny_clip(folder / "checkpoint", seed)


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("python -m quickstart.few_scenes", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--scenes", type=int, default=96, help="how many (default 96)")
    parser.add_argument("--seed", type=int, default=0, help="of scenes, texts and weights")
    args = parser.parse_args(argv)
    if args.scenes < 1:
        parser.error("--scenes must be 1 or more")
    try:
        write(args.out, args.scenes, args.seed)
    except (InputError, OSError) as error:
        sys.exit(f"quickstart.few_scenes: {error}")
    say(f"{args.scenes} scenes and a tiny CLIP with random weights in {args.out}")


if __name__ == "__main__":
    main()
