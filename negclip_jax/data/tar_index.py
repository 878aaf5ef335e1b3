"""Webdataset's tars as sets of members with random access, by an index of each that is kept.

    shards = TarShards("cc12m-{0000..1242}.tar")
    for key, members in shards.samples(0):  # "000000000", {"jpg": Member, "txt": Member}
        text = shards.read(0, members["txt"].offset, members["txt"].size)
        image = f"{shards.found[0].name}/{members['jpg'].name}"  # "cc12m-0000.tar/000000000.jpg"

A tar holds headers of 512 bytes, each before the content of its member, and no list of them. So
the headers are read once and kept in `NAME.tar.index` beside it; in `remote.cache_folder()` where
nothing can be written there, and for a bucket. An index says of which tar it is: size, time of
change and the bytes of its first and last header, or the bucket's checksum. Where that is another
one, or the index is damaged, it is made again.

No member is unpacked onto the disk and no link is followed. Links, devices, sparse files and
members whose names lead out of a folder are left out; the index says how many.

The file: `MAGIC`, the length of the head in 4 bytes (little-endian), the head in JSON, five rows of
little-endian uint64 `[5, N]` and the names in UTF-8, one after the other. The rows are those of
`Index`. They begin at a multiple of 8 bytes.

Shape letters: N members, M names that are asked for, L letters of all names.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import json
import logging
import mmap
import os
import posixpath
import stat
import zlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, Integer, UInt8, UInt64

from negclip_jax.common import remote, storage, strict_json
from negclip_jax.common.errors import InputError
from negclip_jax.common.photos import PHOTO_SUFFIXES
from negclip_jax.common.problems import first
from negclip_jax.data.records import unsafe_name
from negclip_jax.data.shards import Shard, ShardError, ShardReader, Shards

MAGIC = b"negclip.tar.index.1\n"
_BLOCK = 512
_LONGEST_EXTRA = 2**20  # bytes of a name, or of a pax header that holds it
_READ = 2**18  # bytes of a tar that are read at a time for its headers
_LONGEST_HEAD = 2**16  # bytes
_COMPRESSED = {b"\x1f\x8b": "gzip", b"(\xb5/\xfd": "zstd", b"BZh": "bzip2",
               b"\xfd7zXZ": "xz", b"\x04\"M\x18": "lz4"}  # fmt: skip
_FILE = (b"0", b"\0", b"7")
_LEFT_OUT = {
    b"1": "a link", b"2": "a link", b"3": "a device", b"4": "a device", b"6": "a pipe",
    b"S": "a sparse file",
}  # fmt: skip
_WITHOUT_CONTENT = b"123456"
# The hash of a name is a polynomial modulo 2^64 of its bytes: NumPy computes many at once.
_FACTOR, _MODULO = 0x9E3779B97F4A7C15, 2**64
_HASHED = 2**16  # names at a time
_THREADS = 16  # that make indexes
_MAPPED = 256  # indexes
_found_sound: set[tuple] = set()  # indexes that this process has checked


class TarError(ShardError):
    """A tar that cannot be used; the message says what is wrong, where and what to do."""


class Member(NamedTuple):
    """A file in a tar: its name, where its content begins, and how many bytes it has."""

    name: str
    offset: int
    size: int


class Index(NamedTuple):
    """The members of one tar, N of them, memory-mapped. No two have one hash.

    Attributes:
      hashes: of the names, ascending.
      members: the member that each hash is of.
      offsets, sizes: of the members' content, in the order of the tar.
      ends: where each name ends in `names`.
      names: UTF-8.
    """

    hashes: UInt64[np.ndarray, " N"]
    members: UInt64[np.ndarray, " N"]
    offsets: UInt64[np.ndarray, " N"]
    sizes: UInt64[np.ndarray, " N"]
    ends: UInt64[np.ndarray, " N"]
    names: UInt8[np.ndarray, " L"]

    def listed(self) -> Iterator[Member]:
        """Members in the order of the tar."""
        names, start = self.names.tobytes(), 0
        columns = (self.offsets.tolist(), self.sizes.tolist(), self.ends.tolist())
        for offset, size, end in zip(*columns, strict=True):
            yield Member(names[start:end].decode(), offset, size)
            start = end

    def find(self, names: Sequence[str]) -> Int64[np.ndarray, " M"]:
        """Which members have these names, -1 where none has."""
        if not len(self.hashes):
            return np.full(len(names), -1)
        wanted = hashed(names)
        place = np.minimum(np.searchsorted(self.hashes, wanted), len(self.hashes) - 1)
        return np.where(self.hashes[place] == wanted, self.members[place].astype(np.int64), -1)

    def find_one(self, name: str) -> int:
        """Which member has this name, or -1: the same in a tenth of the time."""
        place = search(self.hashes, name)
        return -1 if place < 0 else int(self.members[place])

    def are_photos(self) -> Bool[np.ndarray, " N"]:
        """Which members are photos by the suffixes of their names."""
        found = np.zeros(len(self.ends), bool)
        lengths = np.diff(self.ends.astype(np.int64), prepend=0)
        for suffix in PHOTO_SUFFIXES:
            long = np.flatnonzero(lengths > len(suffix))
            last = self.ends[long].astype(np.int64)[:, None] + np.arange(-len(suffix), 0)
            letters = self.names[last]
            letters = np.where((letters >= 65) & (letters <= 90), letters + 32, letters)
            found[long] |= (letters == np.frombuffer(suffix.encode(), np.uint8)).all(axis=1)
        return found


def hashed(names: Sequence[str]) -> UInt64[np.ndarray, " M"]:
    """Hashes of names."""
    parts = []
    for start in range(0, len(names), _HASHED):
        content = [name.encode("utf-8", "surrogatepass") for name in names[start : start + _HASHED]]
        ends = np.cumsum([len(name) for name in content])
        parts.append(_hashes(np.frombuffer(b"".join(content), np.uint8), ends))
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


def search(hashes: UInt64[np.ndarray, " N"], name: str) -> int:
    """The first place of a name's hash among ascending ones, or -1."""
    total, power = 0, _FACTOR
    for byte in name.encode("utf-8", "surrogatepass"):
        total += (byte + 1) * power
        power = power * _FACTOR % _MODULO
    wanted = np.uint64(total % _MODULO)
    place = int(hashes.searchsorted(wanted))
    return place if place < len(hashes) and hashes[place] == wanted else -1


