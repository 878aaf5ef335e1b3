"""The other side of the comparisons: the published recipe in PyTorch, ready to be timed."""

import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from bench import sides
from bench.matmul import matmul_rate, side_for
from bench.published_recipe import Pairs, PublishedRecipe


class Reference:
    """A run of the published recipe on given batches."""

    def __init__(self, checkpoint: str, images: str, workers: int, threads: int):
        """Trains on a GPU if PyTorch sees one.

        Args:
          checkpoint: Hugging Face directory.
          images: of the photos.
          workers: processes that decode, as `DataLoader` takes them; 0 is this process.
          threads: of PyTorch on the CPU.
        """
        torch.set_num_threads(threads)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._recipe = PublishedRecipe(Path(checkpoint))
        self._recipe.model.to(self._device)
        self._images, self._workers = Path(images), workers

    def epoch(self, batches: list[list[tuple[str, str]]]) -> dict[str, Any]:
        """Takes a step on each of these batches of photos and captions, which are equally large."""
        pairs = [pair for batch in batches for pair in batch]
        recipe = self._recipe
        size = recipe.model.config.vision_config.image_size
        photos = Pairs([self._images / photo for photo, _ in pairs], size)
        losses, waited = [], 0.0
        begin = time.perf_counter()
        loader = iter(DataLoader(photos, batch_size=len(batches[0]), num_workers=self._workers))
        for _ in batches:
            asked = time.perf_counter()
            pixels, indices = next(loader)
            ids = recipe.tokenize([pairs[i][1] for i in indices])
            waited += time.perf_counter() - asked
            losses.append(recipe.step(pixels.to(self._device), ids.to(self._device)))
        return {
            "seconds": time.perf_counter() - begin,
            "waited": waited,
            "losses": losses,
            "memory": self._peak_memory(),
        }

    def matmul_rate(self) -> float:
        """FLOP/s of large float32 products with this library, at this moment."""

        def multiply(a: torch.Tensor, b: torch.Tensor) -> None:
            torch.matmul(a, b)
            if self._device == "cuda":
                torch.cuda.synchronize()

        side = side_for(self._device)
        return matmul_rate(multiply, lambda x: torch.from_numpy(x).to(self._device), side)

    def _peak_memory(self) -> int:
        """Most bytes in use so far: of the GPU if there is one, else of this process."""
        if self._device == "cuda":
            return torch.cuda.max_memory_allocated()
        return sides.peak_memory()
