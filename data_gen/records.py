"""What passes between the stages, and the tables of a run: what was asked, answered, written.

All ids are strings, whatever the input has (COCO's numbers become numbers again in the export).
Nothing in these tables depends on time or on luck of the network: latencies, attempts and hosts
are in the request cache and in `sessions.jsonl`, so that an interrupted run's tables are equal,
byte for byte, to an undisturbed one's.
"""

import collections
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from negclip_jax.common import atomic_files, strict_json
from negclip_jax.common.errors import InputError
from negclip_jax.common.provenance import content_hash

PARTS = "part-*.parquet"  # the files of a table, one a shard
NAMED = "caption"  # source of a candidate that a caption names
_ROWS = 16_384  # of a table that are in memory at once
_MANIFEST = {"run_id", "roles", "inputs", "captions", "images", "ingest_rejects", "config", "calls"}

_TYPES = {
    "": pa.string(),
    "texts": pa.list_(pa.string()),
    "stages": pa.struct([(stage, pa.string()) for stage in ("propose", "verify", "rewrite")]),
}


def _schema(*columns: str) -> pa.Schema:
    """A table of `name` or `name:type` columns, several in a text; text unless a type is given."""
    named = (column.partition(":")[::2] for text in columns for column in text.split())
    return pa.schema((name, _TYPES.get(kind) or pa.type_for_alias(kind)) for name, kind in named)


SCHEMAS = {
    # One row a caption. `image_sha256` is of the file's bytes, null where no image was asked for;
    # `source` is the name of the captions file.
    "items": _schema(
        "image_id file_name image_sha256 width:int32 height:int32 caption_id caption split source"
    ),
    # One row a caption or image that ingest refused (`code`), with the reason in `detail`.
    "rejects": _schema("image_id file_name caption_id code detail"),
    # One row an object that was proposed for an image, or a question (pipeline vqa), where `object`
    # holds the words that its negation is about.
    "candidates": _schema(
        "image_id",
        "caption_id",  # null: proposed for the image with all its captions
        "object question",
        # llm | cooccurrence | random | file | vqa, or caption: named there, asked for its label.
        "source",
        "key",  # of the request in the cache, null without one
        "reject_reason",  # null for one that was kept
    ),
    # One row a (image, object) that was asked about, once. `p_yes` and `p_no` are the probabilities
    # of the two answers (1 and 0 where only text was seen), `mass` their sum; thresholds are
    # applied to p / mass.
    "verdicts": _schema(
        "image_id object question",
        "verdict",  # absent | present | unsure | error
        "p_yes:float32 p_no:float32 mass:float32",
        "method",  # logprobs | choice | text | multi | substring | instances | vqa
        "model prompt_id key prompt_tokens:int32 completion_tokens:int32 error_code",
    ),
    # One row for what one source says of an object in an image; sources may contradict each other.
    "labels": _schema(
        "image_id file_name",
        "object",  # one name for all that mean the same, `vocabulary.canonical`
        "name",  # as the source calls it
        "state",  # present | absent | unsure
        # boxes: every annotated class. mllm: a model that saw the photo. vqa: annotators of VQAv2.
        # caption: named there, which a word of several senses may not mean. text: the published
        # rule, by which any answer without "yes" is an absence.
        "source",
        "probability:float32",  # that it is present
        "size",  # of what boxes show: large | plain | tiny | crowd
        "key",  # of the request in the cache, null without one
    ),
    # One row an attempt to rewrite a caption: a rejected first and its accepted second are two.
    "pairs": _schema(
        "pair_id image_id file_name caption_id caption object question",
        "negated_caption",  # null where no text came back
        "foils:texts",
        "pipeline",  # absence | vqa
        "rewriter",  # llm | template:NAME
        "cue",
        "cue_position",  # before | after | alone
        "clip_tokens:int32",  # with start and end token
        "attempt:int8 accepted:bool",
        "reasons:texts",  # all of data_gen.rules that it breaks, or an error code
        "p_no:float32 mass:float32",  # of the verdict that it rests on
        "keys:stages models:stages prompt_ids:stages run_id",
    ),
}


@dataclass(frozen=True, slots=True)
class Caption:
    """One caption of an image."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Question:
    """A yes/no question of VQAv2 with the votes of its annotators."""

    id: str
    text: str
    yes: int
    no: int
    votes: int


@dataclass(frozen=True, slots=True)
class ImageItem:
    """An image with its usable captions, and its questions where the pipeline has some."""

    image_id: str
    file_name: str
    captions: tuple[Caption, ...]
    questions: tuple[Question, ...] = ()

    @property
    def texts(self) -> list[str]:
        """The captions' texts."""
        return [caption.text for caption in self.captions]


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something that may be absent; fields as in the table "candidates".

    `there`: what a text about it without its caption says to be there, where that is drawn too.
    """

    object: str
    source: str
    question: str | None = None
    caption_id: str | None = None
    key: str | None = None
    model: str | None = None
    prompt_id: str | None = None
    reject_reason: str | None = None
    there: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether it is absent; fields as in the table "verdicts"."""

    object: str
    verdict: str
    p_yes: float
    p_no: float
    method: str
    question: str | None = None
    model: str | None = None
    prompt_id: str | None = None
    key: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error_code: str | None = None

    @property
    def mass(self) -> float:
        return self.p_yes + self.p_no


