"""JPEG files to normalised tensors: ours against PyTorch's DataLoader with Pillow.

    python -m bench.images --images=val2017 --json=runs/bench/images.json

Images per second of processor time, all threads counted, so that the figure is per core and does
not depend on what else the machine does. Ours decodes and resizes to uint8 in the loader's threads
and normalises inside `jit`; the other side applies OpenAI's transform to float32 per image.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import jax
import numpy as np

from bench import harness, material
from bench.harness import Side, flag
from negclip_jax.common.errors import InputError
from negclip_jax.data.images import ImageDirectory
from negclip_jax.models.normalisation import normalise_pixels

_BATCH = 64


class OurImages:
    """The loader's way from files to device tensors."""

    def __init__(self, root: str, names: list[str]):
        self._loader = material.photo_loader(ImageDirectory(root), names, _BATCH, shuffle=False)
        self.read()  # compiles, and fills the file cache

    def read(self) -> float:
        """Processor seconds for all images once."""
        normalise, preprocess = jax.jit(normalise_pixels), self._loader.preprocess
        start = time.process_time()
        for batch in self._loader.batches(0, self._loader.steps_per_epoch):
            normalise(batch["image"], preprocess.mean, preprocess.std).block_until_ready()
        return time.process_time() - start

    def difference(self) -> tuple[float, int]:
        """Mean and largest difference from Pillow's resize, in levels of 255."""
        quick, away = self._loader.preprocess, []
        exact = dataclasses.replace(quick, exact=True)
        for image in map(self._loader.images.open, self._loader.examples.images):
            a, b = (p.uint8(image).astype(np.int16) for p in (quick, exact))
            away.append((np.abs(a - b).mean(), np.abs(a - b).max()))
        means, largest = zip(*away, strict=True)
        return float(np.mean(means)), int(max(largest))


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


@flag("--images", type=Path, help="directory of JPEG files; default: made, of COCO's size")
@flag("--limit", type=int, default=256, help="photos to read (default 256)")
@flag("--repetitions", type=int, default=3, help="turns of each side (default 3)")
def measure(args: argparse.Namespace, scratch: Path) -> harness.Measured:
    """Both sides in turns."""
    root = args.images
    if root is None:
        _, root = material.write_pairs(scratch, args.limit, args.limit)
    names = sorted(str(p.relative_to(root)) for p in root.rglob("*.jpg"))[: args.limit]
    if not names:
        raise InputError(f"--images={root} holds no *.jpg")
    harness.require_torch()
    with (
        Side("bench.images:OurImages", str(root), names) as ours,
        Side("bench.images:TheirImages", str(root), names) as theirs,
    ):
        rates = len(names) / np.array(harness.turns([ours, theirs], args.repetitions, "read"))
        mean, largest = ours("difference")
    mine, other = np.median(rates, axis=0).tolist()
    ratio = float(np.median(rates[:, 0] / rates[:, 1]))
    header = ["JPEG to normalised tensor", "ours", "PyTorch DataLoader, Pillow", "ratio"]
    rows = [
        ["images/s and core", f"{mine:.0f}", f"{other:.0f}", f"{ratio:.2f} x"],
        ["mean difference, of 255 levels", f"{mean:.4f} (max {largest})", "0", ""],
    ]
    result = {
        "images": len(names),
        "images_per_second_and_core": mine,
        "reference_images_per_second_and_core": other,
        "ratio": ratio,
        "mean_difference_levels": mean,
        "max_difference_levels": largest,
    }
    return result, f"{len(names)} photos", [(header, rows)]


main = harness.command("bench.images", __doc__, measure)

if __name__ == "__main__":
    main()
