"""Three lines of Python: features of texts and photos by `CLIP`, and by transformers' CLIPModel.

    python -m bench.api --json=runs/bench/api.json

Both sides read the same random weights, get raw captions and the paths of photos, and give NumPy
arrays, in turns, each in a process of its own. transformers' side does what its users do: batches
of 64, padded to the longest of each, without gradients. The first pass, which compiles, counts for
neither.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import harness, material
from bench.harness import Side
from negclip_jax.common import extras

_BATCH = 64


class Ours:
    """negclip_jax's public interface."""

    def __init__(self, checkpoint: str):
        from negclip_jax import CLIP

        self._model = CLIP.from_pretrained(checkpoint)

    def texts(self, texts: list[str]) -> tuple[float, np.ndarray]:
        """Seconds, and features `[N, D]`."""
        start = time.perf_counter()
        features = np.asarray(self._model.encode_text(texts))
        return time.perf_counter() - start, features / np.linalg.norm(features, axis=1)[:, None]

    def images(self, paths: list[str]) -> tuple[float, np.ndarray]:
        """The same of photos."""
        start = time.perf_counter()
        features = self._model.embed_images(paths)
        return time.perf_counter() - start, features


class Theirs:
    """transformers' CLIPModel, tokenizer and image processor."""

    def __init__(self, checkpoint: str, threads: int):
        import torch
        import transformers
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self._model = CLIPModel.from_pretrained(checkpoint).eval()
        self._tokenizer = CLIPTokenizer.from_pretrained(checkpoint)
        size = self._model.config.vision_config.image_size
        crop = {"height": size, "width": size}
        self._processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size=crop)

    def texts(self, texts: list[str]) -> tuple[float, np.ndarray]:
        """As `Ours.texts`."""

        def encode(part: list[str]) -> Any:
            ids = self._tokenizer(part, padding=True, truncation=True, return_tensors="pt")
            return self._model.get_text_features(**ids)

        return self._timed(encode, texts)

    def images(self, paths: list[str]) -> tuple[float, np.ndarray]:
        """As `Ours.images`."""
        from PIL import Image

        def encode(part: list[str]) -> Any:
            pixels = self._processor([Image.open(path) for path in part], return_tensors="pt")
            return self._model.get_image_features(**pixels)

        return self._timed(encode, paths)

    def _timed(self, encode: Any, items: list[str]) -> tuple[float, np.ndarray]:
        start, rows = time.perf_counter(), []
        for first in range(0, len(items), _BATCH):
            found = encode(items[first : first + _BATCH])
            rows.append(getattr(found, "pooler_output", found).numpy())  # transformers 5, and 4
        features = np.concatenate(rows)
        return time.perf_counter() - start, features / np.linalg.norm(features, axis=1)[:, None]


def measure(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Items a second on both sides, the median of the turns, and how far the features differ."""
    extras.require("torch", extra="torch", why="the PyTorch side of this benchmark")
    checkpoint = scratch / "checkpoint"
    material.random_checkpoint(checkpoint, args.arch, tokenizer=args.tokenizer)
    _, root = material.write_pairs(scratch, args.images, captions_per_photo=1)
    rng = np.random.default_rng(0)
    items = {
        "texts": [material.negated_caption(rng) for _ in range(args.texts)],
        "images": sorted(map(str, root.glob("*.jpg"))),
    }
    result: dict[str, Any] = {"arch": args.arch}
    with (
        Side("bench.api:Ours", str(checkpoint)) as ours,
        Side("bench.api:Theirs", str(checkpoint), harness.cores()) as theirs,
    ):
        for kind, values in items.items():
            (_, mine), (_, other) = ours(kind, values), theirs(kind, values)
            turns = [[s(kind, values)[0] for s in (ours, theirs)] for _ in range(args.repetitions)]
            seconds = np.median(turns, axis=0)
            result[kind] = {
                "count": len(values),
                "per_second": len(values) / seconds[0],
                "reference_per_second": len(values) / seconds[1],
                "ratio": float(np.median([other / mine for mine, other in turns])),
                "least_cosine": float((mine * other).sum(axis=1).min()),
            }
    return result


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    rows = [
        [
            f"{result[kind]['count']:,} {kind}/s",
            f"{result[kind]['per_second']:.1f}",
            f"{result[kind]['reference_per_second']:.1f}",
            f"{result[kind]['ratio']:.2f} x",
            f"{result[kind]['least_cosine']:.6f}",
        ]
        for kind in ("texts", "images")
    ]
    header = ["raw items to features", "ours", "transformers", "ratio", "least cosine"]
    return harness.titled(result["arch"], result, header, rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser("bench.api", __doc__)
    add = parser.add_argument
    add("--arch", choices=material.ARCHITECTURES, default="vit_b_32", help="sizes of the model")
    add("--tokenizer", type=Path, help="folder of CLIP's vocabulary, for real captions")
    add("--texts", type=int, default=512, help="captions (default 512)")
    add("--images", type=int, default=128, help="photos (default 128)")
    add("--repetitions", type=int, default=2, help="turns of each side (default 2)")
    harness.run(parser, measure, table, argv)


if __name__ == "__main__":
    main()
