"""Images that lie many to a file: what their sources share, and those in tars and ArrayRecords.

An image is called `SHARD/NAME`, as in "cc12m-0000.tar/000000000.jpg". The name in its shard alone
("000000000.jpg") does as well where no other shard has it.

Shape letters: N names that are asked for, M names of shards.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import itertools
import posixpath
import threading
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Int64, UInt64
from PIL import Image

from negclip_jax.common import remote, storage
from negclip_jax.common.decoding import MAX_BYTES, ImageError, decode, opened
from negclip_jax.common.errors import InputError
from negclip_jax.common.photos import PHOTO_SUFFIXES
from negclip_jax.common.provenance import content_hash
from negclip_jax.data.images import ImageSource
from negclip_jax.data.shards import ShardError, ShardReader, Shards
from negclip_jax.data.tar_index import TarShards, hashed, search

_AT_ONCE = 2**17  # names that are objects at a time
_SOURCES = 64  # ArrayRecord files that a process keeps open


@contextlib.contextmanager
def reported(path: str, form: str, *errors: type[Exception]) -> Iterator[None]:
    """Raises ShardError that names the shard and its format for what a reading library raises.

    `errors`: of the library's own that are no usual ones.
    """
    try:
        yield
    except InputError:
        raise
    except (RuntimeError, ValueError, MemoryError, *storage.errors(), *errors) as error:
        raise ShardError(
            f"{path} cannot be read as {form} ({storage.root_cause(error).rstrip('.')}): it is "
            "damaged, cut short or of another format"
        ) from None


class ShardImages(ImageSource):
    """Images by the number of their shard and their row in it. Pickles to the list of shards.

    A subclass finds names in shards (`_rows`), lists those of images (`_listed`) and reads bytes
    (`_content`). Where images are rows it counts them by shard, int `[shards]` (`_counts`).

    Attributes:
      shards: the files.
    """

    def __init__(self, shards: Shards):
        self.shards = shards
        self._prepare()

    def _prepare(self) -> None:
        self._lock, self._known = threading.Lock(), None

    def _rows(self, shard: int, names: Sequence[str]) -> Int64[np.ndarray, " N"]:
        """Rows of the names in a shard, -1 where there is none."""

    def _listed(self, shard: int) -> tuple[UInt64[np.ndarray, " M"], Int64[np.ndarray, " M"]]:
        """Hashes of the names of a shard's images, and their rows."""

    def _content(self, shard: int, row: int) -> bytes:
        """The bytes of an image; raises ImageError."""

    def names(self) -> list[str]:
        """Of all images, shard by shard in the order of storage."""
        numbered = zip(self.shards.found, self._counts.tolist(), strict=True)
        return [f"{shard.name}/{row}" for shard, count in numbered for row in range(count)]

    def called(self) -> Iterator[tuple[str, str]]:
        """Each of `names`, and what the shard itself calls the image, where it does."""
        yield from ((name, self.shards.split(name)[1]) for name in self.names())

    def open(self, name: str) -> Image.Image:
        return decode(self._bytes(name), f"{name} in {self.shards.pattern}")

    def read(self, name: str) -> bytes:
        try:
            return self._bytes(name)
        except ImageError:
            return b""

    def identity(self, name: str) -> list:
        """What changes when the image's shard does, and the row in it."""
        return self.identities([name])[0]

    def identities(self, names: Sequence[str]) -> list[list]:
        versions = [
            hashlib.sha256(repr((shard.size, shard.version)).encode()).hexdigest()[:16]
            for shard in self.shards.found
        ]
        return [
            [versions[shard], row] if shard >= 0 else [] for shard, row in self.find(names).tolist()
        ]

    def missing(self, names: Iterable[str]) -> list[str]:
        distinct = list(dict.fromkeys(names))
        return [distinct[i] for i in np.flatnonzero(self.find(distinct)[:, 0] < 0)]

    def version(self) -> str:
        """Of all shards: nothing else decides which images there are."""
        return content_hash([list(shard) for shard in self.shards.found])

    def storage_order(self, names: Sequence[str]) -> Int64[np.ndarray, " N"]:
        starts = range(0, len(names), _AT_ONCE)
        places = [self.find(names[start : start + _AT_ONCE]) for start in starts]
        shards, rows = np.concatenate([np.zeros((0, 2), np.int64), *places]).T
        return np.lexsort((rows, shards))

    def find(self, names: Sequence[str]) -> Int64[np.ndarray, "N 2"]:
        """Shard and row of each image, -1 where there is none.

        Raises ImageError for a name without its shard that several shards have.
        """
        places = np.full((len(names), 2), -1)
        for shard, (at, rests) in self.shards.by_shard(names).items():
            rows = self._rows(shard, rests)
            places[at, 0], places[at, 1] = np.where(rows < 0, -1, shard), rows
        left = np.flatnonzero(places[:, 0] < 0)
        if not len(left):
            return places
        hashes, found = self._alone()
        if not len(hashes):
            return places
        wanted = hashed([names[i] for i in left])
        at = np.searchsorted(hashes, wanted)
        same = hashes.take(at, mode="clip") == wanted
        several = same & (hashes.take(at + 1, mode="clip") == wanted) & (at + 1 < len(hashes))
        if several.any():
            i = int(np.argmax(several))
            one, other = (self.shards.found[s].name for s in found[at[i] : at[i] + 2, 0])
            name = names[left[i]]
            raise ImageError(
                f"{name} is in {one} and in {other}: write {one}/{name} or {other}/{name}"
            )
        places[left[same]] = found[at[same]]
        return places

    def _alone(self) -> tuple[UInt64[np.ndarray, " M"], Int64[np.ndarray, "M 2"]]:
        """Hashes of all names without their shards, ascending, and shard and row of each.

        Made when such a name is first asked for: 24 bytes an image.
        """
        with self._lock:
            if self._known is None:
                parts = [self._listed(i) for i in range(len(self.shards.found))]
                hashes = np.concatenate([part[0] for part in parts])
                shards = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
                places = np.stack([shards, np.concatenate([part[1] for part in parts])], axis=1)
                order = np.argsort(hashes, kind="stable")
                self._known = hashes[order], places[order]
            return self._known

    def _bytes(self, name: str) -> bytes:
        shard, row = self._place(name)
        if shard < 0:
            raise ImageError(f"{name}: there is no such image in {self.shards.pattern}.")
        return self._content(shard, row)

    def _place(self, name: str) -> tuple[int, int]:
        """`find` of one name, quickly."""
        if (parts := self.shards.split(name)) is not None and (row := self._row(*parts)) >= 0:
            return parts[0], row
        hashes, found = self._alone()
        if (at := search(hashes, name)) < 0:
            return -1, -1
        if at + 1 < len(hashes) and hashes[at] == hashes[at + 1]:
            self.find([name])  # raises
        return int(found[at, 0]), int(found[at, 1])

    def _row(self, shard: int, name: str) -> int:
        return int(self._rows(shard, [name])[0])

    def __getstate__(self) -> dict:
        return {"shards": self.shards}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._prepare()