def _hashes(
    content: UInt8[np.ndarray, " L"], ends: Integer[np.ndarray, " M"]
) -> UInt64[np.ndarray, " M"]:
    starts = np.concatenate([[0], ends])[:-1].astype(np.int64)
    lengths = ends.astype(np.int64) - starts
    powers = np.full(lengths.max(initial=0), np.uint64(_FACTOR)).cumprod(dtype=np.uint64)
    place = np.arange(len(content)) - np.repeat(starts, lengths)
    sums = np.zeros(len(content) + 1, np.uint64)
    np.cumsum((content.astype(np.uint64) + np.uint64(1)) * powers[place], out=sums[1:])
    return sums[starts + lengths] - sums[starts]


def open_index(shard: Shard) -> Index:
    """The index of a tar, checked; made where there is none, or none that is right."""
    for path in _places(shard):
        try:
            return _loaded(path, shard)
        except FileNotFoundError:
            continue
        except InputError:  # of the tar itself
            raise
        except (OSError, ValueError) as problem:
            logging.warning("%s is made again: %s", path, problem)
    return _loaded(build(shard), shard)


def head(shard: Shard) -> dict[str, Any] | None:
    """What the index of a tar says of it, or None where it has none: see `build`."""
    for path in _places(shard):
        with contextlib.suppress(OSError, ValueError), _open(path) as file:
            return _head(file, shard)[0]
    return None


