"""Rows of Parquet files of pairs and of statements, as many as their bytes can honestly hold.

A column of one value a million times is a few bytes of Parquet. What a file unpacks to is bounded
by its own size before its pages are read, and its strings one by one before they are copied out.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Int64
from pyarrow import types

from negclip_jax.data.fields import TEXTS, Named, missing
from negclip_jax.data.records import FIELDS, Pair, PairError

_FAILED = {"status", "error_message"}  # columns of img2dataset, also of what it could not download
_STATEMENTS = ("image", "text", "truth", "polarity", "caption_id", "unit", "form", "objects")

# A pair takes some 20 bytes of a real file, and real text is compressed to a fifth.
_ROWS_PER_BYTE, _FREE_ROWS = 8, 2**20
_BYTES_PER_BYTE, _FREE_BYTES = 100, 2**26
_LONGEST_VALUE = 2**20  # bytes of a string
_GROUP = 2**16  # pairs that are written as one row group
_BATCH = 1024  # rows that are Python objects at a time; of columns, 64 times as many


@dataclasses.dataclass(frozen=True)
class Coded:
    """A column as its distinct values and, for each row, which of them: memory for each once.

    Attributes:
      codes: index into `values`; -1 where a row has none.
      values: a `pyarrow.Array`, without repetitions.
    """

    codes: Int64[np.ndarray, " S"]
    values: Any

    def of_values(self, flags: Sequence[bool]) -> Bool[np.ndarray, " S"]:
        """Flags of the values as flags of the rows; False where a row has none."""
        return np.append(np.asarray(flags, bool), False)[self.codes]


class Table(NamedTuple):
    """A Parquet file: how it is called in errors and in names of images, its bytes, its content."""

    path: object
    name: str
    size: int
    open: Callable[[], Any]

    @classmethod
    def of(cls, path: Path) -> "Table":
        """A file on this machine."""
        return cls(path, path.name, path.stat().st_size, lambda: path)


def rows(table: Table, named: Named | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a file of pairs, with those of the fields of pairs that it has, and `foil`.

    Where the images themselves are in the file, as `datasets` and img2dataset write them, they are
    called FILE/ROW, see `data.parquet_images`; img2dataset says by `status` whether there is one.
    `named` has the fields that are called otherwise, see `data.fields`.

    Raises PairError for a file that is not Parquet, lacks `image` or `caption`, has a column of
    another type than strings (foils: lists of them), or unpacks to far more than its size.
    """
    named, numbered = named or {}, ""
    wanted = [(part, name) for part, names in named.items() for name in names]
    found_alone = {"caption"} if "captions" in named else set()
    usual = [part for part in (*FIELDS, "foil") if part not in {*named, *found_alone}]
    image = named.get("image", ("image",))[0]

    def is_usable(part: str, kind: Any) -> bool:
        if (part == "image_id" and types.is_integer(kind)) or part == "pairs":
            return True
        if part in ("foils", "captions") and _is_list(kind):
            return _is_text(kind.value_type) or types.is_null(kind.value_type)
        return _is_text(kind) or (types.is_null(kind) and part not in ("image", "caption"))

    def choose(schema) -> list[str]:
        nonlocal numbered
        of_image = _kind(schema, image)
        is_beside = of_image is None and "image" not in named
        if any(holds_bytes(field.type) for field in schema) if is_beside else holds_bytes(of_image):
            numbered = image
        required = [name for _, name in wanted] + [x for x in ("image", "caption") if x in usual]
        for name in required:
            if name != numbered and _kind(schema, name) is None:
                raise missing(table.path, name, schema.names)
        parts = usual
        lists_pairs = _is_list(_kind(schema, "pairs")) and _kind(schema, "pairs.caption")
        if lists_pairs and not TEXTS & named.keys():  # of each photo, as `data_gen export` does
            parts = ["image", "image_id", "pairs"]
        if numbered and set(schema.names) >= _FAILED:
            parts = [*parts, "status"]
        chosen = [*wanted, *((part, part) for part in parts if part in schema.names)]
        chosen = [(part, name) for part, name in chosen if name != numbered]
        wrong = {n: kind for part, n in chosen if not is_usable(part, kind := _kind(schema, n))}
        _refuse_types(table.path, wrong, "all are strings, foils a list of strings")
        return list(dict.fromkeys(name for _, name in chosen))

    row = 0
    for batch in _batches(table, _BATCH, choose):
        for record in batch.to_pylist():
            yield record | {numbered: f"{table.name}/{row}"} if numbered else record
            row += 1


