"""Accepted pairs in the layouts that training reads: `launch.py`'s, and the published file's."""

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_gen import statements
from data_gen.export_shards import Photo, Shards
from data_gen.labels import write_labels
from data_gen.records import read_manifest
from data_gen.statements import Statement
from negclip_jax.common import atomic_files, strict_json
from negclip_jax.common.errors import InputError
from negclip_jax.common.packed import Index, Texts
from negclip_jax.common.problems import first
from negclip_jax.data.pairs import Pair, PairError, pair_writer
from negclip_jax.data.sources import open_images


@dataclass(frozen=True)
class Exported:
    """Files that were written, and how many pairs and statements are in them."""

    files: list[Path | str]
    pairs: int
    statements: int
    training: dict[str, str]  # values of the keys of the section `data` that reads them
    left_out: Sequence[str] = ()  # photos that are in no shard, as they could not be read


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
    files = [to / name for name in ("pairs.json", "pairs.parquet", "statements.parquet")]
    ids, rewritten = Texts(), Texts()
    with _reported(to):
        with pair_writer(files[0]) as as_coco, pair_writer(files[1]) as as_table:

            def said() -> Iterator[list[Statement] | None]:
                for one in _accepted(run, manifest["config"]):
                    for write in (as_coco, as_table):
                        write(_pair(one))
                    ids.append(one.pair["caption_id"])
                    rewritten.append(one.pair["negated_caption"])
                    yield one.statements

            texts = statements.write(files[2], said())
        files.append(to / "labels.json")
        write_labels(run, files[-1])
        captions = Path(manifest["inputs"]["captions"]["path"])
        if captions.suffix.lower() == ".json":
            files.append(_write_published(to / "published.json", captions, ids, rewritten))
    training = {"pairs": str(files[0]), "images": "..."}
    return Exported(files, len(ids), texts, training | _of_statements(files[2], texts))


def export_shards(run: Path, to: str, images: str | None = None, size: int = 5 * 10**8) -> Exported:
    """Writes pairs and photos as `data_gen.export_shards` says, and statements beside them.

    Args:
      to: `wds:DIR/NAME-{000000..}.tar`, or the same with `parquet:`.
      images: where the photos are; None: as the run says.
      size: bytes from which on a shard is full.

    Raises InputError as `export`, and where none of the photos can be read.
    """
    config = read_manifest(run)["config"]
    images = images or config["input"]["images"]
    if not images:
        raise InputError("the run read no photos: give --images=DIR, from which they are taken")
    shards = Shards(to, open_images(images), size)
    said = ((_pair(one), one.statements) for one in _accepted(run, config))
    photos = itertools.groupby(said, lambda x: (x[0].image_id, x[0].image))
    number, path = 0, shards.folder / "statements.parquet"

    def written_beside() -> Iterator[list[Statement] | None]:
        nonlocal number
        for name, photo in shards.write(Photo.of(list(group)) for _, group in photos):
            number += len(photo.statements)
            for found in photo.statements:
                yield None if found is None else [x._replace(image=name) for x in found]

    with _reported(shards.folder):
        shards.folder.mkdir(parents=True, exist_ok=True)
        with _alone(shards.folder):
            texts = statements.write(path, written_beside())
    if not number:
        raise InputError(
            f"none of the {len(shards.left_out)} photos can be read from {images}, e.g. "
            f"{first(shards.left_out, 3)}: give --images"
        )
    training = {"pairs": shards.spec, "images": shards.spec} | _of_statements(path, texts)
    return Exported([shards.spec, path], number, texts, training, shards.left_out)


def _of_statements(path: Path, count: int) -> dict[str, str]:
    return {"statements": str(path)} if count else {}


@contextlib.contextmanager
def _reported(to: Path) -> Iterator[None]:
    """Raises InputError for what cannot be written."""
    try:
        yield
    except PairError as error:
        raise InputError(str(error), status=5) from None
    except OSError as error:
        raise InputError(f"{to} could not be written ({error.strerror or error})", 5) from None


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Raises InputError where another process exports to a folder."""
    descriptor = atomic_files.lock(folder / ".export.lock")
    if descriptor is None:
        raise InputError(f"another process exports to {folder}: wait for it or end it")
    try:
        yield
    finally:
        os.close(descriptor)


def _accepted(run: Path, config: Mapping[str, Any]) -> Iterator[statements.Exported]:
    """The pairs to export; raises InputError for none."""
    one = None
    for one in statements.exported(run, config):
        yield one
    if one is None:
        raise InputError(f"{run} has no accepted pair; `python -m data_gen report` shows why")


def _pair(one: statements.Exported) -> Pair:
    row = one.pair
    provenance = f"data_gen {row['pipeline']}, {row['models']['rewrite'] or row['rewriter']}"
    return Pair(
        row["file_name"],
        row["caption"],
        row["negated_caption"],
        tuple(one.foils),
        row["object"],
        f"{provenance}, run {row['run_id']}",
        image_id=row["image_id"],
    )


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