def _places(shard: Shard) -> list[Path]:
    name = (
        f"{posixpath.basename(shard.path)}-{hashlib.sha256(shard.path.encode()).hexdigest()[:24]}"
    )
    kept = remote.cache_folder() / "tars" / f"{name}.index"
    return [kept] if storage.is_remote(shard.path) else [Path(f"{shard.path}.index"), kept]


def _open(path: Path):
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is no file")
    return open(path, "rb")


def _head(file, shard: Shard) -> tuple[dict[str, Any], int]:
    """The head and where the rows begin. Raises ValueError where it is not of this tar."""
    begin = file.read(len(MAGIC) + 4)
    if begin[: len(MAGIC)] != MAGIC:
        raise ValueError("it is no index, or one of another version")
    length = int.from_bytes(begin[len(MAGIC) :], "little")
    said = strict_json.loads(file.read(min(length, _LONGEST_HEAD)))
    counts = [said.get(key) for key in ("members", "photos", "left_out", "last")]
    texts = [said.get(key) for key in ("edges", "crc", "example", "warning")]
    if not all(type(n) is int and n >= 0 for n in counts) or not all(
        isinstance(text, str) for text in texts
    ):
        raise ValueError("its head is damaged")
    if said.get("tar") != [shard.size, shard.version[0]]:
        raise ValueError(f"it is of another tar than {shard.path}")
    return said, len(begin) + length


def _loaded(path: Path, shard: Shard) -> Index:
    """Maps an index. What it says is as untrusted as the tar, and is checked once in a process."""
    with _open(path) as file:
        said, start = _head(file, shard)
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        state = os.fstat(file.fileno())
    count = said["members"]
    if start + 40 * count > len(content):
        raise ValueError("it is cut short")
    rows = np.frombuffer(content, "<u8", 5 * count, start).reshape(5, count)
    index = Index(*rows, np.frombuffer(content, np.uint8, offset=start + 40 * count))
    version = (shard, state.st_dev, state.st_ino, state.st_mtime_ns, state.st_ctime_ns)
    if version not in _found_sound:
        if f"{zlib.crc32(memoryview(content)[start:]):08x}" != said["crc"]:
            raise ValueError("it is damaged: its checksum is wrong")
        if said["edges"] != _edges(shard, said["last"]):
            raise ValueError(f"it is of another tar than {shard.path}")
        _check(index, shard.size)
        _found_sound.add(version)
    return index


def _check(index: Index, size: int) -> None:
    """Raises ValueError where an index leads out of its tar of `size` bytes, or itself."""
    ends, names = index.ends.astype(np.int64), index.names.tobytes()
    if not (
        (index.hashes[1:] > index.hashes[:-1]).all()
        and (np.sort(index.members) == np.arange(len(ends))).all()
        and index.offsets.max(initial=0) <= size
        and (index.sizes <= size - index.offsets).all()
        and (np.diff(ends, prepend=0) > 0).all()
        and ends.max(initial=0) == len(names)
    ):
        raise ValueError("it is damaged")
    # Names are looked at one by one where a bad one could be at all.
    suspect = not names.isascii() or any(x in names for x in (b"..", b"\\", b"\0", b":"))
    starts = np.concatenate([[0], ends])[:-1]
    suspect = suspect or (index.names[starts] == ord("/")).any()
    if suspect and any(unsafe_name(member.name) for member in index.listed()):
        raise ValueError("it is damaged: it names what is outside of the tar")


def _edges(shard: Shard, last: int) -> str:
    """Of the first and last header: another tar may have the same size and time of change."""
    if storage.is_remote(shard.path):
        return ""
    reader = ShardReader(shard)
    sizes = min(_BLOCK, shard.size), max(0, min(_BLOCK, shard.size - last))
    parts = [reader.read(at, size) for at, size in zip((0, last), sizes, strict=True)]
    return f"{zlib.crc32(b''.join(parts)):08x}"