def row_count(path: Path) -> int | None:
    """Rows that a file says it has; None for what cannot be read, which its reader tells."""
    try:
        return pq.read_metadata(path).num_rows
    except (pa.ArrowException, OSError, ValueError, MemoryError):
        return None


def holds_bytes(kind: Any) -> bool:
    """Whether values of an Arrow type are encoded images: bytes, or a struct with `bytes`."""
    if kind is not None and types.is_struct(kind):
        kind = {field.name: field.type for field in kind}.get("bytes")
    return kind is not None and (types.is_binary(kind) or types.is_large_binary(kind))


def statement_columns(path: Path) -> dict[str, Coded]:
    """The columns of a file of statements, see `data.statements`; those it lacks have no values.

    Of `truth` the codes are 0 and 1; of `objects`, lists, each has a value that is alone in its
    list. Raises PairError as `rows` does, with its own columns.
    """
    required = ("image", "text", "truth", "polarity")

    def is_usable(name: str, kind) -> bool:
        if name == "truth":
            return types.is_boolean(kind)
        if name == "objects" and _is_list(kind):
            kind = kind.value_type
        is_id = name == "caption_id" and types.is_integer(kind)
        return is_id or _is_text(kind) or (types.is_null(kind) and name not in required)

    def choose(schema) -> list[str]:
        kinds = {field.name: field.type for field in schema if field.name in _STATEMENTS}
        for name in required:
            if name not in kinds:
                raise missing(path, name, schema.names)
        wrong = {name: kind for name, kind in kinds.items() if not is_usable(name, kind)}
        _refuse_types(path, wrong, "all are strings, truth is a boolean")
        return list(kinds)

    found = list(_batches(Table.of(path), 64 * _BATCH, choose))
    if not found:
        raise PairError(f"{path} holds no statements.")
    table = pa.Table.from_batches(found).unify_dictionaries()
    coded = {}
    for name in _STATEMENTS:
        is_there = name in table.schema.names
        column = table[name].combine_chunks() if is_there else pa.nulls(len(table))
        if _is_list(column.type):
            column = _alone(column)
        if types.is_boolean(column.type):
            codes, values = column.cast(pa.int8()), pa.array([False, True])
        else:
            column = column if types.is_dictionary(column.type) else column.dictionary_encode()
            codes, values = column.indices, column.dictionary
        coded[name] = Coded(codes.fill_null(-1).to_numpy().astype(np.int64), values)
    return coded


def _alone(lists: Any) -> Any:
    """Of each list its value where it has one, else null."""
    from pyarrow import compute  # deferred, here and below: a tenth of a second and 4 MB

    is_one = compute.fill_null(compute.equal(compute.list_value_length(lists), 1), False)
    place = compute.subtract(compute.cumulative_sum(is_one.cast(pa.int64())), 1)
    return lists.filter(is_one).flatten().take(compute.if_else(is_one, place, None))


def _batches(source: Table, size: int, choose: Callable[[Any], Sequence[str]]) -> Iterator[Any]:
    """Arrow batches of the columns that `choose` picks of the schema, checked before they unpack.

    Fields of structs are columns of their own, called OUTER.INNER.
    """
    path = source.path
    try:
        with pq.ParquetFile(source.open()) as parquet:
            schema = parquet.schema_arrow
            columns = choose(schema)
            refuse_claims(parquet.metadata, path, source.size)
        # Strings stay in dictionaries until each was found to be of a reasonable length.
        texts = [f.name for f in schema if f.name in columns and _is_text(f.type)]
        with pq.ParquetFile(source.open(), read_dictionary=texts) as parquet:
            # Inside of a list a field is called as the writer of the file chose: all are read.
            outer = (c if c in schema.names else c.partition(".")[0] for c in columns)
            read = [
                o if _is_list(_kind(schema, o)) else c for o, c in zip(outer, columns, strict=True)
            ]
            for batch in parquet.iter_batches(batch_size=size, columns=read):
                found = pa.RecordBatch.from_arrays([_column(batch, c) for c in columns], columns)
                _check_values(found, path)
                found.validate(full=True)  # that strings are UTF-8
                yield found
    except PairError:
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise PairError(
            f"{path} cannot be read as Parquet ({str(error).rstrip('.')}): it is damaged, cut "
            "short or of another format."
        ) from None


