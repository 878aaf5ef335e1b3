"""Accepted pairs in the layouts that training reads: `launch.py`'s, and the published file's."""

import collections
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_gen import statements
from data_gen.labels import write_labels
from data_gen.manifest import read_manifest
from data_gen.records import read_rows
from data_gen.statements import Statement, foils, pen_of, written
from negclip_jax.common import atomic_files, strict_json
from negclip_jax.common.errors import InputError
from negclip_jax.common.packed import Index, Texts
from negclip_jax.common.provenance import content_hash
from negclip_jax.data.pairs import Pair, PairError, pair_writer


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
    kept = keeper(run, config["export"]["max_per_object"])
    columns = ("pair_id", "object", "accepted")
    rows = (dict(zip(columns, row, strict=True)) for row in read_rows(run, "pairs", columns))
    if not any(map(kept, rows)):
        raise InputError(f"{run} has no accepted pair; `python -m data_gen report` shows why")
    files, number = [to / name for name in ("pairs.json", "pairs.parquet", "statements.parquet")], 0
    ids, rewritten = Texts(), Texts()
    try:
        with pair_writer(files[0]) as as_coco, pair_writer(files[1]) as as_table:

            def said() -> Iterator[list[Statement] | None]:
                nonlocal number
                for row, found in written(run, pen_of(config), kept):
                    false = foils(row, found, config["rewrite"].get("affirm", False))
                    for write in (as_coco, as_table):
                        write(_pair(row, false))
                    ids.append(row["caption_id"])
                    rewritten.append(row["negated_caption"])
                    number += 1
                    yield found

            texts = statements.write(files[2], said())
        files.append(to / "labels.json")
        write_labels(run, files[-1])
        captions = Path(manifest["inputs"]["captions"]["path"])
        if captions.suffix.lower() == ".json":
            files.append(_write_published(to / "published.json", captions, ids, rewritten))
    except PairError as error:
        raise InputError(str(error), status=5) from None
    except OSError as error:
        raise InputError(f"{to} could not be written ({error.strerror or error})", 5) from None
    return Exported(files, number, texts)


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


def keeper(run: Path, max_per_object: int | None = None) -> Callable[[Mapping[str, Any]], bool]:
    """Whether to export a row of "pairs": an accepted one; of too many of an object those with
    the least hash."""
    if max_per_object is None:
        return lambda row: row["accepted"]

    def place(pair: str) -> tuple[str, str]:
        return content_hash([pair]), pair

    least = collections.defaultdict[str, list[tuple[str, str]]](list)
    for pair, name, accepted in read_rows(run, "pairs", ["pair_id", "object", "accepted"]):
        if accepted:
            least[name].append(place(pair))
            if len(least[name]) > 2 * max_per_object:
                least[name] = sorted(least[name])[:max_per_object]
    last = {name: max(sorted(found)[:max_per_object], default=()) for name, found in least.items()}
    return lambda row: row["accepted"] and place(row["pair_id"]) <= last[row["object"]]


def _write_published(path: Path, captions: Path, ids: Texts, rewritten: Texts) -> Path:
    """The input with one key more in annotations that were rewritten; the first of several."""
    index = Index(ids)

    def updated(key: str, number: int, value: Any) -> Any:
        if key == "annotations" and isinstance(value, dict):
            place = index.first(str(value.get("id", f"row {number}")))
            if place >= 0:
                value["updated_caption"] = rewritten[place]
        return value

    with atomic_files.whole_file(path) as unfinished, unfinished.open("w", encoding="utf-8") as out:
        try:
            out.writelines(_json(strict_json.members(captions), updated))
        except strict_json.Irregular:
            try:
                content = strict_json.load(captions)
                lists = {
                    key: value
                    for key, value in content.items()
                    if value and isinstance(value, list)
                }
            except (OSError, ValueError, AttributeError):
                raise InputError(
                    f"{captions}, the input of the run, is no longer readable there"
                ) from None
            out.seek(0)
            out.truncate()
            members = (
                (key, key in lists, element)
                for key, value in content.items()
                for element in lists.get(key, [value])
            )
            out.writelines(_json(members, updated))
    return path


def _json(
    members: Iterable[tuple[str, bool, Any]], change: Callable[[str, int, Any], Any]
) -> Iterator[str]:
    """The text of a JSON object, from its members as `strict_json.members` gives them."""
    before, number, end = None, 0, ""
    for key, is_element, value in members:
        start = ", "
        if key != before:
            start = f"{end}, " if before is not None else "{"
            start += json.dumps(key, ensure_ascii=False) + (": [" if is_element else ": ")
            before, number, end = key, 0, "]" if is_element else ""
        yield start + json.dumps(change(key, number, value), ensure_ascii=False)
        number += 1
    yield f"{end}}}" if before is not None else "{}"