def build(shard: Shard) -> Path:
    """Reads the headers of a tar and writes its index; returns where.

    The head is a JSON object of "tar" (size; time of change or checksum), "edges" (CRC-32 of the
    first and last header), "last" (where that is), "members", "photos" (how many look like one by
    their suffix), "left_out", "example" (of these, with the reason), "warning" and "crc", of all
    that follows the head.

    All of a tar in a bucket is read for its headers, so it is copied where the disk has room, and
    its images are read from the copy.

    Raises TarError.
    """
    if storage.is_remote(shard.path):
        # Where that fails the scan says what is wrong with the bucket; a full disk is no reason.
        with contextlib.suppress(*storage.errors()):
            remote.copy_if_room(shard.path, shard.size)
    scan = _Scan(shard)
    for member in scan.members():
        scan.add(*member)
    offsets, sizes, ends = (
        np.frombuffer(x, np.uint64) for x in (scan.offsets, scan.sizes, scan.ends)
    )
    names = np.frombuffer(bytes(scan.names), np.uint8)
    hashes = _hashes(names, ends)
    order = np.argsort(hashes, kind="stable")
    index = Index(hashes[order], order.astype(np.uint64), offsets, sizes, ends, names)
    equal = np.flatnonzero(index.hashes[1:] == index.hashes[:-1])
    if len(equal):
        one, other = order[equal[0]], order[equal[0] + 1]
        listed = list(index.listed())
        raise TarError(
            f"{shard.path} holds {listed[one].name!r} at byte {listed[one].offset:,} and "
            f"{listed[other].name!r} at byte {listed[other].offset:,}: one name twice does not say "
            "which is meant; write the tar again with names that differ"
        )
    body = b"".join([*(x.astype("<u8").tobytes() for x in index[:5]), names.tobytes()])
    said = {
        "tar": [shard.size, shard.version[0]],
        "edges": _edges(shard, scan.last),
        "last": scan.last,
        "members": len(ends),
        "photos": int(index.are_photos().sum()),
        "left_out": scan.left_out,
        "example": scan.example,
        "warning": scan.warning,
        "crc": f"{zlib.crc32(body):08x}",
    }
    text = json.dumps(said).encode("utf-8", "replace")
    text += b" " * (-(len(MAGIC) + 4 + len(text)) % 8)
    content = MAGIC + len(text).to_bytes(4, "little") + text + body
    *beside, kept = _places(shard)
    for path in beside:
        with contextlib.suppress(OSError):
            storage.write_whole(path, content)
            return path
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        storage.write_whole(kept, content)
    except OSError as error:
        where = storage.root_cause(error)
        message = f"the index of {shard.path} cannot be written to {kept} ({where})"
        raise InputError(message) from None
    return kept


