"""Rows of Parquet files of pairs and of statements, as many as their bytes can honestly hold.

A column of one value a million times is a few bytes of Parquet. What a file unpacks to is bounded
by its own size before its pages are read, and its strings one by one before they are copied out.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from negclip_jax.data.records import Pair, PairError

FIELDS = ("image", "caption", "negated", "foils", "image_id", "object", "provenance")
_READ = (*FIELDS, "foil")
_STATEMENTS = ("image", "text", "truth", "polarity", "caption_id", "unit", "form")

# A pair takes some 20 bytes of a real file, and real text is compressed to a fifth.
_ROWS_PER_BYTE, _FREE_ROWS = 8, 2**20
_BYTES_PER_BYTE, _FREE_BYTES = 100, 2**26
_LONGEST_VALUE = 2**20  # bytes of a string
_BATCH = 1024  # rows that are Python objects at a time; of columns, 64 times as many


@dataclasses.dataclass(frozen=True)
class Coded:
    """A column as its distinct values and, for each row, which of them: memory for each once.

    Attributes:
      codes: int64 `[S]`, index into `values`; -1 where a row has none.
      values: a `pyarrow.Array`, without repetitions.
    """

    codes: np.ndarray
    values: Any

    def of_values(self, flags: Sequence[bool]) -> np.ndarray:
        """Flags of the values as flags of the rows, bool `[S]`; False where a row has none."""
        return np.append(np.asarray(flags, bool), False)[self.codes]


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file of pairs, with those of `FIELDS` (and `foil`) that it has.

    Raises PairError for a file that is not Parquet, lacks `image` or `caption`, has a column of
    another type than strings (foils: lists of them), or unpacks to far more than its size.
    """

    def is_usable(name: str, kind) -> bool:
        from pyarrow import types

        if name == "image_id" and types.is_integer(kind):
            return True
        if name == "foils" and (types.is_list(kind) or types.is_large_list(kind)):
            return _is_text(kind.value_type) or types.is_null(kind.value_type)
        return _is_text(kind) or (types.is_null(kind) and name not in ("image", "caption"))

    kinds = "all are strings, foils a list of strings"
    for batch in _batches(path, _BATCH, _READ, ("image", "caption"), is_usable, kinds):
        yield from batch.to_pylist()


def statement_columns(path: Path) -> dict[str, Coded]:
    """The columns of a file of statements, see `data.statements`; those it lacks have no values.

    Of `truth` the codes are 0 and 1. Raises PairError as `rows` does, with its own columns.
    """
    import pyarrow as pa
    from pyarrow import types

    required = ("image", "text", "truth", "polarity")

    def is_usable(name: str, kind) -> bool:
        if name == "truth":
            return types.is_boolean(kind)
        is_id = name == "caption_id" and types.is_integer(kind)
        return is_id or _is_text(kind) or (types.is_null(kind) and name not in required)

    kinds = "all are strings, truth is a boolean"
    found = list(_batches(path, 64 * _BATCH, _STATEMENTS, required, is_usable, kinds))
    if not found:
        raise PairError(f"{path} holds no statements.")
    table = pa.Table.from_batches(found).unify_dictionaries()
    coded = {}
    for name in _STATEMENTS:
        column = (
            table[name].combine_chunks() if name in table.schema.names else pa.nulls(len(table))
        )
        if types.is_boolean(column.type):
            codes, values = column.cast(pa.int8()), pa.array([False, True])
        else:
            column = column if types.is_dictionary(column.type) else column.dictionary_encode()
            codes, values = column.indices, column.dictionary
        coded[name] = Coded(codes.fill_null(-1).to_numpy().astype(np.int64), values)
    return coded


def _batches(
    path: Path,
    size: int,
    wanted: Sequence[str],
    required: Sequence[str],
    is_usable: Callable[[str, Any], bool],
    kinds: str,
) -> Iterator[Any]:
    """Arrow batches of those of the wanted columns that a file has, checked before they unpack."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as parquet:
            schema = parquet.schema_arrow
            missing = [name for name in required if name not in schema.names]
            columns = [name for name in schema.names if name in wanted]
            wrong = [name for name in columns if not is_usable(name, schema.field(name).type)]
            if missing:
                held = ", ".join(schema.names)
                raise PairError(f'{path} has no column "{missing[0]}"; it has: {held}.')
            if wrong:
                shown = ", ".join(f'"{name}" ({schema.field(name).type})' for name in wrong)
                raise PairError(f"{path}: wrong type of column {shown}: {kinds}.")
            refuse_claims(parquet.metadata, path, path.stat().st_size)
        # Strings stay in dictionaries until each was found to be of a reasonable length.
        texts = [f.name for f in schema if f.name in columns and _is_text(f.type)]
        with pq.ParquetFile(path, read_dictionary=texts) as parquet:
            for batch in parquet.iter_batches(batch_size=size, columns=columns):
                _check_values(batch, path)
                batch.validate(full=True)  # that strings are UTF-8
                yield batch
    except PairError:
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise PairError(
            f"{path} cannot be read as Parquet ({str(error).rstrip('.')}): it is damaged, cut "
            "short or of another format."
        ) from None


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
