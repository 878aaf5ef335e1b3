"""Rows of a Parquet file of pairs, as many as its bytes can honestly hold.

A column of one value a million times is a few bytes of Parquet. What a file unpacks to is bounded
by its own size before its pages are read, and its strings one by one before they are copied out.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from negclip_jax.data.records import Pair, PairError

FIELDS = ("image", "caption", "negated", "foils", "image_id", "object", "provenance")
_READ = (*FIELDS, "foil")

# A pair takes some 20 bytes of a real file, and real text is compressed to a fifth.
_ROWS_PER_BYTE, _FREE_ROWS = 8, 2**20
_BYTES_PER_BYTE, _FREE_BYTES = 100, 2**26
_LONGEST_VALUE = 2**20  # bytes of a string
_BATCH = 1024  # rows that are Python objects at a time


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, with those of `FIELDS` (and `foil`) that it has.

    Raises PairError for a file that is not Parquet, lacks `image` or `caption`, has a column of
    another type than strings (foils: lists of them), or unpacks to far more than its size.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as parquet:
            schema = parquet.schema_arrow
            _check_columns(schema, path)
            columns = [name for name in schema.names if name in _READ]
            # By the row groups alone: pyarrow 26 ends the process at damaged metadata of a column.
            groups = [parquet.metadata.row_group(i) for i in range(parquet.num_row_groups)]
            unpacked, size = sum(group.total_byte_size for group in groups), path.stat().st_size
            if (count := parquet.metadata.num_rows) > _ROWS_PER_BYTE * size + _FREE_ROWS:
                said = f"says that it holds {count:,} rows"
                raise PairError(f"{path} of {size:,} bytes {said}: refused.")
            if unpacked > _BYTES_PER_BYTE * size + _FREE_BYTES:
                raise PairError(f"{path} of {size:,} bytes unpacks to {unpacked:,} bytes: refused.")
        # Strings stay in dictionaries until each was found to be of a reasonable length.
        texts = [f.name for f in schema if f.name in columns and _is_text(f.type)]
        with pq.ParquetFile(path, read_dictionary=texts) as parquet:
            for batch in parquet.iter_batches(batch_size=_BATCH, columns=columns):
                _check_values(batch, path)
                yield from batch.to_pylist()
    except PairError:
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise PairError(
            f"{path} cannot be read as Parquet ({str(error).rstrip('.')}): it is damaged, cut "
            "short or of another format."
        ) from None


def write(path: Path, pairs: Sequence[Pair]) -> None:
    """Writes a file that `rows` reads."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {key: pa.list_(pa.string()) if key == "foils" else pa.string() for key in FIELDS}
    columns = {key: pa.array([getattr(p, key) for p in pairs], kinds[key]) for key in FIELDS}
    pq.write_table(pa.table(columns), path)


def _check_values(batch, path: Path) -> None:
    from pyarrow import compute, types

    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        while types.is_list(column.type) or types.is_large_list(column.type):
            column = column.flatten()
        if types.is_dictionary(column.type):
            column = column.dictionary
        if len(column) and _is_text(column.type):
            longest = compute.max(compute.binary_length(column)).as_py() or 0
            if longest > _LONGEST_VALUE:
                raise PairError(
                    f"{path}: a value of the column {name!r} has {longest:,} bytes: refused."
                )


def _is_text(kind) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _check_columns(schema, path: Path) -> None:
    from pyarrow import types

    def is_usable(name: str, kind) -> bool:
        if name == "image_id" and types.is_integer(kind):
            return True
        if name == "foils" and (types.is_list(kind) or types.is_large_list(kind)):
            return _is_text(kind.value_type) or types.is_null(kind.value_type)
        return _is_text(kind) or (types.is_null(kind) and name not in ("image", "caption"))

    missing = [name for name in ("image", "caption") if name not in schema.names]
    wrong = [f.name for f in schema if f.name in _READ and not is_usable(f.name, f.type)]
    if missing:
        raise PairError(f'{path} has no column "{missing[0]}"; it has: {", ".join(schema.names)}.')
    if wrong:
        shown = ", ".join(f'"{name}" ({schema.field(name).type})' for name in wrong)
        raise PairError(
            f"{path}: wrong type of column {shown}: all are strings, foils a list of strings."
        )
