"""Image features of a frozen tower, computed once per distinct image and kept on disk.

When nothing on the way from file to feature is trained or random, an epoch computes the same
features as the one before. This file computes them once, in parallel with decoding, and training
then reads rows of a memory map.

    ROOT/digests.json                  identity and SHA-256 of each image file seen
    ROOT/FINGERPRINT/chunk-00000.npy   float32 [up to 512, D], while the cache is being built
    ROOT/FINGERPRINT/features.npy      float32 [U, D], when it is complete
    ROOT/FINGERPRINT/manifest.json     checksum, unreadable images, what the features are of

The fingerprint covers the tower's weights and numerics, the preprocessing and every image's bytes:
what was computed from anything else lies in another directory and is never read. Files appear
whole or not at all, so a killed build continues where it was.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
import PIL

from negclip_jax.data.images import ImageError, Preprocessor
from negclip_jax.errors import InputError

CHUNK = 512  # images per file while building; a killed build loses at most one

Encode = Callable[[np.ndarray, np.ndarray], Any]


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


def image_digests(images: Any, names: Sequence[str], root: Path) -> list[str]:
    """SHA-256 of each image; those whose `images.identity` is known are not read again."""
    path = root / "digests.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    identities = {name: images.identity(name) for name in names}
    changed = [n for n in names if n not in known or known[n][0] != identities[n]]
    if changed:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            hashes = pool.map(lambda name: hashlib.sha256(images.read(name)).hexdigest(), changed)
            known |= {n: [identities[n], h] for n, h in zip(changed, hashes, strict=True)}
        root.mkdir(parents=True, exist_ok=True)
        _write_whole(path, json.dumps(known).encode())
    return [known[name][1] for name in names]


@dataclasses.dataclass(frozen=True)
class FeatureCache:
    """Features of U distinct images under `directory`.

    Attributes:
      directory: ROOT/FINGERPRINT.
      names: of the images; row i is image i.
      dim: D.
    """

    directory: Path
    names: Sequence[str]
    dim: int

    @property
    def is_complete(self) -> bool:
        """Whether `open` would succeed."""
        return (self.directory / "manifest.json").is_file()

    def open(self) -> tuple[np.ndarray, np.ndarray]:
        """Features float32 `[U, D]`, memory-mapped, and which images could not be read, bool `[U]`.

        Raises InputError when the file is not the one that was written.
        """
        manifest = json.loads((self.directory / "manifest.json").read_text())
        path = self.directory / "features.npy"
        if not path.is_file() or _sha256(path) != manifest["sha256"]:
            raise InputError(
                f"{path} is damaged: its checksum is not that in manifest.json. Delete "
                f"{self.directory} to compute it again"
            )
        bad = np.zeros(len(self.names), bool)
        bad[manifest["unreadable"]] = True
        return np.load(path, mmap_mode="r"), bad

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
        pending = [c for c in range(self._chunks) if not self._chunk(c).exists()]
        progress(len(self.names) - sum(map(self._size, pending)))
        wanted = [self._padded_rows(c, batch_size).reshape(-1, batch_size) for c in pending]
        local = np.concatenate([batch[:, rows].ravel() for batch in wanted] or [[]])
        source = _Pixels(images, preprocess, self.names, local.astype(np.int64))
        ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * len(rows))
        batches = grain.MapDataset.source(source).to_iter_dataset(ahead).batch(len(rows))
        encoded = _one_behind(encode(b["image"], b["bad"]) for b in batches)
        for chunk, batch_rows in zip(pending, wanted, strict=True):
            features = np.concatenate([np.asarray(next(encoded)) for _ in batch_rows])
            if writes:
                with _whole(self._chunk(chunk)) as path:
                    np.save(path, features[: self._size(chunk)])
            progress(self._size(chunk))

    def merge(self) -> None:
        """Joins all chunks into one file; one process calls this when all have built theirs.

        Another run that builds the same cache may be faster: then its result is kept.
        """
        chunks = [self._chunk(c) for c in range(self._chunks)]
        try:
            self._join(chunks)
        except FileNotFoundError:
            if not self.is_complete:
                raise
        for chunk in chunks:
            chunk.unlink(missing_ok=True)
        logging.debug("merged %d chunks in %s", len(chunks), self.directory)

    def _join(self, chunks: list[Path]) -> None:
        with _whole(self.directory / "features.npy") as path:
            shape = (len(self.names), self.dim)
            whole = np.lib.format.open_memmap(path, "w+", np.float32, shape)
            for c, chunk in enumerate(chunks):
                whole[c * CHUNK : (c + 1) * CHUNK] = np.load(chunk)
            whole.flush()
            unreadable = np.flatnonzero(np.isnan(whole[:, 0])).tolist()
        manifest = {
            "sha256": _sha256(self.directory / "features.npy"),
            "shape": list(shape),
            "unreadable": unreadable,
        }
        _write_whole(self.directory / "manifest.json", json.dumps(manifest).encode())

    @property
    def _chunks(self) -> int:
        return -(-len(self.names) // CHUNK)

    def _size(self, chunk: int) -> int:
        return min(CHUNK, len(self.names) - chunk * CHUNK)

    def _chunk(self, chunk: int) -> Path:
        return self.directory / f"chunk-{chunk:05d}.npy"

    def _padded_rows(self, chunk: int, batch_size: int) -> np.ndarray:
        """Rows of a chunk, the last repeated until they fill whole batches."""
        padded = -(-self._size(chunk) // batch_size) * batch_size
        return chunk * CHUNK + np.minimum(np.arange(padded), self._size(chunk) - 1)


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


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A path to write to that becomes `path` at the end."""
    # The process is in the name: several of them may write the same file at the same time.
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_whole(path: Path, content: bytes) -> None:
    with _whole(path) as partial:
        partial.write_bytes(content)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
