"""What the two towers read: images as pixels, texts as packed token ids, in batches of one shape.

`Images` and `Texts` answer the same questions: under which key an item's embedding is kept
(`keys`), what a batch of items looks like (`batches`), what a model does with it (`encode`, traced
inside `jax.jit`, equal where it does the same), and why an item has no embedding (`why_bad`).
"""

import collections
import concurrent.futures
import dataclasses
import json
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from negclip_jax.common.decoding import ImageError
from negclip_jax.data.images import ImageRef, ImageSource, Preprocessor
from negclip_jax.data.packing import Packing, Ragged
from negclip_jax.data.tokenizer import Tokenizer
from negclip_jax.embeddings.digests import image_digests
from negclip_jax.embeddings.store import key
from negclip_jax.models import clip
from negclip_jax.models.normalisation import normalise_pixels
from negclip_jax.runtime import sharding

_AHEAD = 2  # batches decoded while the devices compute

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class EncodeImages:
    """Features `[B, D]` of a batch of `Images`, NaN where bad."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, model: clip.CLIP, batch: dict[str, jax.Array]) -> jax.Array:
        features = model.encode_image(normalise_pixels(batch["pixels"], self.mean, self.std))
        return jnp.where(batch["bad"][:, None], jnp.nan, features)


@dataclasses.dataclass(frozen=True)
class EncodeTexts:
    """Features `[B, D]` of a batch of `Texts`."""

    packed: bool

    def __call__(self, model: clip.CLIP, batch: dict[str, jax.Array]) -> jax.Array:
        return model.encode_text(batch if self.packed else batch["ids"])


class Images:
    """Distinct images, decoded by threads ahead of the devices."""

    name, tower = "images", "image"

    def __init__(
        self,
        refs: Sequence[ImageRef],
        source: ImageSource,
        preprocess: Preprocessor,
        digests: epath.Path | Path,
        *,
        threads: int = 16,
        shared: bool = False,
    ):
        """Reads every file once for its digest, unless `digests.image_digests` knows it.

        Args:
          refs: of the images.
          source, preprocess: open an image and turn it into pixels.
          digests: folder.
          threads: that decode.
          shared: whether all processes see one folder; each then reads its share of the files.
        """
        self._source, self._preprocess, self._threads = source, preprocess, threads
        self.encode = EncodeImages(tuple(preprocess.mean), tuple(preprocess.std))
        self.unreadable: dict[ImageRef, str] = {}
        paths = list(dict.fromkeys(ref.path for ref in refs))
        found = image_digests(source, paths, digests, shared)
        row = {path: i for i, path in enumerate(paths)}
        self.keys = {
            r: key(found[row[r.path]].tobytes().hex().encode(), json.dumps(r.box).encode())
            for r in refs
        }

    def batches(self, refs: Sequence[ImageRef], size: int, mesh: Mesh) -> Iterator[Batch]:
        """This process's rows of each batch: `pixels` uint8 `[r, H, W, 3]`, `bad` bool `[r]`.

        Bad are images that cannot be read, noted in `unreadable`, and the rows that fill up the
        last batch.
        """

        def pixels(ref: ImageRef | None) -> tuple[np.ndarray, bool]:
            if ref is not None:
                try:
                    return self._preprocess.uint8(ref.open(self._source)), False
                except ImageError as error:
                    self.unreadable[ref] = str(error).rstrip(".")
            return np.zeros((self._preprocess.size, self._preprocess.size, 3), np.uint8), True

        def stacked(items: list[concurrent.futures.Future]) -> Batch:
            images, bad = zip(*(future.result() for future in items), strict=True)
            return {"pixels": np.stack(images), "bad": np.array(bad)}

        rows = sharding.local_rows(mesh, size)
        waiting: collections.deque[list] = collections.deque()
        pool = concurrent.futures.ThreadPoolExecutor(self._threads)
        try:
            for start in range(0, len(refs), size):
                wanted = [refs[start + r] if start + r < len(refs) else None for r in rows]
                waiting.append([pool.submit(pixels, ref) for ref in wanted])
                if len(waiting) > _AHEAD:
                    yield stacked(waiting.popleft())
            while waiting:
                yield stacked(waiting.popleft())
        finally:  # what is still waiting is not decoded for a batch that is not asked for
            pool.shutdown(wait=False, cancel_futures=True)

    def why_bad(self, ref: ImageRef) -> str:
        """What is wrong with an image whose features are not finite."""
        if ref not in self.unreadable:  # only one of equal files is opened
            same = next((r for r in self.unreadable if self.keys[r] == self.keys.get(ref)), None)
            if same is not None:
                return f"{ref.path} is a copy of a bad file: {self.unreadable[same]}"
        return self.unreadable.get(ref, f"{ref.path}: its features are not finite")


class Texts:
    """Distinct texts, tokenized once. Texts of the same token ids have the same key.

    Texts that are tokenized already are known by their numbers.
    """

    name, tower = "texts", "text"

    def __init__(
        self, texts: Sequence[Hashable], tokenizer: Tokenizer, tokens: Ragged | None = None
    ):
        # Models that read the padding (SigLIP) have it in every caption: nothing to be packed.
        self.encode = EncodeTexts(packed=not tokenizer.always_pads)
        self._tokens = Ragged(*tokenizer.encode_ragged(texts)) if tokens is None else tokens
        self._row = {text: i for i, text in enumerate(texts)}
        ids, ends = self._tokens.ids, self._tokens.offsets
        self.keys = {t: key(ids[ends[i] : ends[i + 1]].tobytes()) for t, i in self._row.items()}
        if tokens is not None:
            return
        full = np.flatnonzero(self._tokens.lengths == tokenizer.context_length)
        room = tokenizer.context_length - tokenizer.special_tokens
        self.truncated = [texts[i] for i in full if len(tokenizer.encode(texts[i])) > room]

    def batches(self, texts: Sequence[Hashable], size: int, mesh: Mesh) -> Iterator[Batch]:
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
        # All batches are known, so there is one number of rows that fits each: one program.
        lengths = self._tokens.lengths
        packing = Packing.suited_to(lengths[parts.ravel()], size, mesh.size)
        packing = dataclasses.replace(packing, rows=1, row_step=1)
        fullest = max(packing.rows_needed(lengths[part]) for part in parts)
        packing = dataclasses.replace(packing, rows=fullest)
        for part in parts:
            packed = packing.pack(self._tokens, part)
            yield {name: x[sharding.local_rows(mesh, len(x))] for name, x in packed.items()}

    def why_bad(self, text: Hashable) -> str:
        """What is wrong with a text whose features are not finite."""
        return f"{text!r}: its features are not finite"
