"""Images inside Parquet files, as Hugging Face's `datasets` and img2dataset write them.

The column holds bytes, or a struct of `bytes` and `path`. An image is called `FILE/ROW`, as in
"train-00000-of-00002.parquet/17", or by its `path` where no other row has it. A row is read with
its whole row group, of which the last are kept in memory: `datasets` writes groups of 100 images.
"""

import collections
import concurrent.futures
import contextlib
import functools
import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64, UInt64
from pyarrow import types

from negclip_jax.common.decoding import MAX_BYTES, ImageError
from negclip_jax.data.pair_tables import holds_bytes, refuse_claims
from negclip_jax.data.shard_images import ShardImages, numbers, reported
from negclip_jax.data.shards import Shards
from negclip_jax.data.tar_index import hashed

# Columns that hold the image where several could: img2dataset calls it by its format.
_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "photo", "picture", "image_bytes", "bytes")
_KEPT = 2**28  # bytes of row groups
_LARGE = 2**26  # bytes of a row group that make random access slow
_FOOTERS = 64  # files whose footer is kept


class _File(NamedTuple):
    """What is known of a file without its pages; `starts` int64 `[groups + 1]`: rows."""

    column: str  # that holds the images
    bytes: str  # of a struct the fields, else ""
    path: str
    metadata: Any
    starts: np.ndarray


