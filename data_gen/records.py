"""The tables of a run: what was asked, what was answered, and what became of it.

All ids are strings, whatever the input has (COCO's numbers become numbers again in the export).
Nothing in these tables depends on time or on luck of the network: latencies, attempts and hosts
are in the request cache and in `sessions.jsonl`, so that an interrupted run's tables are equal,
byte for byte, to an undisturbed one's.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from negclip_jax.common import atomic_files
from negclip_jax.common.errors import InputError

_TEXTS = pa.list_(pa.string())

# One row a caption. `image_sha256` is of the file's bytes, null where no image was asked for.
ITEMS = pa.schema(
    [
        ("image_id", pa.string()),
        ("file_name", pa.string()),
        ("image_sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("caption_id", pa.string()),
        ("caption", pa.string()),
        ("split", pa.string()),
        ("source", pa.string()),  # name of the captions file
    ]
)

# One row a caption or image that ingest refused (`code`), in the words of `detail`.
REJECTS = pa.schema(
    [
        ("image_id", pa.string()),
        ("file_name", pa.string()),
        ("caption_id", pa.string()),
        ("code", pa.string()),
        ("detail", pa.string()),
    ]
)

# One row an object that was proposed for an image, or a question (pipeline vqa), where `object`
# holds the words that its negation is about. `reject_reason` is null for one that was kept.
CANDIDATES = pa.schema(
    [
        ("image_id", pa.string()),
        ("caption_id", pa.string()),  # null: proposed for the image with all its captions
        ("object", pa.string()),
        ("question", pa.string()),
        ("source", pa.string()),  # llm | cooccurrence | random | file | vqa
        ("key", pa.string()),  # of the request in the cache, null without one
        ("reject_reason", pa.string()),
    ]
)

# One row a (image, object) that was asked about, once. `p_yes` and `p_no` are the probabilities
# of the two answers (1 and 0 where only text was seen), `mass` their sum; thresholds are applied
# to p / mass.
VERDICTS = pa.schema(
    [
        ("image_id", pa.string()),
        ("object", pa.string()),
        ("question", pa.string()),
        ("verdict", pa.string()),  # absent | present | unsure | error
        ("p_yes", pa.float32()),
        ("p_no", pa.float32()),
        ("mass", pa.float32()),
        ("method", pa.string()),  # logprobs | choice | text | multi | substring | instances | vqa
        ("model", pa.string()),
        ("prompt_id", pa.string()),
        ("key", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("error_code", pa.string()),
    ]
)

# One row an attempt to rewrite a caption: a rejected first and its accepted second are two rows.
PAIRS = pa.schema(
    [
        ("pair_id", pa.string()),
        ("image_id", pa.string()),
        ("file_name", pa.string()),
        ("caption_id", pa.string()),
        ("caption", pa.string()),
        ("object", pa.string()),
        ("question", pa.string()),
        ("negated_caption", pa.string()),  # null where no text came back
        ("foils", _TEXTS),
        ("pipeline", pa.string()),  # absence | vqa
        ("rewriter", pa.string()),  # llm | template:NAME
        ("cue", pa.string()),
        ("cue_position", pa.string()),  # before | after | alone
        ("clip_tokens", pa.int32()),  # with start and end token
        ("attempt", pa.int8()),
        ("accepted", pa.bool_()),
        ("reasons", _TEXTS),  # all of data_gen.rules that it breaks, or an error code
        ("p_no", pa.float32()),  # of the verdict that it rests on
        ("mass", pa.float32()),
        ("keys", pa.struct([(stage, pa.string()) for stage in ("propose", "verify", "rewrite")])),
        ("models", pa.struct([(stage, pa.string()) for stage in ("propose", "verify", "rewrite")])),
        (
            "prompt_ids",
            pa.struct([(stage, pa.string()) for stage in ("propose", "verify", "rewrite")]),
        ),
        ("run_id", pa.string()),
    ]
)

SCHEMAS = {
    "items": ITEMS,
    "rejects": REJECTS,
    "candidates": CANDIDATES,
    "verdicts": VERDICTS,
    "pairs": PAIRS,
}


def table_paths(run: str | os.PathLike, name: str) -> list[Path]:
    """The finished parts of a table of the run directory `run`, in the order of their shards."""
    return sorted(Path(run).joinpath(name).glob("part-*.parquet"))


def read_table(run: str | os.PathLike, name: str, columns: list[str] | None = None) -> pa.Table:
    """A whole table (a key of SCHEMAS) of a run directory; without rows if nothing is there yet.

    Raises InputError for a part that is not readable Parquet.
    """
    schema = SCHEMAS[name]
    if columns is not None:
        schema = pa.schema([schema.field(column) for column in columns])
    parts = []
    for path in table_paths(run, name):
        try:
            parts.append(pq.read_table(path, columns=columns, partitioning=None))
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{path} cannot be read as Parquet ({str(error).rstrip('.')}); remove it and its "
                "shard's file in done/, and run again: the answers are in the cache."
            ) from None
    return pa.concat_tables([schema.empty_table(), *parts])


def write_table(path: Path, name: str, rows: Iterable[Mapping[str, Any]] | pa.Table) -> None:
    """Writes rows (mappings with the fields of SCHEMAS[name]) or a table as one Parquet file.

    A field that a row lacks is null; one that the schema lacks is a KeyError.
    """
    table = rows if isinstance(rows, pa.Table) else _as_table(SCHEMAS[name], list(rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_files.whole_file(path) as unfinished:
        # No writer version or time of writing that would differ between two equal runs.
        pq.write_table(table, unfinished, compression="zstd", store_schema=False)


def _as_table(schema: pa.Schema, rows: list[Mapping[str, Any]]) -> pa.Table:
    for row in rows:
        if unknown := set(row) - set(schema.names):
            raise KeyError(f"no such column: {', '.join(sorted(unknown))}")
    columns = [pa.array([row.get(f.name) for row in rows], f.type) for f in schema]
    return pa.table(columns, schema=schema)
