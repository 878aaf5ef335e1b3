"""Embeddings by key: in memory, in a file that grows, or in a bucket.

    PATH               records of key (16 bytes), float32 `[D]` and the CRC-32 of both
    PATH.part-NUMBER   in a bucket, which cannot append: records until `finish` joins them

PATH is named by a fingerprint of weights, numerics and preprocessing, a key by an image's bytes and
box or a text's token ids: what was computed from anything else is never found. A record that a kill
has cut short, or that the disk has changed, fails its checksum and is computed again.

Evaluations ask for rows by their keys, training maps the file. One format serves both. On 1 M rows
of 512 (2 shared cores, file in the page cache) a bare array with a checksum for each 512 rows took
0.8 s of processor time to open, and 0.27 s for 200 batches of 1,024 random rows; these records take
1.9 s to open, once a run, with the index of their keys, and 0.16 to 0.31 s for the batches.

Shape letters: N keys, M rows of the file, U items, D numbers of a row.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Float32, Int64, Shaped, UInt8, UInt64

from negclip_jax.common import remote, storage
from negclip_jax.common.errors import InputError

PART = 512  # records of an object in a bucket: what a kill loses at most
KEY_BYTES = 16  # the start of a SHA-256
MISSING = -2  # number of a key that is not there; a store has -1 for what is in no file yet
Rows = UInt8[np.ndarray, "N 16"]
_BLOCK = 4096  # records that are read at a time
_RECENT = 2**18  # keys that wait to be sorted in, and no more than an eighth of all


def as_array(keys: Sequence[bytes] | Rows) -> Rows:
    """Keys as one array."""
    if isinstance(keys, np.ndarray):
        return keys
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES)


def first_of_equals(keys: Rows) -> Int64[np.ndarray, " N"]:
    """For each key the first row that has the same one."""
    front, back = _halves(keys)
    order = np.lexsort((back, front))  # stable
    starts = np.ones(len(order), bool)
    starts[1:] = (np.diff(front[order]) != 0) | (np.diff(back[order]) != 0)
    found = np.empty(len(order), np.int64)
    found[order] = order[np.flatnonzero(starts)[np.cumsum(starts) - 1]]
    return found


class KeyIndex:
    """Numbers by key, in sorted arrays. The last one that is added under a key counts.

    A dictionary would take some 150 bytes for each of many millions of keys; these take 24.
    """

    def __init__(self) -> None:
        self._front, self._back = np.zeros(0, np.uint64), np.zeros(0, np.uint64)
        self._numbers = np.zeros(0, np.int64)
        self._recent: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._numbers) + len(self._recent)

    def add(self, keys: Sequence[bytes] | Rows, numbers: Int64[np.ndarray, " N"]) -> None:
        """Keeps numbers under these keys."""
        keys = as_array(keys)
        is_many = len(keys) > _RECENT
        if is_many:
            self._sort_in_recent()
        place = self._place(keys)
        known = place >= 0
        self._numbers[place[known]] = numbers[known]
        keys, numbers = keys[~known], numbers[~known]
        if is_many:
            keys, numbers = keys[::-1], numbers[::-1]
            is_last = first_of_equals(keys) == np.arange(len(keys))
            self._sort_in(keys[is_last], numbers[is_last])
            return
        content = keys.tobytes()
        named = (content[i : i + KEY_BYTES] for i in range(0, len(content), KEY_BYTES))
        self._recent |= zip(named, numbers.tolist(), strict=True)
        if len(self._recent) > max(_RECENT, len(self._numbers) // 8):
            self._sort_in_recent()

    def find(self, keys: Sequence[bytes] | Rows) -> Int64[np.ndarray, " N"]:
        """The number of each key, `MISSING` where there is none."""
        keys = as_array(keys)
        place = self._place(keys)
        found = np.full(len(keys), MISSING)
        found[place >= 0] = self._numbers[place[place >= 0]]
        if self._recent:
            content = keys.tobytes()
            for i in np.flatnonzero(place < 0).tolist():
                key = content[i * KEY_BYTES : (i + 1) * KEY_BYTES]
                found[i] = self._recent.get(key, MISSING)
        return found

    def _place(self, keys: Rows) -> Int64[np.ndarray, " N"]:
        """Where keys are in the sorted arrays, -1 for those that are not."""
        front, back = _halves(keys)
        if not len(self._front):
            return np.full(len(front), -1)
        # In ascending order, as a search that jumps about in the memory takes three times as long.
        order, last = np.argsort(front), len(self._front) - 1
        place = np.empty(len(front), np.int64)
        place[order] = np.searchsorted(self._front, front[order])

        def holds(part: np.ndarray, wanted: np.ndarray) -> np.ndarray:
            return (place <= last) & (part[np.minimum(place, last)] == wanted)

        # Keys of one first half follow each other; there are hardly ever two.
        while (passed := holds(self._front, front) & ~holds(self._back, back)).any():
            place[passed] += 1
        return np.where(holds(self._front, front), place, -1)

    def _sort_in_recent(self) -> None:
        numbers = np.fromiter(self._recent.values(), np.int64, len(self._recent))
        keys, self._recent = as_array(list(self._recent)), {}
        self._sort_in(keys, numbers)

    def _sort_in(self, keys: Rows, numbers: Int64[np.ndarray, " N"]) -> None:
        """Adds keys that are not there yet, each once."""
        front, back = _halves(keys)
        self._front = np.concatenate([self._front, front])
        self._back = np.concatenate([self._back, back])
        self._numbers = np.concatenate([self._numbers, numbers])
        order = np.argsort(self._front, kind="stable")
        self._front, self._back = self._front[order], self._back[order]
        self._numbers = self._numbers[order]


def _halves(keys: Rows) -> tuple[UInt64[np.ndarray, " N"], UInt64[np.ndarray, " N"]]:
    front, back = np.ascontiguousarray(keys).view(np.uint64).reshape(-1, 2).T
    return np.ascontiguousarray(front), np.ascontiguousarray(back)


def key(*parts: bytes) -> bytes:
    """Key of an item: the start of the SHA-256 of its parts."""
    return hashlib.sha256(b"\0".join(parts)).digest()[:KEY_BYTES]


@dataclasses.dataclass(frozen=True, eq=False)
class MappedRows:
    """U rows in a file: indexed like an array `[U, D]`, read when it is."""

    rows: Float32[np.ndarray, "M D"]  # all of the file
    places: Int64[np.ndarray, " U"]  # which of them these are

    @property
    def shape(self) -> tuple[int, int]:
        """U and D."""
        return len(self.places), self.rows.shape[1]

    @property
    def dtype(self) -> np.dtype:
        """Of the rows."""
        return self.rows.dtype

    def __getitem__(
        self, index: Shaped[np.ndarray, "..."] | int | slice
    ) -> Float32[np.ndarray, "*B D"]:
        return self.rows[self.places[index]]

    def __array__(
        self, dtype: np.dtype | None = None, copy: bool | None = None
    ) -> Shaped[np.ndarray, "U D"]:
        return np.asarray(self[:], dtype)


class EmbeddingStore:
    """Embeddings of `dim` numbers by key; those of items that have none, `unusable`, are NaN.

    Several processes may add to one file, each under a lock. Where the file system has no locks,
    records that two write at the same moment can be lost, and are computed again.
    """

    def __init__(self, path: epath.Path | Path | None, dim: int, *, writes: bool = True):
        """Reads and checks the whole file, which need not exist; None keeps all in memory.

        It is not written to where another process `writes` what is added here.
        """
        self.path = None if path is None else epath.Path(path)
        self.dim, self._writes = dim, writes
        self._record = np.dtype(
            [("key", f"V{KEY_BYTES}"), ("row", "<f4", (dim,)), ("checksum", "<u4")]
        )
        self._is_remote = path is not None and storage.is_remote(path)
        self.unusable: set[bytes] = set()
        self._in_memory: dict[bytes, np.ndarray] = {}
        self._places = KeyIndex()  # in the file; -1 while in a part
        self._in_parts = 0  # records
        self._free: list[int] = []  # places of damaged records
        self._pending: list[bytes] = []  # records of the next part
        self._map: np.ndarray | None = None
        if path is not None:
            with storage.announced(f"the check of {path}"):
                self._read()

    def __contains__(self, key: bytes) -> bool:
        return bool(self.has([key])[0])

    def has(self, keys: Sequence[bytes] | Rows) -> Bool[np.ndarray, " N"]:
        """Which of these keys are there."""
        if self.path is None:
            listed = [key.tobytes() if isinstance(key, np.ndarray) else key for key in keys]
            return np.array([key in self._in_memory for key in listed], bool)
        return self._places.find(keys) != MISSING

    def without(self, keys: Rows) -> Bool[np.ndarray, " N"]:
        """Of which of these keys the embedding is NaN."""
        none = np.zeros(len(keys), bool)
        return none | [key.tobytes() in self.unusable for key in keys] if self.unusable else none

    def __len__(self) -> int:
        return len(self._places) + len(self._in_memory)

    def rows(self, keys: Sequence[bytes] | Rows) -> Float32[np.ndarray, "N {self.dim}"]:
        """Embeddings of these keys; KeyError for one that is not there."""
        if self.path is not None:
            return self.mapped(keys)[:]
        rows = [self._in_memory[key.tobytes()] for key in as_array(keys)]
        return np.stack(rows) if rows else np.zeros((0, self.dim), np.float32)

    def mapped(self, keys: Sequence[bytes] | Rows) -> MappedRows:
        """The same, memory-mapped; for a file, in a bucket after `finish`."""
        places = self._places.find(keys)
        if (lacking := np.flatnonzero(places == MISSING)).size:
            raise KeyError(as_array(keys)[lacking[0]].tobytes())
        needed = int(places.max(initial=-1)) + 1
        if self._map is None or len(self._map) < needed:
            # The rows lie 4 D + 20 bytes apart; NumPy maps no empty file.
            file = self._local_file() if needed else None
            whole = file.stat().st_size // self._record.itemsize if file else 0
            records = np.memmap(file, self._record, "r", shape=whole) if file else None
            self._map = np.zeros((0, self.dim), "<f4") if records is None else records["row"]
        return MappedRows(self._map, places)

    def add(self, keys: Sequence[bytes], rows: Float[np.ndarray, "N {self.dim}"]) -> None:
        """Keeps rows under these keys; in the file when this returns.

        A row that is not finite is kept as NaN. A bucket receives `PART` records at a time.
        """
        rows = np.asarray(rows, np.float32)
        sound = np.isfinite(rows).all(axis=1)
        rows = np.where(sound[:, None], rows, np.float32(np.nan))
        if self.path is None:
            self._in_memory.update(zip(keys, rows, strict=True))
        elif self._writes:
            records = np.zeros(len(keys), self._record)
            records["key"] = np.frombuffer(b"".join(keys), f"V{KEY_BYTES}")
            records["row"] = rows
            contents = [record.tobytes()[:-4] for record in records]
            self._write(keys, [c + zlib.crc32(c).to_bytes(4, "little") for c in contents])
        self.unusable -= {k for k, ok in zip(keys, sound, strict=True) if ok}
        self.unusable |= {k for k, ok in zip(keys, sound, strict=True) if not ok}

    def finish(self) -> None:
        """In a bucket: joins all parts into one object, which `mapped` finds."""
        if not (self._is_remote and self._writes):
            return
        self._upload()
        parts = self._parts()
        if not parts:
            return
        with remote.uploaded(self.path.parent) as folder, open(folder / self.path.name, "wb") as to:
            file = self._local_file()
            if file is not None:
                with open(file, "rb") as joined:
                    to.writelines(block[ok].tobytes() for block, ok in self._checked(joined))
            for part in parts:
                with contextlib.suppress(FileNotFoundError):  # of another run, which was faster
                    to.write(part.read_bytes())
        for part in parts:
            part.unlink(missing_ok=True)
        self._read()

    def _write(self, keys: Sequence[bytes], records: list[bytes]) -> None:
        """Written, not mapped: a full disk ends a process that writes to a map without a word."""
        if self._is_remote:
            self._places.add(keys, np.full(len(keys), -1))
            self._in_parts += len(keys)
            self._pending += records
            if len(self._pending) >= PART:
                self._upload()
            return
        size = self._record.itemsize
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with storage.named(self.path), self._locked() as file:
            # What a kill cut short goes: records are found by their place.
            end = file.seek(0, os.SEEK_END) // size
            file.truncate(end * size)
            count = len(records)
            places = [*self._free[:count], *range(end, end + max(0, count - len(self._free)))]
            for place, record in zip(places, records, strict=True):
                file.seek(place * size)
                file.write(record)
        self._free = self._free[count:]
        self._places.add(keys, np.array(places, np.int64))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        with open(descriptor, "r+b") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield file
            file.flush()  # before the lock goes

    def _upload(self) -> None:
        if self._pending:
            part = self.path.with_name(f"{self.path.name}.part-{self._in_parts:09d}")
            storage.write_whole(part, b"".join(self._pending))
            self._pending = []

    def _parts(self) -> list[epath.Path]:
        """Objects that a bucket holds beside the one of `path`, in the order of writing."""
        # A bucket has no empty folders, not even one that was just made.
        if not (self._is_remote and self.path.parent.exists()):
            return []
        prefix = f"{self.path.name}.part-"
        return sorted(p for p in self.path.parent.iterdir() if p.name.startswith(prefix))

    def _read(self) -> None:
        """Fills the index of keys; says which records are damaged."""
        file, self._map = self._local_file(), None
        self._index(file)
        if self._free and self._is_remote:
            remote.forget_copy(file)  # was it the copy alone?
            self._index(self._local_file())
        if self._free:
            logging.warning(
                "%s is damaged: %d of its %d embeddings have another checksum than when they were "
                "written; they are computed again",
                *(self.path, len(self._free), len(self._free) + len(self._places)),
            )
        for part in self._parts():
            with contextlib.suppress(FileNotFoundError), part.open("rb") as stream:
                self._note(self._checked(stream), in_file=False)

    def _index(self, file: Path | None) -> None:
        self._places, self._free, self.unusable, self._in_parts = KeyIndex(), [], set(), 0
        if file is None or not file.is_file():
            return
        # A process that may write into damaged places must not see the half of a record that
        # another is just writing.
        alone = self._writes and not self._is_remote and os.access(file, os.W_OK)
        with self._locked() if alone else open(file, "rb") as stream:
            self._note(self._checked(stream), in_file=True)

    def _note(self, records: Iterator[tuple[np.ndarray, np.ndarray]], *, in_file: bool) -> None:
        first, read = 0, list[tuple[np.ndarray, np.ndarray]]()
        for block, sound in records:
            if in_file:
                self._free += (first + np.flatnonzero(~sound)).tolist()
            places = first + np.flatnonzero(sound) if in_file else np.full(sound.sum(), -1)
            keys = np.frombuffer(block["key"].tobytes(), np.uint8).reshape(-1, KEY_BYTES)[sound]
            read.append((keys, places))
            self._in_parts += 0 if in_file else len(keys)
            # Of a key that stands twice the later record counts: it was tried again.
            is_nan = np.isnan(block["row"][sound, 0])
            if self.unusable or is_nan.any():
                nan = {key.tobytes(): bad for key, bad in zip(keys, is_nan.tolist(), strict=True)}
                self.unusable -= nan.keys()
                self.unusable |= {found for found, bad in nan.items() if bad}
            first += len(block)
        if read:  # all at once, which is faster
            self._places.add(*map(np.concatenate, zip(*read, strict=True)))

    def _checked(self, stream: BinaryIO) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Blocks of whole records, and bool for each: whether its checksum is right."""
        size = self._record.itemsize
        while content := stream.read(_BLOCK * size):
            whole = len(content) // size * size
            block, view = np.frombuffer(content[:whole], self._record), memoryview(content)
            found = [zlib.crc32(view[i : i + size - 4]) for i in range(0, whole, size)]
            yield block, block["checksum"] == np.array(found, np.uint32)

    def _local_file(self) -> Path | None:
        try:
            return remote.local_copy(self.path)
        except InputError:  # nothing is there
            return None
