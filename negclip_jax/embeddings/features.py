"""Image features of a frozen tower, computed once per distinct image and kept on disk.

When nothing on the way from file to feature is trained or random, an epoch computes the same
features as the one before. This file computes them once, in parallel with decoding, and training
then reads rows of a memory map.

    ROOT/digests.json     identity and SHA-256 of each image file seen
    ROOT/FINGERPRINT/     the cache itself, see `feature_files`

The fingerprint covers the tower's weights and numerics, the preprocessing and every image's bytes:
what was computed from anything else lies in another directory and is never read. Files appear
whole or not at all, so a killed build continues where it was.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
import PIL
from etils import epath

from negclip_jax.common import storage
from negclip_jax.common.decoding import ImageError
from negclip_jax.data.images import Preprocessor
from negclip_jax.embeddings import feature_files
from negclip_jax.embeddings.feature_files import FeatureFiles

Encode = Callable[[np.ndarray, np.ndarray], Any]
Gather = Callable[[list[str]], list[str]]


def fingerprint(
    weights: Mapping[str, np.ndarray], numerics: str, preprocess: Preprocessor, digests: list[str]
) -> str:
    """Name of a cache: changes with anything that may change one of its features.

    Args:
      weights: frozen parameters that an image passes through, by name.
      numerics: states sizes, activation and compute type.
      preprocess: from image to pixels.
      digests: of the distinct images, in the order of the rows.
    """
    sha = hashlib.sha256()
    # Pillow's resize gives the same bytes within one version only.
    sha.update(repr((numerics, preprocess, PIL.__version__)).encode())
    for name, array in sorted(weights.items()):
        sha.update(f"{name}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).data)
    sha.update("".join(digests).encode())
    return sha.hexdigest()[:24]


def image_digests(
    images: Any,
    names: Sequence[str],
    root: epath.Path,
    *,
    share: slice = slice(None),
    gather: Gather = list,
    writes: bool = True,
) -> list[str]:
    """SHA-256 of each image; those whose `images.identity` is known are not read again.

    Args:
      images, names: of which the digests are.
      root: keeps them for the next time.
      share: names that this process reads.
      gather: the digests of this process's share to those of all names.
      writes: True on one process.
    """
    path = root / "digests.json"
    known, mine = _known_digests(path), names[share]
    before = dict(known)
    identities = {name: images.identity(name) for name in mine}
    changed = [n for n in mine if n not in known or known[n][0] != identities[n]]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        hashes = pool.map(lambda name: hashlib.sha256(images.read(name)).hexdigest(), changed)
        known |= {n: [identities[n], h] for n, h in zip(changed, hashes, strict=True)}
    digests = gather([known[name][1] for name in mine])
    if writes:
        others = [n for n in names if n not in identities]
        identities |= {name: images.identity(name) for name in others}
        known |= {n: [identities[n], d] for n, d in zip(names, digests, strict=True)}
        if known != before:
            root.mkdir(parents=True, exist_ok=True)
            storage.write_whole(path, json.dumps(known).encode())
    return digests


def _known_digests(path: epath.Path) -> dict[str, list]:
    try:
        return dict(json.loads(storage.read_text(path)))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError):
        logging.warning("%s is damaged: all images are read again", path)
        return {}


@dataclasses.dataclass(frozen=True)
class FeatureCache:
    """Features of U distinct images under `directory`.

    Attributes:
      directory: ROOT/FINGERPRINT.
      names: of the images; row i is image i.
      dim: D.
    """

    directory: epath.Path
    names: Sequence[str]
    dim: int

    @property
    def _files(self) -> FeatureFiles:
        return FeatureFiles(self.directory, len(self.names), self.dim)

    @property
    def is_complete(self) -> bool:
        """Whether `open` would find a cache."""
        return self._files.is_complete

    def open(self) -> tuple[np.ndarray, np.ndarray]:
        """Features float32 `[U, D]`, memory-mapped, and which images could not be read, bool `[U]`.

        Raises InputError when the file is not the one that was written.
        """
        array = self._files.open()
        return array, np.isnan(np.asarray(array[:, 0]))

    def mend(self) -> None:
        """Takes a damaged cache apart: what is intact stays, `build` computes the rest again.

        One process calls this before `is_complete` is asked.
        """
        self._files.take_apart_if_damaged()

    def build(
        self,
        encode: Encode,
        images: Any,
        preprocess: Preprocessor,
        *,
        batch_size: int,
        rows: np.ndarray,
        threads: int,
        writes: bool = True,
        progress: Callable[[int], None] = lambda images: None,
    ) -> None:
        """Computes the chunks that are not there yet; `merge` then makes the cache complete.

        Several processes work on the same batches, each on its rows.

        Args:
          encode: uint8 `[r, H, W, 3]` and bool `[r]` (unreadable) to float32 `[batch_size, D]`, NaN
            where unreadable; may be asynchronous.
          images, preprocess: read an image and turn it into uint8 pixels.
          batch_size: images of a batch; the last of a chunk is filled up.
          rows: the r rows of each batch that this process decodes.
          threads: that decode.
          writes: True on one process.
          progress: is told how many more images are done.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        pending = self._files.missing()
        progress(len(self.names) - sum(map(self._files.size, pending)))
        wanted = [self._padded_rows(c, batch_size).reshape(-1, batch_size) for c in pending]
        local = np.concatenate([batch[:, rows].ravel() for batch in wanted] or [[]])
        source = _Pixels(images, preprocess, self.names, local.astype(np.int64))
        ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * len(rows))
        batches = grain.MapDataset.source(source).to_iter_dataset(ahead).batch(len(rows))
        encoded = _one_behind(encode(b["image"], b["bad"]) for b in batches)
        for chunk, batch_rows in zip(pending, wanted, strict=True):
            features = np.concatenate([np.asarray(next(encoded)) for _ in batch_rows])
            if writes:
                self._files.write_chunk(chunk, features[: self._files.size(chunk)])
            progress(self._files.size(chunk))

    def merge(self) -> None:
        """Makes the cache complete; one process calls this when all have built their rows."""
        self._files.merge()

    def _padded_rows(self, chunk: int, batch_size: int) -> np.ndarray:
        """Rows of a chunk, the last repeated until they fill whole batches."""
        size = self._files.size(chunk)
        padded = -(-size // batch_size) * batch_size
        return chunk * feature_files.CHUNK + np.minimum(np.arange(padded), size - 1)


@dataclasses.dataclass(frozen=True)
class _Pixels:
    """Random access to pixels, for grain."""

    images: Any
    preprocess: Preprocessor
    names: Sequence[str]
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        try:
            name = self.names[self.rows[index]]
            pixels = self.preprocess.uint8(self.images.open(name))
            return {"image": pixels, "bad": np.False_}
        except ImageError:
            blank = np.zeros((self.preprocess.size, self.preprocess.size, 3), np.uint8)
            return {"image": blank, "bad": np.True_}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.rows)} images)"


def _one_behind(items: Iterator[Any]) -> Iterator[Any]:
    """Asks for the next item before handing one out, so that the device has work meanwhile."""
    previous = next(items, None)
    for item in items:
        yield previous
        previous = item
    if previous is not None:
        yield previous
