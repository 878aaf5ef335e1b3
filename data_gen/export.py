"""Accepted pairs in the layouts that training reads: `launch.py`'s, and the published file's."""

import collections
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_gen import statements
from data_gen.labels import write_labels
from data_gen.manifest import read_manifest
from data_gen.records import read_table
from data_gen.statements import Statement, foils, pen_of, written
from negclip_jax.common import storage, strict_json
from negclip_jax.common.errors import InputError
from negclip_jax.common.provenance import content_hash
from negclip_jax.data.pairs import Pair, PairError, write_pairs


@dataclass(frozen=True)
class Exported:
    """Files that were written, and how many pairs and statements are in them."""

    files: list[Path]
    pairs: int
    statements: int


def export(run: Path, to: Path) -> Exported:
    """Writes what training reads, all of it from one pass over the tables.

    `statements.parquet` (`data_gen.statements`) for `launch.py --config.data.statements`;
    `pairs.json` (COCO layout with `updated_caption` and `foils`) and `pairs.parquet`, both for
    `--config.data.pairs`; `labels.json`; and `published.json`: the input file with
    `updated_caption` in the annotations that got one, as NegationCLIP released it.

    The foils of a pair are the false statements in its own words. Where nothing is known to be in
    the photo there are no statements, and the foils that the run wrote stay.

    Raises InputError where there is nothing to export or a file cannot be written.
    """
    manifest = read_manifest(run)
    config = manifest["config"]
    kept = kept_pairs(run, config["export"]["max_per_object"])
    if not kept:
        raise InputError(f"{run} has no accepted pair; `python -m data_gen report` shows why")
    pairs, rewritten = [], {}
    files = [to / name for name in ("pairs.json", "pairs.parquet", "statements.parquet")]

    def said() -> Iterator[list[Statement] | None]:
        for row, found in written(run, pen_of(config), kept):
            false = foils(row, found, config["rewrite"].get("affirm", False))
            pairs.append(_pair(row, false))
            rewritten.setdefault(row["caption_id"], row["negated_caption"])
            yield found

    try:
        texts = statements.write(files[2], said())
        for path in files[:2]:
            write_pairs(path, pairs)
        files.append(to / "labels.json")
        write_labels(run, files[-1])
        captions = Path(manifest["inputs"]["captions"]["path"])
        if captions.suffix.lower() == ".json":
            files.append(_write_published(to / "published.json", captions, rewritten))
    except PairError as error:
        raise InputError(str(error), status=5) from None
    except OSError as error:
        raise InputError(f"{to} could not be written ({error.strerror or error})", 5) from None
    return Exported(files, len(pairs), texts)


def _pair(row: Mapping[str, Any], false: Sequence[str]) -> Pair:
    provenance = f"data_gen {row['pipeline']}, {row['models']['rewrite'] or row['rewriter']}"
    return Pair(
        row["file_name"],
        row["caption"],
        row["negated_caption"],
        tuple(false),
        row["object"],
        f"{provenance}, run {row['run_id']}",
        image_id=row["image_id"],
    )


def kept_pairs(run: Path, max_per_object: int | None = None) -> set[str]:
    """Ids of the accepted pairs; of an object with too many, those with the least hash."""
    rows = read_table(run, "pairs", ["pair_id", "object", "accepted"])
    by_object: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
    for pair, name, accepted in zip(*(c.to_pylist() for c in rows.columns), strict=True):
        if accepted:
            by_object[name].append((content_hash([pair]), pair))
    return {pair for group in by_object.values() for _, pair in sorted(group)[:max_per_object]}


def _write_published(path: Path, captions: Path, rewritten: Mapping[str, str]) -> Path:
    """The input with one key more in annotations that were rewritten; the first of several."""
    try:
        content = strict_json.load(captions)
    except (OSError, ValueError):
        raise InputError(f"{captions}, the input of the run, is no longer readable there") from None
    for index, annotation in enumerate(content["annotations"]):
        if isinstance(annotation, dict):
            negated = rewritten.get(str(annotation.get("id", f"row {index}")))
            if negated is not None:
                annotation["updated_caption"] = negated
    storage.write_whole(path, json.dumps(content, ensure_ascii=False).encode())
    return path
