"""Embeddings on disk: one file for each tower, to which records are appended.

    ROOT/KIND-FINGERPRINT.bin    records of key (16 bytes), float32 [D] and checksum

The fingerprint covers weights, numerics and preprocessing, the key an image's bytes and box or a
text's token ids: what was computed from anything else is never found. A record that a kill has cut
short, or that the disk has changed, fails its checksum and is computed again.
"""

import hashlib
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from negclip_jax.common import storage

KEY_BYTES = 16


def key(*parts: bytes) -> bytes:
    """Key of an item: the start of the SHA-256 of its parts."""
    return hashlib.sha256(b"\0".join(parts)).digest()[:KEY_BYTES]


class EmbeddingStore:
    """Embeddings `[D]` by key: in memory, and in a file where a path is given.

    Several processes may read the file; records that two write at the same moment can be lost, and
    are then computed again, never mistaken for another's.
    """

    def __init__(self, path: Path | None, dim: int):
        self._path, self.dim = path, dim
        self._record = np.dtype(
            [("key", f"V{KEY_BYTES}"), ("embedding", "<f4", (dim,)), ("checksum", "<u4")]
        )
        self._embeddings: dict[bytes, np.ndarray] = {}
        if path is not None and path.is_file():
            self._read(path)

    def __contains__(self, key: bytes) -> bool:
        return key in self._embeddings

    def __len__(self) -> int:
        return len(self._embeddings)

    def rows(self, keys: Sequence[bytes]) -> np.ndarray:
        """Embeddings of these keys, float32 `[N, D]`; KeyError for one that is not there."""
        rows = np.empty((len(keys), self.dim), np.float32)
        for row, wanted in zip(rows, keys, strict=True):
            row[:] = self._embeddings[wanted]
        return rows

    def add(self, keys: Sequence[bytes], embeddings: np.ndarray) -> None:
        """Keeps float32 `[N, D]` under these keys; on disk when this returns."""
        self._keep(keys, embeddings)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(self._encoded(keys, embeddings))

    def _keep(self, keys: Iterable[bytes], embeddings: np.ndarray) -> None:
        self._embeddings.update(zip(keys, np.asarray(embeddings, np.float32), strict=True))

    def _encoded(self, keys: Sequence[bytes], embeddings: np.ndarray) -> bytes:
        records = np.zeros(len(keys), self._record)
        records["key"] = [np.void(k) for k in keys]
        records["embedding"] = embeddings
        records["checksum"] = [_checksum(record) for record in records]
        return records.tobytes()

    def _read(self, path: Path) -> None:
        content = path.read_bytes()
        whole = len(content) // self._record.itemsize
        records = np.frombuffer(content, self._record, whole)
        sound = np.array([_checksum(r) == r["checksum"] for r in records], bool)
        self._keep([k.tobytes() for k in records["key"][sound]], records["embedding"][sound])
        if not sound.all() or len(content) % self._record.itemsize:
            # Records are found by their place: what is appended after a torn one would be lost.
            storage.write_whole(path, records[sound].tobytes())


def _checksum(record: np.void) -> int:
    return zlib.crc32(record["key"].tobytes() + record["embedding"].tobytes())