class _Scan:
    """One pass over the headers of a tar."""

    def __init__(self, shard: Shard):
        self.offsets, self.sizes, self.ends = array("Q"), array("Q"), array("Q")
        self.names = bytearray()
        self.left_out, self.example, self.warning, self.last = 0, "", "", 0
        self._shard, self._reader = shard, ShardReader(shard)
        self._buffer, self._start = b"", 0

    def add(self, name: str, offset: int, size: int, reason: str) -> None:
        """Notes a member, or why it is left out."""
        if name.startswith("./") or "//" in name or "/./" in name:
            name = posixpath.normpath(name)
        if reason := reason or unsafe_name(name) or "":
            self.left_out += 1
            self.example = self.example or f"{name[:200]!r} {reason}"
            return
        self.names += name.encode()
        self.offsets.append(offset)
        self.sizes.append(size)
        self.ends.append(len(self.names))

    def members(self) -> Iterator[tuple[str, int, int, str]]:
        """Name, offset, size, and a reason against it, of each member that is no folder."""
        at, size, extra = 0, self._shard.size, {}
        if size == 0:
            self._fail("is empty: 0 bytes")
        while any(header := self._block(at)) and not (at and len(header) < _BLOCK):
            kind, length = self._checked(header, at)
            start, self.last = at + _BLOCK, at
            if kind in (b"x", b"g", b"L", b"K"):
                if length > _LONGEST_EXTRA or start + length > size:
                    self._fail(f"is damaged or cut short at byte {at:,}, where a long name stands")
                if kind in (b"x", b"L"):
                    content = self._reader.read(start, length)
                    extra |= _pax(content) if kind == b"x" else {"path": content.rstrip(b"\0")}
                at = start + -(-length // _BLOCK) * _BLOCK
                continue
            is_sparse = kind == b"S" or any(key.startswith("GNU.sparse") for key in extra)
            if kind == b"S":  # more headers follow, as the last bytes of each say
                more = header[482]
                while more and start + _BLOCK <= size:
                    more, start = self._block(start)[504], start + _BLOCK
            with contextlib.suppress(ValueError):
                length = int(extra["size"]) if "size" in extra else length
            name, extra = _name(header, extra.get("path")), {}
            stop = start if kind in _WITHOUT_CONTENT else start + length
            if stop > size or length < 0:
                self._fail(
                    f"is cut short: {name[:200]!r} at byte {at:,} needs {stop - size:,} bytes "
                    f"more than there are"
                )
            at = start + -(-(stop - start) // _BLOCK) * _BLOCK
            is_folder = kind in (b"5", b"D") or (kind in _FILE and name.endswith("/"))
            if not is_folder:
                reason = "is a sparse file" if is_sparse else ""
                if kind not in (*_FILE, b"S"):
                    reason = f"is {_LEFT_OUT.get(kind, f'of the type {kind!r}')}"
                yield name, start, length, reason
        if len(header) < _BLOCK:
            self.warning = f"{self._shard.path} has no end mark: was it cut short?"
        elif any(self._reader.read(at, min(size - at, 2**16))):
            self.warning = (
                f"{self._shard.path} goes on for {size - at:,} bytes behind its end mark, as tars "
                "do that were joined with cat: that is not read"
            )

    def _block(self, at: int) -> bytes:
        place = at - self._start
        if not (place >= 0 and place + _BLOCK <= len(self._buffer)):
            size = max(0, min(_READ, self._shard.size - at))
            self._start, place = at, 0
            self._buffer = self._reader.read(at, size) if size else b""
        return self._buffer[place : place + _BLOCK]

    def _checked(self, header: bytes, at: int) -> tuple[bytes, int]:
        """Type and size of the content. Raises TarError for what is no header."""
        with contextlib.suppress(ValueError):
            # With blanks in place of the sum itself.
            total = sum(header) - sum(header[148:156]) + 8 * 32
            if _number(header[148:156]) == total and (length := _number(header[124:136])) >= 0:
                return header[156:157], length
        if at:
            self._fail(f"is damaged at byte {at:,}, where the header of a member should be")
        for magic, program in _COMPRESSED.items():
            if header.startswith(magic):
                self._fail(
                    f"is compressed with {program}, which allows no random access: unpack it once "
                    f"with `{program} -d` to a .tar (photos hardly shrink)",
                    advice="",
                )
        self._fail("is not a tar: its first 512 bytes are no header", advice="")

    def _fail(self, what: str, advice: str = ": get it again, or leave it out") -> None:
        raise TarError(f"{self._shard.path} {what}{advice}")


def _number(field: bytes) -> int:
    """Octal digits, or GNU's big-endian binary for more than 8 GiB."""
    if field[:1] >= b"\x80":
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    return int(field.split(b"\0", 1)[0].strip() or b"0", 8)


def _name(header: bytes, longer: bytes | None) -> str:
    name = longer
    if name is None:
        name, prefix = (header[a:b].split(b"\0", 1)[0] for a, b in ((0, 100), (345, 500)))
        if prefix and header[257:263] == b"ustar\0":
            name = prefix + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _pax(content: bytes) -> dict[str, bytes]:
    """The records `LENGTH KEY=VALUE` and a line feed, as far as they are well-formed."""
    found, at = {}, 0
    while at < len(content):
        digits, _, _ = content[at : at + 20].partition(b" ")
        if not digits.isdigit() or int(digits) <= len(digits):
            break
        record = content[at + len(digits) + 1 : at + int(digits) - 1]
        key, _, value = record.partition(b"=")
        found[key.decode("utf-8", "replace")] = value
        at += int(digits)
    return found


class TarShards(Shards):
    """Members of many tars by their place. Threads may read; pickles to the list of the shards.

    Attributes:
      heads: what the index of each shard says of it, see `build`; none in a copy that was
        unpickled.
    """

    def __init__(self, pattern: str):
        """Finds the tars, see `data.shards`, and indexes those that have no index of their own.

        Raises InputError where there are none, and TarError where some cannot be used: compressed,
        cut short, damaged, no tar, or with a name twice.
        """
        super().__init__(pattern, ".tar")
        self.heads = self._indexed()
        left_out = [head for head in self.heads if head["left_out"]]
        warnings = [head["warning"] for head in self.heads if head["warning"]]
        if left_out:
            i = self.heads.index(left_out[0])
            logging.warning(
                "%d members of %d tars are not read, e.g. of %s: %s",
                *(sum(head["left_out"] for head in left_out), len(left_out)),
                *(self.found[i].path, left_out[0]["example"]),
            )
        if warnings:
            logging.warning("%s", first(warnings, 3, separator="; "))

    def samples(self, shard: int) -> Iterator[tuple[str, dict[str, Member]]]:
        """Members of a shard grouped by key, in the order of each key's first member.

        A key is the name up to the first dot of its last part, what follows it the suffix, in lower
        case: webdataset's rule, without its demand that members of a key follow each other. Names
        without a suffix, hidden files and `__meta__` are left out.

        Raises TarError for two members of one key and suffix.
        """
        found: dict[str, dict[str, Member]] = {}
        for member in self.index(shard).listed():
            folder, file = posixpath.split(member.name)
            stem, dot, suffix = file.partition(".")
            if not (stem and dot) or (stem.startswith("__") and stem.endswith("__")):
                continue
            sample = found.setdefault(posixpath.join(folder, stem), {})
            if (suffix := suffix.lower()) in sample:
                raise TarError(
                    f"{self.found[shard].path} holds {sample[suffix].name!r} and {member.name!r}, "
                    "which are of one key and suffix: rename one, or leave the shard out"
                )
            sample[suffix] = member
        yield from found.items()

    def _prepare(self) -> None:
        super()._prepare()
        self.index = functools.lru_cache(_MAPPED)(lambda i: open_index(self.found[i]))

    def _indexed(self) -> list[dict]:
        """The head of the index of each shard; those that have none get one."""
        problems: list[str] = []

        def indexed(i: int) -> dict | None:
            try:
                if (said := head(self.found[i])) is None:
                    build(self.found[i])
                    said = head(self.found[i])
                if said is None:
                    raise TarError(f"{self.found[i].path} changes while it is read: start again")
                return said
            except ShardError as problem:
                problems.append(str(problem))

        count = len(self.found)
        # Processes that start side by side begin with different ones, and find those of others.
        order = np.roll(np.arange(count), -(os.getpid() * 7919 % count)).tolist()
        with (
            storage.announced(f"the index of {self.pattern}"),
            concurrent.futures.ThreadPoolExecutor(_THREADS) as pool,
        ):
            heads = dict(zip(order, pool.map(indexed, order), strict=True))
        if problems:
            raise TarError(first(sorted(problems), 3, separator="; "))
        return [heads[i] for i in range(count)]
