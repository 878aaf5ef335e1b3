"""Raw texts and photos to features: three lines of Python, ours against transformers with torch.

    python -m bench.encode --json=runs/bench/encode.json

Items per second of processor time, all threads counted, compiling left out. transformers pads the
texts of a batch to the longest of them; both sides take batches of 64 and decode JPEGs themselves.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench import harness, material
from bench.harness import Side, flag
from negclip_jax import CLIP

_BATCH = 64


class Ours:
    """`CLIP.from_pretrained` and its methods for raw items."""

    def __init__(self, directory: str):
        self._model = CLIP.from_pretrained(directory)

    def encode(self, kind: str, items: list[str]) -> tuple[float, np.ndarray]:
        """Processor seconds, and unit features `[N, D]`."""
        encode = {"texts": self._model.embed_texts, "images": self._model.embed_images}[kind]
        start = time.process_time()
        features = encode(items)
        return time.process_time() - start, features


class Transformers:
    """`CLIPModel` and `CLIPProcessor` of transformers."""

    def __init__(self, directory: str):
        import torch
        import transformers

        self._no_grad = torch.no_grad
        self._model = transformers.CLIPModel.from_pretrained(directory).eval()
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        self._processor = transformers.AutoImageProcessor.from_pretrained(directory)

    def encode(self, kind: str, items: list[str]) -> tuple[float, np.ndarray]:
        """The same."""
        start, rows = time.process_time(), []
        with self._no_grad():
            for i in range(0, len(items), _BATCH):
                out = getattr(self, f"_{kind}")(items[i : i + _BATCH])
                rows.append(getattr(out, "pooler_output", out).numpy())
        features = np.concatenate(rows)
        features /= np.linalg.norm(features, axis=-1, keepdims=True)
        return time.process_time() - start, features

    def _texts(self, texts: list[str]) -> Any:
        tokens = self._tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        return self._model.get_text_features(**tokens)

    def _images(self, paths: list[str]) -> Any:
        from PIL import Image

        images = [Image.open(path).convert("RGB") for path in paths]
        pixels = self._processor(images, return_tensors="pt")["pixel_values"]
        return self._model.get_image_features(pixels)


@flag("--arch", choices=material.ARCHITECTURES, default="vit_b_32", help="sizes of the model")
@flag("--texts", type=int, default=512, help="how many")
@flag("--images", type=int, default=128, help="how many")
@flag("--repetitions", type=int, default=3, help="that are counted")
def measure(args: argparse.Namespace, scratch: Path) -> harness.Measured:
    """In turns, the first round left out; medians."""
    harness.require_torch()
    directory = str(scratch / "model")
    material.random_checkpoint(scratch / "model", args.arch)
    _, folder = material.write_pairs(scratch / "data", args.images, args.images)
    rng = np.random.default_rng(1)
    items = {
        "texts": [material.negated_caption(rng) for _ in range(args.texts)],
        "images": sorted(str(path) for path in folder.iterdir()),
    }
    result: dict[str, Any] = {"arch": args.arch}
    rows = []
    with (
        Side("bench.encode:Ours", directory) as ours,
        Side("bench.encode:Transformers", directory) as theirs,
    ):
        for kind, given in items.items():
            rounds = harness.turns([ours, theirs], args.repetitions + 1, "encode", kind, given)
            seconds = np.array([[side[0] for side in pair] for pair in rounds[1:]])
            mine, other = (len(given) / np.median(seconds, axis=0)).tolist()
            ratio = float(np.median(seconds[:, 1] / seconds[:, 0]))
            difference = float(np.abs(rounds[0][0][1] - rounds[0][1][1]).max())
            rates = {"ours_per_second_and_core": mine, "transformers_per_second_and_core": other}
            result[kind] = {"count": len(given), **rates, "ratio": ratio}
            result[kind]["largest_difference"] = difference
            cells = [f"{mine:.1f}", f"{other:.1f}", f"{ratio:.2f} x", f"{difference:.1e}"]
            rows.append([f"{len(given):,} {kind}", *cells])
    head = ["items per second and core", "ours", "transformers", "ratio", "largest difference"]
    return result, args.arch, [(head, rows)]


main = harness.command("bench.encode", __doc__, measure)

if __name__ == "__main__":
    main()