class ParquetImages(ShardImages):
    """Images in Parquet files. `pattern` may end in `#COLUMN` where several hold bytes."""

    def __init__(self, pattern: str):
        """Reads the footers of all files.

        Raises InputError where there are none, or one is damaged or says that it unpacks to far
        more than its size, and ImageError for one without a column of images.
        """
        pattern, _, self._wanted = pattern.partition("#")
        super().__init__(Shards(pattern, ".parquet"))
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            files = list(pool.map(self._file, range(len(self.shards.found))))
        self._counts = np.array([file.starts[-1] for file in files])
        if not self._counts.sum():
            raise ImageError(f"parquet:{pattern}: there is no row in {len(files)} files")
        shard = int(np.argmax(self._counts > 0))
        group = int(np.argmax(np.diff(files[shard].starts) > 0))
        first = self._group(shard, group)
        if first.null_count == len(first):
            raise ImageError(
                f"{self.shards.found[shard].path} holds no image in its first {len(first):,} rows, "
                "but at most paths or addresses: write it with the images inside (`datasets`: "
                "push_to_hub or embed_external_files), or give the folder of the images"
            )
        heads = [file.metadata for file in files]
        groups = (head.row_group(i) for head in heads for i in range(head.num_row_groups))
        largest = max(group.total_byte_size for group in groups)
        if largest > _LARGE:
            logging.warning(
                "parquet:%s: a row group has %d MiB, which are read for each of its images: write "
                "the files again with row groups of some hundred images",
                *(pattern, largest >> 20),
            )

    def _prepare(self) -> None:
        super()._prepare()
        self._file = functools.lru_cache(_FOOTERS)(self._footer)
        self._groups = collections.OrderedDict[tuple[int, int], concurrent.futures.Future]()
        self._groups_lock = threading.Lock()

    def __getstate__(self) -> dict:
        return super().__getstate__() | {"_wanted": self._wanted, "_counts": self._counts}

    def called(self) -> Iterator[tuple[str, str]]:
        """Each of `names` that has one, with its path."""
        for number, shard in enumerate(self.shards.found):
            for row, path in enumerate(self._paths(number)):
                if path:
                    yield f"{shard.name}/{row}", path

    def _paths(self, shard: int) -> list[str | None]:
        path = self._file(shard).path
        return self._read(shard, None, path).to_pylist() if path else []

    def _rows(self, shard: int, names: Sequence[str]) -> Int64[np.ndarray, " N"]:
        return numbers(names, self._counts[shard])

    def _listed(self, shard: int) -> tuple[UInt64[np.ndarray, " M"], Int64[np.ndarray, " M"]]:
        paths = self._paths(shard)
        rows = np.flatnonzero([bool(path) for path in paths])
        return hashed([paths[i] for i in rows]), rows

    def _content(self, shard: int, row: int) -> bytes:
        starts = self._file(shard).starts
        group = int(np.searchsorted(starts, row, "right")) - 1
        value = self._group(shard, group)[row - int(starts[group])]
        where = f"row {row:,} of {self.shards.found[shard].path}"
        if not value.is_valid:
            raise ImageError(
                f"{where} holds no bytes: its download failed, or only a path was written "
                "(`datasets`: write the images themselves with push_to_hub or embed_external_files)"
            )
        if (size := len(value.as_buffer())) > MAX_BYTES:
            raise ImageError(f"{where} has an image of {size:,} bytes: refused")
        return value.as_py()

    def _group(self, shard: int, group: int) -> Any:
        """Bytes of the images of a row group, an Arrow array: read once, however many ask."""
        key = shard, group
        with self._groups_lock:
            is_new = key not in self._groups
            future = self._groups.setdefault(key, concurrent.futures.Future())
            self._groups.move_to_end(key)
        if not is_new:
            return future.result()
        try:
            future.set_result(self._read(shard, group, self._file(shard).bytes))
        except BaseException as error:
            future.set_exception(error)
            with self._groups_lock:  # to be tried again
                del self._groups[key]
            raise
        with self._groups_lock:
            done = [k for k, x in self._groups.items() if x.done() and x.exception() is None]
            sizes = {k: self._groups[k].result().nbytes for k in done}
            left = sum(sizes.values())
            for old, size in sizes.items():  # those that were not asked for the longest come first
                if left > _KEPT and old != key:
                    del self._groups[old]
                    left -= size
        return future.result()

    def _read(self, shard: int, group: int | None, field: str) -> Any:
        """The column or a field of it, of a row group or of all: an Arrow chunked array."""
        name, metadata = self._file(shard).column, self._file(shard).metadata
        leaves = [f"{name}.{field}" if field else name]
        with self._reported(shard), self._opened(shard, metadata) as parquet:
            groups = range(parquet.num_row_groups) if group is None else [group]
            table = parquet.read_row_groups(groups, columns=leaves)
            table.validate(full=True)
            if len(table) != sum(metadata.row_group(i).num_rows for i in groups):
                raise ValueError(f"it has {len(table):,} rows where its footer says otherwise")
            if not field:
                return table.column(0)
            from pyarrow import compute

            return compute.struct_field(table.column(0), field)

    def _footer(self, shard: int) -> _File:
        found = self.shards.found[shard]
        with self._reported(shard), self._opened(shard) as parquet:
            metadata = parquet.metadata
            refuse_claims(metadata, found.path, found.size)
            column = _column(parquet.schema_arrow, self._wanted, found.path)
            counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            return _File(*column, metadata, np.cumsum([0, *counts]))

    def _reported(self, shard: int) -> contextlib.AbstractContextManager:
        return reported(self.shards.found[shard].path, "Parquet", pa.ArrowException)

    def _opened(self, shard: int, metadata: Any = None) -> Any:
        return pq.ParquetFile(self.shards.file(shard), metadata=metadata)


def _column(schema: Any, wanted: str, path: str) -> tuple[str, str, str]:
    """The column of images and its fields, as in `_File`; ImageError where it is none or many."""
    found = {}
    for field in schema:
        if types.is_struct(field.type) and holds_bytes(field.type):
            paths = [x for x in field.type if x.name == "path"]
            has_path = any(types.is_string(x.type) or types.is_large_string(x.type) for x in paths)
            found[field.name] = field.name, "bytes", "path" if has_path else ""
        elif holds_bytes(field.type):
            found[field.name] = field.name, "", ""
    likely = [wanted] if wanted else [*_NAMES, *(found if len(found) == 1 else ())]
    for name in likely:
        if name in found:
            return found[name]
    if found and not wanted:
        raise ImageError(
            f"{path} has several columns that could hold images, {', '.join(found)}: write "
            "parquet:PATTERN#COLUMN"
        )
    held = ", ".join(f"{field.name} ({field.type})" for field in schema)
    raise ImageError(
        f"{path} has no column {wanted + ' ' if wanted else ''}of image bytes; it has: {held}. "
        "Images that are addresses are downloaded first, e.g. with img2dataset; of those that are "
        "paths give the folder"
    )
