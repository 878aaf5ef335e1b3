"""Data sets in many files: which files a pattern means, and bytes from the middle of one.

A pattern is what users of webdataset write: `cc12m-{0000..1242}.tar`, `{train,val}-*.parquet`, a
folder, several of these with `::` between them; on a disk or in a bucket. A shard is known by its
file name, or, where two have one name, by its path below the folder that all share.
"""

import collections
import contextlib
import functools
import glob
import io
import itertools
import os
import re
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from negclip_jax.common import remote, storage
from negclip_jax.common.decoding import ImageError
from negclip_jax.common.errors import InputError

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
_MOST_FILES = 10**6
_OPEN = 256  # files of one set that a process keeps open; systems allow 1,024
# A bucket answers in 50 ms whatever it is asked for: neighbours are read together.
_LEAST_AHEAD, _MOST_AHEAD, _GAP = 2**18, 2**23, 2**20  # bytes


class ShardError(ImageError):
    """A shard that cannot be read, or not any more; the message names it."""


class Shard(NamedTuple):
    """A file of a set.

    Attributes:
      name: what names of its contents begin with.
      path: absolute, or an address in a bucket.
      size: bytes.
      version: what changes when the file does: times and inode, or the bucket's checksum.
    """

    name: str
    path: str
    size: int
    version: tuple[int | str, ...]


def find(pattern: str, suffix: str) -> list[Shard]:
    """The files that a pattern means, in the order of the pattern, sorted where it has wildcards.

    A folder means all files in it that end in `suffix`, as ".tar".

    Raises InputError for a pattern that means no file, names a file that is not there, or one that
    is a pipe or a device.
    """
    parts = [part for text in pattern.split("::") for part in _expanded(text.strip())]
    if not parts:
        raise InputError("the pattern is empty: name files, e.g. cc12m-{0000..1242}.tar")
    far = [part for part in parts if storage.is_remote(part)]
    listed = remote.objects(far, suffix) if far else {}
    found: dict[str, tuple[str, int, tuple]] = {}  # path, size and version, by path
    missing = []
    for part in parts:
        paths = listed[part] if part in listed else _local(part, suffix)
        missing += [] if paths else [part]
        found |= {of_path[0]: of_path for of_path in paths}
    if missing:
        count = f"{len(missing)} of {len(parts)} parts of " if len(parts) > 1 else ""
        raise InputError(
            f"{count}{pattern!r} match no file: there is no {', '.join(missing[:3])}; correct the "
            "pattern, or get these files"
        )
    parts_of_paths = [path.split("/") for path in found]
    names = [parts[-1] for parts in parts_of_paths]
    if len(set(names)) < len(names):
        # From the first folder in which two differ; an address in a bucket has no common path.
        columns = enumerate(zip(*parts_of_paths, strict=False))
        common = next(i for i, same in columns if len(set(same)) > 1)
        names = ["/".join(parts[common:]) for parts in parts_of_paths]
    return [Shard(name, *of_path) for name, of_path in zip(names, found.values(), strict=True)]


def _expanded(text: str) -> list[str]:
    texts = list(itertools.islice(_expansions(text), _MOST_FILES + 1))
    if len(texts) > _MOST_FILES:
        raise InputError(f"{text!r} names more than {_MOST_FILES:,} files")
    return list(dict.fromkeys(filter(None, texts)))


def _expansions(text: str) -> Iterator[str]:
    """Bash's braces: `{0000..1242}` and `{a,b}`, nested ones as well."""
    braces = _BRACES.search(text)
    if braces is None:
        yield text
        return
    first, last, listed = braces.groups()
    if listed is not None:
        values: Iterable[str] = listed.split(",")
    else:
        step = 1 if int(first) <= int(last) else -1
        width = max(len(first), len(last)) if "0" in (first[0], last[0]) else 0
        values = (f"{i:0{width}d}" for i in range(int(first), int(last) + step, step))
    for value in values:
        yield from _expansions(text[: braces.start()] + value + text[braces.end() :])


def _local(part: str, suffix: str) -> list[tuple[str, int, tuple]]:
    path = os.path.abspath(os.path.expanduser(part))
    if os.path.isdir(path):
        path = os.path.join(glob.escape(path), f"*{suffix}")
    paths = [path] if os.path.lexists(path) else sorted(glob.glob(path, recursive=True))
    found = []
    for path in paths:
        try:
            state = os.stat(path)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from None
        if stat.S_ISREG(state.st_mode):
            found.append((path, state.st_size, _version(state)))
        elif not stat.S_ISDIR(state.st_mode):
            raise InputError(f"{path} is a pipe or a device, not a file: leave it out")
    return found


def _version(state: os.stat_result) -> tuple[int, ...]:
    return state.st_mtime_ns, state.st_ctime_ns, state.st_ino


