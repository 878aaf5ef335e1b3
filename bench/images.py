"""JPEG files to normalised tensors: ours against PyTorch's DataLoader with Pillow.

    python -m bench.images --images=DIR --json=runs/bench/images.json

Images per second of processor time, all threads counted, so that the figure is per core and does
not depend on what else the machine does. Ours decodes and resizes to uint8 in the loader's threads
and normalises inside `jit`; the other side applies OpenAI's transform to float32 per image.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import harness
from bench.harness import Side
from negclip_jax.common import extras
from negclip_jax.common.errors import InputError

_BATCH = 64


class OurImages:
    """The loader's way from files to device tensors."""

    def __init__(self, root: str, names: list[str]):
        from negclip_jax.data.images import ImageDirectory, Preprocessor

        self._preprocess, self._images = Preprocessor(exact=False), ImageDirectory(root)
        self._loader = _loader(self._images, self._preprocess, names)
        self.read()  # compiles, and fills the file cache

    def read(self) -> float:
        """Processor seconds for all images once."""
        import jax

        from negclip_jax.models.normalisation import normalise_pixels

        normalise = jax.jit(normalise_pixels)
        start = time.process_time()
        for batch in self._loader.batches(0, self._loader.steps_per_epoch):
            pixels = normalise(batch["image"], self._preprocess.mean, self._preprocess.std)
            pixels.block_until_ready()
        return time.process_time() - start

    def difference(self) -> tuple[float, int]:
        """Mean and largest difference from Pillow's resize, in levels of 255."""
        import dataclasses

        exact = dataclasses.replace(self._preprocess, exact=True)
        total, largest, names = 0.0, 0, self._loader.examples.images
        for name in names:
            image = self._images.open(name)
            a, b = (p.uint8(image).astype(np.int16) for p in (self._preprocess, exact))
            total += float(np.abs(a - b).mean())
            largest = max(largest, int(np.abs(a - b).max()))
        return total / len(names), largest


class TheirImages:
    """PyTorch's way."""

    def __init__(self, root: str, names: list[str]):
        import torch
        from torch.utils.data import DataLoader

        from bench.published_recipe import Pairs

        torch.set_num_threads(1)  # threads that wait for each other would count as work
        photos = Pairs([Path(root) / name for name in names], 224)
        self._loader = DataLoader(photos, batch_size=_BATCH)
        self.read()

    def read(self) -> float:
        """Processor seconds for all images once."""
        start = time.process_time()
        for pixels, _ in self._loader:
            pixels.sum()
        return time.process_time() - start


def _loader(images: Any, preprocess: Any, names: list[str]) -> Any:
    from negclip_jax.data.examples import Examples
    from negclip_jax.data.loader import PairLoader
    from negclip_jax.data.packing import Ragged

    n = len(names)
    captions = np.arange(n)[None]
    texts = Ragged(np.zeros(2 * n, np.int32), 2 * np.arange(n + 1))
    examples = Examples(names, np.arange(n), texts, captions, None, None)
    return PairLoader(
        examples=examples,
        images=images,
        preprocess=preprocess,
        batch_size=_BATCH,
        shuffle=False,
        threads=harness.cores(),
    )


def measure(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Both sides in turns."""
    root = args.images
    if root is None:
        from bench import material

        _, root = material.write_pairs(scratch, args.limit, captions_per_photo=1)
    names = sorted(str(p.relative_to(root)) for p in root.rglob("*.jpg"))[: args.limit]
    if not names:
        raise InputError(f"--images={root} holds no *.jpg")
    extras.require("torch", extra="torch", why="the PyTorch side of this benchmark")
    with (
        Side("bench.images:OurImages", str(root), names) as ours,
        Side("bench.images:TheirImages", str(root), names) as theirs,
    ):
        rounds = [(ours("read"), theirs("read")) for _ in range(args.repetitions)]
        mean, largest = ours("difference")
    mine, other = (len(names) / np.array(side) for side in zip(*rounds, strict=True))
    return {
        "images": len(names),
        "images_per_second_and_core": float(np.median(mine)),
        "reference_images_per_second_and_core": float(np.median(other)),
        "ratio": float(np.median(mine / other)),
        "mean_difference_levels": mean,
        "max_difference_levels": largest,
    }


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    header = ["JPEG to normalised tensor", "ours", "PyTorch DataLoader, Pillow", "ratio"]
    mine, other = (result[f"{side}images_per_second_and_core"] for side in ("", "reference_"))
    difference = f"{result['mean_difference_levels']:.4f} (max {result['max_difference_levels']})"
    rows = [
        ["images/s and core", f"{mine:.0f}", f"{other:.0f}", f"{result['ratio']:.2f} x"],
        ["mean difference, of 255 levels", difference, "0", ""],
    ]
    return harness.titled(f"{result['images']} photos", result, header, rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser("bench.images", __doc__)
    add = parser.add_argument
    add("--images", type=Path, help="directory of JPEG files; default: made, of COCO's size")
    add("--limit", type=int, default=256, help="photos to read (default 256)")
    add("--repetitions", type=int, default=3, help="turns of each side (default 3)")
    harness.run(parser, measure, table, argv)


if __name__ == "__main__":
    main()