def numbers(names: Sequence[str], count: int) -> Int64[np.ndarray, " N"]:
    """Names that are numbers below `count` as these, others as -1."""
    found = [int(x) if x.isascii() and x.isdigit() and len(x) < 20 else -1 for x in names]
    return np.array([number if number < count else -1 for number in found], np.int64)


class TarImages(ShardImages):
    """Images in webdataset's tars, read from the middle of them."""

    def __init__(self, pattern: str):
        """Indexes the tars that have no index; see `TarShards`.

        Raises ImageError where they hold no image.
        """
        tars = TarShards(pattern)
        super().__init__(tars)
        if not any(head["photos"] for head in tars.heads):
            suffixes = ", ".join(sorted(PHOTO_SUFFIXES))
            held = sum(head["members"] for head in tars.heads)
            raise ImageError(
                f"wds:{pattern}: there is no image among {held:,} members (looked for {suffixes})"
            )

    def names(self) -> list[str]:
        found = []
        for number, shard in enumerate(self.shards.found):
            index = self.shards.index(number)
            listed = itertools.compress(index.listed(), index.are_photos().tolist())
            # Hidden ones are none, as `._1.jpg`, which macOS writes beside `1.jpg`.
            names = (x.name for x in listed if not posixpath.basename(x.name).startswith("."))
            found += [f"{shard.name}/{name}" for name in names]
        return found

    def _rows(self, shard: int, names: Sequence[str]) -> Int64[np.ndarray, " N"]:
        return self.shards.index(shard).find(names)

    def _row(self, shard: int, name: str) -> int:
        return self.shards.index(shard).find_one(name)

    def _listed(self, shard: int) -> tuple[UInt64[np.ndarray, " M"], Int64[np.ndarray, " M"]]:
        index = self.shards.index(shard)
        rows = index.members.astype(np.int64)
        are_photos = index.are_photos()[rows]
        return index.hashes[are_photos], rows[are_photos]

    def _content(self, shard: int, row: int) -> bytes:
        index = self.shards.index(shard)
        size = int(index.sizes[row])
        if size > MAX_BYTES:
            path = self.shards.found[shard].path
            raise ImageError(f"member {row:,} of {path} has {size:,} bytes: refused as an image")
        return self.shards.read(shard, int(index.offsets[row]), size)


class RecordImages(ShardImages):
    """Images that are the records of ArrayRecord files, as grain reads them: `FILE/NUMBER`.

    A record is an encoded image and nothing else. Those of tensorflow-datasets hold more, and are
    read as `tfds:NAME/SPLIT`. A file in a bucket is copied to this machine when it is first read.
    """

    def __init__(self, pattern: str):
        """Counts the records. Raises InputError where there are none, or no images in the first."""
        super().__init__(Shards(pattern, ".array_record*"))
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            self._counts = np.array(list(pool.map(self._count, range(len(self.shards.found)))))
        place = f"arrayrecord: the first record of {self.shards.found[0].path}"
        try:
            with opened(self._content(0, 0), place):
                pass
        except ImageError as error:
            raise ImageError(
                f"{str(error).rstrip('.')}: each record has to be an encoded image. What "
                "tensorflow-datasets prepared is read as tfds:NAME/SPLIT"
            ) from None

    def _prepare(self) -> None:
        super()._prepare()
        self._source = functools.lru_cache(_SOURCES)(self._opened)

    def __getstate__(self) -> dict:
        return super().__getstate__() | {"_counts": self._counts}

    def _rows(self, shard: int, names: Sequence[str]) -> Int64[np.ndarray, " N"]:
        return numbers(names, self._counts[shard])

    def _listed(self, shard: int) -> tuple[UInt64[np.ndarray, " M"], Int64[np.ndarray, " M"]]:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)

    def _content(self, shard: int, row: int) -> bytes:
        with reported(self.shards.found[shard].path, "ArrayRecord"):
            return self._source(shard)[row]

    def _count(self, shard: int) -> int:
        with reported(self.shards.found[shard].path, "ArrayRecord"):
            if count := len(self._source(shard)):
                return count
            raise ValueError("there is no record")

    def _opened(self, shard: int) -> Sequence[bytes]:
        import grain

        found = self.shards.found[shard]
        ShardReader(found)  # that it is there, and what it was
        return grain.sources.ArrayRecordDataSource(str(remote.local_copy(storage.path(found.path))))
