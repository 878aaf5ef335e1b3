"""What the two towers read: images as pixels, texts as packed token ids, in batches of one shape.

`Images` and `Texts` are two answers to the same three questions: under which key an item's
embedding is kept (`keys`), what a batch of items looks like (`batches`), and what a model does with
it (`encode`, traced inside `jax.jit`, equal where it does the same).
"""

import collections
import concurrent.futures
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from evals.images import DataRoots, ImageRef
from evals.store import key
from negclip_jax.common.decoding import ImageError
from negclip_jax.data.images import Preprocessor
from negclip_jax.data.packing import Packing, Ragged
from negclip_jax.data.siglip_tokens import SigLIPTokenizer
from negclip_jax.data.tokenizer import Tokenizer
from negclip_jax.embeddings import features
from negclip_jax.models import clip
from negclip_jax.runtime import sharding

_THREADS = 16  # that decode images
_AHEAD = 2  # batches decoded while the devices compute

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class EncodeImages:
    """Features `[B, D]` of a batch of `Images`, NaN where bad. Bytes travel, not floats."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, model: clip.CLIP, batch: dict[str, jax.Array]) -> jax.Array:
        mean, std = jnp.asarray(self.mean), jnp.asarray(self.std)
        pixels = (batch["pixels"].astype(jnp.float32) / 255 - mean) / std
        return jnp.where(batch["bad"][:, None], jnp.nan, model.encode_image(pixels))


@dataclasses.dataclass(frozen=True)
class EncodeTexts:
    """Features `[B, D]` of a batch of `Texts`."""

    packed: bool

    def __call__(self, model: clip.CLIP, batch: dict[str, jax.Array]) -> jax.Array:
        return model.encode_text(batch if self.packed else batch["ids"])


class Images:
    """Distinct images, decoded by threads ahead of the devices."""

    name = "images"

    def __init__(
        self, refs: Sequence[ImageRef], roots: DataRoots, preprocess: Preprocessor, digests: Path
    ):
        """Reads every file once for its digest, unless `digests/digests.json` knows it."""
        self._roots, self._preprocess = roots, preprocess
        self.encode = EncodeImages(tuple(preprocess.mean), tuple(preprocess.std))
        self.unreadable: dict[ImageRef, str] = {}
        paths = list(dict.fromkeys(ref.path for ref in refs))
        digest = dict(zip(paths, features.image_digests(roots, paths, digests), strict=True))
        self.keys = {r: key(digest[r.path].encode(), json.dumps(r.box).encode()) for r in refs}

    def batches(self, refs: Sequence[ImageRef], size: int, mesh: Mesh) -> Iterator[Batch]:
        """This process's rows of each batch: `pixels` uint8 `[r, H, W, 3]`, `bad` bool `[r]`.

        Bad are images that cannot be read, noted in `unreadable`, and the rows that fill up the
        last batch.
        """
        rows = sharding.local_rows(mesh, size)
        waiting: collections.deque[list] = collections.deque()
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            for start in range(0, len(refs), size):
                wanted = [refs[start + r] if start + r < len(refs) else None for r in rows]
                waiting.append([pool.submit(self._pixels, ref) for ref in wanted])
                if len(waiting) > _AHEAD:
                    yield _stacked(waiting.popleft())
            while waiting:
                yield _stacked(waiting.popleft())

    def why_bad(self, ref: ImageRef) -> str:
        """What is wrong with an image whose features are not finite."""
        if ref not in self.unreadable:  # only one of equal files is opened
            same = next((r for r in self.unreadable if self.keys[r] == self.keys.get(ref)), None)
            if same is not None:
                return f"{ref.path} is a copy of a bad file: {self.unreadable[same]}"
        return self.unreadable.get(ref, f"{ref.path}: its features are not finite")

    def _pixels(self, ref: ImageRef | None) -> tuple[np.ndarray, bool]:
        if ref is not None:
            try:
                return self._preprocess.uint8(self._roots.open(ref)), False
            except ImageError as error:
                self.unreadable[ref] = str(error).rstrip(".")
        return np.zeros((self._preprocess.size, self._preprocess.size, 3), np.uint8), True


class Texts:
    """Distinct texts, tokenized once. Texts of the same token ids have the same key."""

    name = "texts"

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer):
        # SigLIP reads the padding of its captions, so they cannot share rows.
        self.encode = EncodeTexts(packed=not isinstance(tokenizer, SigLIPTokenizer))
        self._tokens = Ragged(*tokenizer.encode_ragged(texts))
        self._row = {text: i for i, text in enumerate(texts)}
        ids, ends = self._tokens.ids, self._tokens.offsets
        self.keys = {t: key(ids[ends[i] : ends[i + 1]].tobytes()) for t, i in self._row.items()}
        full = np.flatnonzero(self._tokens.lengths == tokenizer.context_length)
        room = tokenizer.context_length - (2 if self.encode.packed else 1)  # special tokens
        self.truncated = [texts[i] for i in full if len(tokenizer.encode(texts[i])) > room]

    def batches(self, texts: Sequence[str], size: int, mesh: Mesh) -> Iterator[Batch]:
        """This process's share of each batch, packed as `data.packing` says or `ids` `[r, T]`.

        The last batch is filled up with its last text.
        """
        rows = np.array([self._row[text] for text in texts])
        parts = rows[np.minimum(np.arange(-(-len(rows) // size) * size), len(rows) - 1)]
        parts = parts.reshape(-1, size)
        if not self.encode.packed:
            local = sharding.local_rows(mesh, size)
            length = int(self._tokens.lengths[0])  # that of every row
            yield from ({"ids": self._tokens.padded(part[local], length)} for part in parts)
            return
        packing = _packing(self._tokens.lengths, parts, mesh.size)
        for part in parts:
            packed = packing.pack(self._tokens, part)
            yield {name: x[sharding.local_rows(mesh, len(x))] for name, x in packed.items()}

    def why_bad(self, text: str) -> str:
        """What is wrong with a text whose features are not finite."""
        return f"{text!r}: its features are not finite"


def _packing(lengths: np.ndarray, parts: np.ndarray, shards: int) -> Packing:
    """Sizes that every one of the batches fits: all are known, so there is one program."""
    packing = Packing.suited_to(lengths[parts.ravel()], parts.shape[1], shards)
    packing = dataclasses.replace(packing, rows=1, row_step=1)
    rows = max(packing.rows_needed(lengths[part]) for part in parts)
    return dataclasses.replace(packing, rows=rows)


def _stacked(pixels: list[concurrent.futures.Future]) -> Batch:
    images, bad = zip(*(future.result() for future in pixels), strict=True)
    return {"pixels": np.stack(images), "bad": np.array(bad)}