@dataclass(frozen=True, slots=True)
class Assignment:
    """A caption that is to say that something is absent.

    `there`: an object of the photo, where the caption names all that is known to be there: beside
    it nothing has a false twin, but "a cat, but no dog" has one, "a dog, but no cat".
    """

    caption: Caption
    candidate: Candidate
    verdict: Verdict
    there: str | None = None


@dataclass(slots=True)
class Rows:
    """What one image adds to each table."""

    items: list[Mapping[str, Any]] = field(default_factory=list)
    rejects: list[Mapping[str, Any]] = field(default_factory=list)
    candidates: list[Mapping[str, Any]] = field(default_factory=list)
    verdicts: list[Mapping[str, Any]] = field(default_factory=list)
    labels: list[Mapping[str, Any]] = field(default_factory=list)
    pairs: list[Mapping[str, Any]] = field(default_factory=list)

    def codes(self) -> set[str]:
        """Everything that went wrong with the image, by its codes."""
        found = {row["reject_reason"] for row in self.candidates}
        found |= {row["error_code"] for row in self.verdicts}
        found |= {reason for row in self.pairs for reason in row["reasons"]}
        return {code for code in found if code}


def chance(*parts: Any) -> float:
    """A number in [0, 1) that depends on its arguments only: the same on every machine."""
    return int(content_hash(parts)[:13], 16) / 16**13


def shuffled(things: Sequence[Any], *parts: Any) -> list[Any]:
    """The things in an order that depends on `parts` and the things only."""
    return sorted(things, key=lambda thing: content_hash([*parts, repr(thing)]))


def read_manifest(run: Path) -> dict[str, Any]:
    """What a run directory says of its run. Raises InputError where there is none."""
    try:
        content = strict_json.load(run / "manifest.json")
        if not isinstance(content, dict) or not content.keys() >= _MANIFEST:
            raise ValueError
    except (OSError, ValueError):
        raise InputError(f"{run} holds no run of data_gen (no readable manifest.json)") from None
    return content


def table_paths(run: str | os.PathLike, name: str, part: str = PARTS) -> list[Path]:
    """The finished parts of a table of the run directory `run`, in the order of their shards."""
    return sorted(Path(run).joinpath(name).glob(part))


def read_table(
    run: str | os.PathLike, name: str, columns: list[str] | None = None, part: str = PARTS
) -> pa.Table:
    """A whole table (a key of SCHEMAS) of a run directory; without rows if nothing is there yet.

    `part`: file name of one shard, to read that alone. Raises InputError for what is no Parquet.
    """
    parts = [SCHEMAS[name].empty_table()]
    for path in table_paths(run, name, part):
        try:
            parts.append(pq.read_table(path, columns=columns, partitioning=None))
        except (pa.ArrowException, OSError) as error:
            raise damaged(path, error) from None
    parts[0] = parts[0].select(columns or parts[0].column_names)
    return pa.concat_tables(parts)


def damaged(path: Path, error: Exception) -> InputError:
    """What to tell the user of a part that is not readable Parquet."""
    return InputError(
        f"{path} cannot be read as Parquet ({str(error).rstrip('.')}); remove it and its shard's "
        "file in done/, and run again: the answers are in the cache."
    )


def read_rows(
    run: str | os.PathLike, name: str, columns: Sequence[str], part: str = PARTS
) -> Iterator[tuple]:
    """The values of these columns, row by row; some rows at a time are in memory.

    `part`, errors: as in `read_table`.
    """
    for path in table_paths(run, name, part):
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(_ROWS, columns=list(columns)):
                    yield from zip(*(batch[name].to_pylist() for name in columns), strict=True)
        except (pa.ArrowException, OSError, KeyError) as error:
            raise damaged(path, error) from None


def count_values(run: str | os.PathLike, table: str, column: str) -> collections.Counter[Any]:
    """How often each value of a column occurs, first seen first; of lists their elements."""
    values = (value for (value,) in read_rows(run, table, [column]))
    if pa.types.is_list(SCHEMAS[table].field(column).type):
        values = (element for several in values for element in several or ())
    return collections.Counter(values)


def write_table(path: Path, name: str, rows: Iterable[Mapping[str, Any]] | pa.Table) -> None:
    """Writes rows (mappings with the fields of SCHEMAS[name]) or a table as one Parquet file.

    A field that a row lacks is null; one that the schema lacks is a KeyError.
    """
    table, schema = rows, SCHEMAS[name]
    if not isinstance(table, pa.Table):
        rows = list(rows)
        if unknown := set().union(*rows) - set(schema.names):
            raise KeyError(f"no such column: {', '.join(sorted(unknown))}")
        columns = [pa.array([row.get(f.name) for row in rows], f.type) for f in schema]
        table = pa.table(columns, schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_files.whole_file(path) as unfinished:
        # No writer version or time of writing that would differ between two equal runs.
        pq.write_table(table, unfinished, compression="zstd", store_schema=False)
