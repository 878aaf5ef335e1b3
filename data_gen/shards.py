"""A run in parts: which images make a shard, whether it is done, and its files.

A shard's tables are written first and its mark in `done/` last, so that a mark stands for complete
tables. The mark holds the fingerprint of settings and images that it was made with: after a change
of either the shard is made again, from cached answers as far as they still fit.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_gen.records import SCHEMAS, write_table
from data_gen.work import ImageItem, Rows
from negclip_jax.common import storage
from negclip_jax.common.provenance import content_hash


@dataclass(frozen=True)
class Shard:
    """A run of images, in order of their ids.

    Attributes:
      number: from 0; part of the files' names.
      images: its images.
      fingerprint: of settings and images.
    """

    number: int
    images: tuple[ImageItem, ...]
    fingerprint: str

    @property
    def name(self) -> str:
        return f"part-{self.number:05d}.parquet"


def cut(images: Sequence[ImageItem], size: int, settings: str) -> list[Shard]:
    """Shards of `size` images; `settings` is the fingerprint of the settings."""
    shards = []
    for number, start in enumerate(range(0, len(images), size)):
        part = tuple(images[start : start + size])
        content = [image.content for image in part]
        shards.append(Shard(number, part, content_hash([settings, content])))
    return shards


def mark_path(run: Path, shard: Shard) -> Path:
    return run / "done" / f"part-{shard.number:05d}.json"


def is_done(run: Path, shard: Shard) -> bool:
    """Whether the shard's tables are complete and belong to the same settings and images."""
    try:
        mark = json.loads(mark_path(run, shard).read_text(encoding="utf-8"))
        present = all((run / name / shard.name).is_file() for name in SCHEMAS)
        return present and mark["fingerprint"] == shard.fingerprint
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write(run: Path, shard: Shard, parts: Iterable[Rows]) -> dict[str, Any]:
    """Writes the tables of a shard, then its mark; returns the counts in the mark."""
    parts = list(parts)
    tables = {name: [row for rows in parts for row in getattr(rows, name)] for name in SCHEMAS}
    mark_path(run, shard).unlink(missing_ok=True)  # the former mark is not for the new tables
    hashes = {}
    for name, rows in tables.items():
        path = run / name / shard.name
        write_table(path, name, rows)
        hashes[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    counts = {name: len(rows) for name, rows in tables.items()}
    counts["images"] = len(shard.images)
    counts["accepted"] = sum(row["accepted"] for row in tables["pairs"])
    mark = {"fingerprint": shard.fingerprint, "rows": counts, "sha256": hashes}
    mark_path(run, shard).parent.mkdir(exist_ok=True)
    storage.write_json(mark_path(run, shard), mark, sort_keys=True)
    return counts


def left_to_do(run: Path, every: Sequence[Shard]) -> list[Shard]:
    """The shards that are not done; parts in the run directory that belong to none are removed."""
    done, left = [], []
    for shard in every:
        (done if is_done(run, shard) else left).append(shard)
    remove_others(run, done)
    return left


def remove_others(run: Path, done: Sequence[Shard]) -> None:
    """Removes every part but those of the shards that are done.

    What is left of a longer run, or of one with other settings, must not be counted or exported
    while the run is on its way.
    """
    tables = {shard.name for shard in done}
    for name in SCHEMAS:
        for path in (run / name).glob("part-[0-9]*.parquet"):
            if path.name not in tables:
                path.unlink()
    marks = {mark_path(run, shard).name for shard in done}
    for path in (run / "done").glob("part-*.json"):
        if path.name not in marks:
            path.unlink()


def read_marks(run: Path) -> list[dict[str, Any]]:
    """Fingerprints and counts in the marks of all finished shards, in order."""
    marks = []
    for path in sorted((run / "done").glob("part-*.json")):
        with contextlib.suppress(ValueError, TypeError, KeyError):  # damaged: its shard is not done
            mark = json.loads(path.read_text(encoding="utf-8"))
            marks.append({"fingerprint": mark["fingerprint"], "rows": dict(mark["rows"])})
    return marks