def _is_list(kind: Any) -> bool:
    return kind is not None and (types.is_list(kind) or types.is_large_list(kind))


def _kind(schema: Any, name: str) -> Any:
    """The type of a column, or of a field of a struct; None where there is none.

    Of a list of structs a field is a list.
    """
    if name in schema.names:
        return schema.field(name).type
    outer, dot, inner = name.partition(".")
    kind = schema.field(outer).type if dot and outer in schema.names else None
    is_list = _is_list(kind)
    kind = kind.value_type if is_list else kind
    for part in inner.split("."):
        is_struct = kind is not None and types.is_struct(kind)
        kind = {field.name: field.type for field in kind}.get(part) if is_struct else None
    return pa.list_(kind) if is_list and kind is not None else kind


def _column(batch: Any, name: str) -> Any:
    from pyarrow import compute

    if name in batch.schema.names:
        return batch.column(name)
    outer, *inner = name.split(".")
    column = batch.column(outer)
    if types.is_struct(column.type):
        return compute.struct_field(column, inner)
    # Offsets begin anew: those of a batch are of all that was read with it.
    lengths = compute.fill_null(compute.list_value_length(column), 0)
    offsets = np.concatenate([[0], np.cumsum(lengths.to_numpy(zero_copy_only=False))])
    values = compute.struct_field(column.flatten(), inner)
    starts = pa.array(offsets, pa.int64())
    return pa.LargeListArray.from_arrays(starts, values, mask=column.is_null())


def _refuse_types(path: object, wrong: Mapping[str, Any], kinds: str) -> None:
    if wrong:
        shown = ", ".join(f'"{name}" ({kind})' for name, kind in wrong.items())
        raise PairError(f"{path}: wrong type of column {shown}: {kinds}.")


def refuse_claims(metadata: Any, path: object, size: int) -> None:
    """Raises PairError where the footer of a file of `size` bytes claims far more than these."""
    # By the row groups alone: pyarrow 26 ends the process at damaged metadata of a column.
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    unpacked = sum(group.total_byte_size for group in groups)
    if (count := metadata.num_rows) > _ROWS_PER_BYTE * size + _FREE_ROWS:
        said = f"says that it holds {count:,} rows"
        raise PairError(f"{path} of {size:,} bytes {said}: refused.")
    if unpacked > _BYTES_PER_BYTE * size + _FREE_BYTES:
        raise PairError(f"{path} of {size:,} bytes unpacks to {unpacked:,} bytes: refused.")


@contextlib.contextmanager
def writer(path: Path) -> Iterator[Callable[[Pair], None]]:
    """A function that adds a pair to a file that `rows` reads."""
    kinds = {key: pa.list_(pa.string()) if key == "foils" else pa.string() for key in FIELDS}
    schema, waiting, tables, groups = pa.schema(kinds.items()), list[Pair](), list[pa.Table](), 0

    def collect() -> None:
        columns = [pa.array([getattr(p, f.name) for p in waiting], f.type) for f in schema]
        tables.append(pa.table(columns, schema))
        waiting.clear()

    with pq.ParquetWriter(path, schema) as file:

        def flush() -> None:
            nonlocal groups
            collect()
            file.write_table(pa.concat_tables(tables).combine_chunks())
            tables.clear()
            groups += 1

        def write(pair: Pair) -> None:
            waiting.append(pair)
            if len(waiting) == _BATCH:
                flush() if len(tables) == _GROUP // _BATCH - 1 else collect()

        yield write
        if waiting or tables or not groups:
            flush()


def _check_values(batch, path: object) -> None:
    from pyarrow import compute

    waiting = list(zip(batch.schema.names, batch.columns, strict=True))
    for name, column in waiting:
        while _is_list(column.type):
            column = column.flatten()
        if types.is_struct(column.type):
            waiting += [(f"{name}.{f.name}", column.field(f.name)) for f in column.type]
        if types.is_dictionary(column.type):
            column = column.dictionary
        if len(column) and _is_text(column.type):
            longest = compute.max(compute.binary_length(column)).as_py() or 0
            if longest > _LONGEST_VALUE:
                raise PairError(
                    f"{path}: a value of the column {name!r} has {longest:,} bytes: refused."
                )


def _is_text(kind) -> bool:
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
