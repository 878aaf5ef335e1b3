"""The files of a feature cache, each with checksums, on a disk or in a bucket.

    DIRECTORY/chunk-00000.npy   float32 [up to 512, D] and its CRC-32, while the cache is built
    DIRECTORY/features.npy      float32 [U, D], when it is complete
    DIRECTORY/manifest.json     shape and the CRC-32 of each 512 rows, written last

Opening reads the features once and compares the checksums: 3 GB/s a core, or what the disk gives.
In a bucket the files are the same, and rows are mapped from a copy on this machine.
"""

import dataclasses
import io
import json
import logging
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from etils import epath

from negclip_jax.common import remote, storage
from negclip_jax.common.atomic_files import whole_file
from negclip_jax.common.errors import InputError

CHUNK = 512  # images per file while building; a killed build loses at most one


@dataclasses.dataclass(frozen=True)
class FeatureFiles:
    """Float32 `[count, dim]` in files under `directory`."""

    directory: epath.Path
    count: int
    dim: int

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.count // CHUNK)

    def size(self, chunk: int) -> int:
        """Rows of a chunk."""
        return min(CHUNK, self.count - chunk * CHUNK)

    def missing(self) -> list[int]:
        """Chunks that are not there, or are damaged, which a warning says."""
        # A bucket has no empty directories, not even one that was just made.
        names = [p.name for p in self.directory.iterdir()] if self.directory.exists() else []
        present = [c for c in range(self.chunks) if self.chunk(c).name in names]
        return sorted(set(range(self.chunks)) - {c for c in present if self._is_intact(c)})

    def write_chunk(self, chunk: int, features: np.ndarray) -> None:
        """Writes rows of a chunk, float32 `[size, dim]`: all of them or nothing."""
        stream = io.BytesIO()
        np.save(stream, features)
        content = stream.getvalue()
        checksum = zlib.crc32(content).to_bytes(4, "big")
        storage.write_whole(self.chunk(chunk), content + checksum)

    def merge(self) -> None:
        """Joins all chunks into one file, and removes them.

        Another run that builds the same cache may be faster: then its result is kept. Raises
        FileNotFoundError where a chunk is not there.
        """
        try:
            self._join()
        except FileNotFoundError:
            if not self.is_complete:
                raise
        for chunk in range(self.chunks):
            self.chunk(chunk).unlink(missing_ok=True)
        logging.debug("merged %d chunks in %s", self.chunks, self.directory)

    @property
    def is_complete(self) -> bool:
        """Whether all was written; `open` may still find damage."""
        return self._checksums() is not None

    def open(self) -> np.ndarray:
        """All features, memory-mapped; InputError where they are not those that were written."""
        file = self._local_file()
        damaged = self._damaged(file)
        if damaged or file is None:
            raise InputError(
                f"{self._file} is damaged: {self._rows_of(damaged)} have another checksum than in "
                f"manifest.json. Start the run again to compute them again, or delete "
                f"{self.directory}"
            )
        return np.load(file, mmap_mode="r")

    def take_apart_if_damaged(self) -> None:
        """Leaves of a damaged cache the chunks that are intact: it is no longer complete."""
        if not self.is_complete:
            return
        file = self._local_file()
        damaged = self._damaged(file)
        if damaged and file is not None and storage.is_remote(self.directory):
            remote.forget_copy(file)  # was it the copy alone?
            file = self._local_file()
            damaged = self._damaged(file)
        if not damaged:
            return
        what = f"{self._rows_of(damaged)} have another checksum than when they were written"
        logging.warning("%s is damaged: %s; they are computed again", self._file, what)
        for chunk, content in enumerate(self._stored(file)):
            if chunk not in damaged:
                rows = np.frombuffer(content, np.float32).reshape(-1, self.dim)
                self.write_chunk(chunk, rows)
        (self.directory / "manifest.json").unlink()

    def chunk(self, chunk: int) -> epath.Path:
        """The file of a chunk."""
        return self.directory / f"chunk-{chunk:05d}.npy"

    def _read_chunk(self, chunk: int) -> np.ndarray | None:
        """Its rows, or None where the checksum is not that of the bytes."""
        content = self.chunk(chunk).read_bytes()
        if zlib.crc32(content[:-4]).to_bytes(4, "big") != content[-4:]:
            return None
        return np.load(io.BytesIO(content))

    def _is_intact(self, chunk: int) -> bool:
        intact = self._read_chunk(chunk) is not None
        if not intact:
            logging.warning("%s is damaged: it is computed again", self.chunk(chunk))
        return intact

    def _join(self) -> None:
        if storage.is_remote(self.directory):
            with remote.uploaded(self.directory) as folder:
                checksums = self._concatenate(folder / self._file.name)
        else:
            with whole_file(Path(self._file)) as unfinished:
                checksums = self._concatenate(unfinished)
        manifest = {"shape": [self.count, self.dim], "chunk": CHUNK, "crc32": checksums}
        storage.write_whole(self.directory / "manifest.json", json.dumps(manifest).encode())

    def _concatenate(self, to: Path) -> list[int]:
        """Writes the whole array and returns the checksum of each chunk's rows.

        Written, not mapped: a full disk ends a process that writes to a map without a word.
        """
        checksums = []
        with open(to, "wb") as file:
            file.write(self._header)
            for chunk in range(self.chunks):
                rows = self._read_chunk(chunk)
                if rows is None:
                    raise InputError(
                        f"{self.chunk(chunk)} was damaged since it was written: check the disk, "
                        "and run the same command again to compute it again"
                    )
                checksums.append(zlib.crc32(rows))
                file.write(rows)
        return checksums

    def _checksums(self) -> list[int] | None:
        """Of the chunks of a complete cache, None where there is none or its list is unreadable."""
        path = self.directory / "manifest.json"
        try:
            manifest = json.loads(storage.read_text(path))
            shape, chunk, checksums = (manifest[key] for key in ("shape", "chunk", "crc32"))
            count = len(checksums)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            logging.warning("%s is damaged: all features are computed again", path)
            return None
        fits = shape == [self.count, self.dim] and chunk == CHUNK and count == self.chunks
        return checksums if fits else None

    def _damaged(self, file: Path | None) -> list[int]:
        """Chunks that are not as they were written."""
        with storage.announced(f"the check of {self._file}"):
            pairs = zip(self._checksums() or [], self._stored(file), strict=False)
            return [c for c, (crc, content) in enumerate(pairs) if zlib.crc32(content) != crc]

    def _stored(self, file: Path | None) -> Iterator[bytes]:
        """The bytes of each chunk; fewer where the file was cut short or is no such array."""
        if file is None or not file.is_file():
            yield from [b""] * self.chunks
            return
        with open(file, "rb") as stream:
            is_array = stream.read(len(self._header)) == self._header
            for chunk in range(self.chunks):
                yield stream.read(self.size(chunk) * self.dim * 4) if is_array else b""

    def _local_file(self) -> Path | None:
        try:
            return remote.local_copy(self._file)
        except InputError:  # nothing is there
            return None

    def _rows_of(self, chunks: list[int]) -> str:
        parts = [f"{c * CHUNK}-{c * CHUNK + self.size(c) - 1}" for c in chunks]
        more = f" and {len(parts) - 5} more parts" if len(parts) > 5 else ""
        return f"the features of images {', '.join(parts[:5])}{more} of {self.count}"

    @property
    def _file(self) -> epath.Path:
        return self.directory / "features.npy"

    @property
    def _header(self) -> bytes:
        stream = io.BytesIO()
        header = {"descr": "<f4", "fortran_order": False, "shape": (self.count, self.dim)}
        np.lib.format.write_array_header_1_0(stream, header)
        return stream.getvalue()
