"""Accepted pairs in the layouts that training reads: `launch.py`'s, and the published file's."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_gen.manifest import read_manifest
from data_gen.records import read_table
from negclip_jax.common import storage, strict_json
from negclip_jax.common.errors import InputError
from negclip_jax.common.provenance import content_hash
from negclip_jax.data.pairs import Pair, PairError, write_pairs


@dataclass(frozen=True)
class Exported:
    """Files that were written, and how many pairs are in them."""

    files: list[Path]
    pairs: int


def export(run: Path, to: Path) -> Exported:
    """Writes `pairs.json` (COCO layout with `updated_caption` and `foils`) and `pairs.parquet`,
    both for `launch.py --config.data.pairs`, and `published.json`: the input file with
    `updated_caption` in the annotations that got one, as NegationCLIP released it.

    Raises InputError where there is nothing to export or a file cannot be written.
    """
    manifest = read_manifest(run)
    rows = accepted_rows(run, manifest["config"]["export"]["max_per_object"])
    if not rows:
        raise InputError(f"{run} has no accepted pair; `python -m data_gen report` shows why")
    pairs = [
        Pair(
            row["file_name"],
            row["caption"],
            row["negated_caption"],
            tuple(row["foils"] or ()),
            row["object"],
            f"data_gen {row['pipeline']}, {row['models']['rewrite'] or row['rewriter']}, "
            f"run {row['run_id']}",
            image_id=row["image_id"],
        )
        for row in rows
    ]
    files = [to / "pairs.json", to / "pairs.parquet"]
    try:
        for path in files:
            write_pairs(path, pairs)
        captions = Path(manifest["inputs"]["captions"]["path"])
        if captions.suffix.lower() == ".json":
            files.append(_write_published(to / "published.json", captions, rows))
    except PairError as error:
        raise InputError(str(error), status=5) from None
    except OSError as error:
        raise InputError(f"{to} could not be written ({error.strerror or error})", 5) from None
    return Exported(files, len(pairs))


def accepted_rows(run: Path, max_per_object: int | None = None) -> list[dict[str, Any]]:
    """Rows of accepted pairs, in order; of an object with too many, those with the least hash."""
    rows = [row for row in read_table(run, "pairs").to_pylist() if row["accepted"]]
    if max_per_object is None:
        return rows
    by_object: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        order = content_hash([row["pair_id"]])
        by_object.setdefault(row["object"], []).append((order, row["pair_id"]))
    kept = {pair for group in by_object.values() for _, pair in sorted(group)[:max_per_object]}
    return [row for row in rows if row["pair_id"] in kept]


def _write_published(path: Path, captions: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """The input with one key more in annotations that were rewritten; the first of several."""
    try:
        content = strict_json.load(captions)
    except (OSError, ValueError):
        raise InputError(f"{captions}, the input of the run, is no longer readable there") from None
    by_caption: dict[str, str] = {}
    for row in rows:
        by_caption.setdefault(row["caption_id"], row["negated_caption"])
    for index, annotation in enumerate(content["annotations"]):
        if isinstance(annotation, dict):
            negated = by_caption.get(str(annotation.get("id", f"row {index}")))
            if negated is not None:
                annotation["updated_caption"] = negated
    storage.write_whole(path, json.dumps(content, ensure_ascii=False).encode())
    return path