class ShardReader:
    """Bytes of one shard by their place; any number of threads may read.

    In a bucket, reads that follow each other closely are served from a large one, so that whoever
    goes through a shard in order downloads it once and waits little. Where this machine has a copy
    of the same version, that is read.
    """

    def __init__(self, shard: Shard):
        """Opens it. Raises ShardError where it is not there, or is not what it was."""
        self._shard, self._file = shard, -1
        self._lock, self._reached, self._ahead = threading.Lock(), 0, _LEAST_AHEAD
        self._blocks: list[tuple[int, bytes]] = []
        if storage.is_remote(shard.path):
            copy = remote.copy_of(shard.path, shard.size, str(shard.version[0]))
            with contextlib.suppress(OSError):
                self._file = os.open(copy, os.O_RDONLY | os.O_CLOEXEC)
                if os.fstat(self._file).st_size == shard.size:
                    return
                os.close(self._file)
            self._file, self._object = -1, remote.object_reader(shard.path)
            return
        try:
            self._file = os.open(shard.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise ShardError(f"{shard.path} cannot be read: {error.strerror}") from None
        if _version(state := os.fstat(self._file)) != shard.version or state.st_size != shard.size:
            raise ShardError(f"{shard.path} was changed in the course of the run: start it again")

    def __del__(self):
        # Closed with the last reference: while another thread reads, it has one.
        if self._file >= 0:
            os.close(self._file)

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on. Raises ShardError where there are fewer."""
        try:
            if self._file >= 0:
                content = os.pread(self._file, size, offset)
                # One read gives 2 GiB at most, and some network disks less than they were asked.
                while 0 < len(content) < size and (
                    more := os.pread(self._file, size - len(content), offset + len(content))
                ):
                    content += more
            else:
                content = self._from_bucket(offset, size)
        except storage.errors() as error:
            cause = storage.root_cause(error)
            raise ShardError(f"{self._shard.path} cannot be read ({cause})") from error
        if len(content) != size:
            raise ShardError(
                f"{self._shard.path} gave {len(content):,} of {size:,} bytes at {offset:,}: it was "
                "cut short after it was opened; get it again"
            )
        return content

    def _from_bucket(self, offset: int, size: int) -> bytes:
        with self._lock:
            for start, block in self._blocks:
                if start <= offset and offset + size <= start + len(block):
                    return block[offset - start : offset - start + size]
            follows = abs(offset - self._reached) <= _GAP
            self._ahead = min(2 * self._ahead, _MOST_AHEAD) if follows else _LEAST_AHEAD
            start, self._reached = min(offset, self._reached), offset + size
            if follows:
                stop = min(max(start + self._ahead, offset + size), self._shard.size)
                block = self._object(start, stop)
                # The one before as well, for threads that are a little behind.
                self._blocks, self._reached = [*self._blocks[-1:], (start, block)], stop
                with _recent_lock:
                    if self not in _recent:
                        _recent.append(self)
                    if len(_recent) > 4:
                        _recent.popleft()._blocks = []
                return block[offset - start : offset - start + size]
        return self._object(offset, offset + size)


# Bounds memory: the blocks of a few readers that were the last to fetch some.
_recent: collections.deque[ShardReader] = collections.deque()
_recent_lock = threading.Lock()


class ShardFile(io.RawIOBase):
    """A shard as a file that pyarrow reads."""

    def __init__(self, reader: ShardReader, size: int):
        self._reader, self._size, self._at = reader, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        size = left if size is None or size < 0 else min(size, left)
        content = self._reader.read(self._at, size) if size else b""
        self._at += size
        return content


class Shards:
    """The files of a set, of which some are open at any time. Pickles to their names.

    Attributes:
      pattern: as the user wrote it.
      found: the files.
    """

    def __init__(self, pattern: str, suffix: str):
        """Finds the files; see `find`."""
        self.pattern, self.found = pattern, find(pattern, suffix)
        self._prepare()

    def _prepare(self) -> None:
        self.number = {shard.name: i for i, shard in enumerate(self.found)}
        self.reader = functools.lru_cache(_OPEN)(lambda i: ShardReader(self.found[i]))

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Bytes of a shard by its number; raises ShardError."""
        return self.reader(shard).read(offset, size)

    def file(self, shard: int) -> ShardFile:
        """A shard as an open file."""
        return ShardFile(self.reader(shard), self.found[shard].size)

    def split(self, name: str) -> tuple[int, str] | None:
        """Number of the shard that a name begins with, and the rest; None for another name."""
        end = 0
        while (end := name.find("/", end + 1)) >= 0:
            if (number := self.number.get(name[:end])) is not None:
                return number, name[end + 1 :]
        return None

    def by_shard(self, names: Sequence[str]) -> dict[int, tuple[list[int], list[str]]]:
        """For each shard that names begin with: which of the names, and the rests of these."""
        found: dict[int, tuple[list[int], list[str]]] = {}
        start, rows, rests = None, [], []  # neighbours are of one shard, as a rule
        for row, name in enumerate(names):
            if start is None or not name.startswith(start):
                if (parts := self.split(name)) is None:
                    start = None
                    continue
                start = name[: len(name) - len(parts[1])]
                rows, rests = found.setdefault(parts[0], ([], []))
            rows.append(row)
            rests.append(name[len(start) :])
        return found

    def __getstate__(self) -> dict:
        return {"pattern": self.pattern, "found": self.found}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._prepare()
