"""Items for the report: the ones where models differ most, with their photos as thumbnails.

With two or more models, items are ordered by what changed from the first to the last one: first
losses (it was right and is wrong), worst first, then wins, best first. With one model, its worst
mistakes and its surest right answers.
"""

import base64
import dataclasses
import functools
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from evals.images import DataRoots, ImageRef
from negclip_jax.common.errors import InputError

_SIDE, _QUALITY = 176, 78  # of a thumbnail: pixels of the longer side, JPEG quality


@dataclasses.dataclass(frozen=True)
class Shown:
    """Items for one benchmark's gallery.

    Attributes:
      title: "lost", "won", ...
      items: each with `item`, `images` (data URIs), `options`, `groups`.
    """

    title: str
    items: list[dict[str, Any]]


def read(predictions: Path, benchmark: str, models: Sequence[str]) -> list[list[dict]]:
    """Predictions of the models on a benchmark, items they share, in the first one's order."""
    table = pq.read_table(predictions, filters=[("benchmark", "==", benchmark)])
    by_model = [
        {row["item"]: row for row in table.filter(pa.compute.equal(table["row"], m)).to_pylist()}
        for m in models
    ]
    shared = [item for item in by_model[0] if all(item in rows for rows in by_model)]
    return [[rows[item] for item in shared] for rows in by_model]


def choose(rows: Sequence[Sequence[Mapping]], size: int) -> list[tuple[str, list[int]]]:
    """Which items to show: titled lists of places, `size` in all at most.

    Args:
      rows: predictions of each model, item by item.
    """
    first, last = rows[0], rows[-1]
    margins = np.array([margin(row) for row in last])
    right = np.array([row["right"] for row in last])
    if len(rows) > 1:
        gain = margins - np.array([margin(row) for row in first])
        before = np.array([row["right"] for row in first])
        order = np.argsort(gain, kind="stable")
        lost = [i for i in order if right[i] < before[i]]
        won = [i for i in order[::-1] if right[i] > before[i]]
        titles = ("Lost: right before, wrong after", lost), ("Won: wrong before, right after", won)
    else:
        order = np.argsort(margins, kind="stable")
        wrong = [i for i in order if right[i] < 1]
        sure = [i for i in order[::-1] if right[i] == 1]
        titles = ("Worst mistakes", wrong), ("Surest right answers", sure)
    (first_title, bad), (second_title, good) = titles
    bad = bad[: max(size // 2, size - len(good))]
    return [(first_title, bad), (second_title, good[: size - len(bad)])]


def margin(row: Mapping[str, Any]) -> float:
    """Lowest score of a right option minus the highest of a wrong one."""
    answers = set(row["answers"])
    scores = [-np.inf if s is None else s for s in row["scores"]]
    true = [s for i, s in enumerate(scores) if i in answers]
    false = [s for i, s in enumerate(scores) if i not in answers]
    return min(true, default=0.0) - max(false, default=0.0)


class Thumbnails:
    """Photos as small JPEG data URIs; one that cannot be read is an empty string."""

    def __init__(self, roots: DataRoots):
        self._roots = roots
        self.of = functools.lru_cache(4096)(self._make)

    def _make(self, ref: ImageRef) -> str:
        try:
            image = self._roots.open(ref)
        except InputError:
            return ""
        image.thumbnail((_SIDE, _SIDE))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=_QUALITY)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def build(
    predictions: Path,
    benchmark: str,
    models: Sequence[tuple[str, str]],
    thumbnails: Thumbnails,
    *,
    groups: Sequence[str],
    size: int,
) -> list[Shown]:
    """The gallery of a benchmark; empty where no model has predictions.

    Args:
      predictions: the parquet file.
      benchmark: its name.
      models: (name, colour) of those to show; the first and the last one are compared.
      thumbnails: makes them.
      groups: columns to show with an item.
      size: items in all.
    """
    if not models or not size or not predictions.is_file():
        return []
    rows = read(predictions, benchmark, [name for name, _ in models])
    if not rows[0]:
        return []
    return [
        Shown(title, [_item([r[i] for r in rows], models, thumbnails, groups) for i in places])
        for title, places in choose(rows, size)
        if places
    ]


def _item(
    rows: Sequence[Mapping],
    models: Sequence[tuple[str, str]],
    thumbnails: Thumbnails,
    groups: Sequence[str],
) -> dict[str, Any]:
    first = rows[0]
    boxes = [box and tuple(box) for box in first["boxes"]]
    refs = [ImageRef(path, box) for path, box in zip(first["images"], boxes, strict=True)]
    photos = [{"uri": thumbnails.of(ref), "path": ref.path} for ref in refs]
    of_images = len(refs) == len(first["scores"]) > 1
    labels = photos if of_images else first["texts"]
    options = [
        {
            "photo": label if of_images else None,
            "text": "" if of_images else label,
            "true": i in first["answers"],
            "scores": [
                {
                    "model": name,
                    "colour": colour,
                    "value": row["scores"][i],
                    "chosen": i in row["predicted"],
                }
                for (name, colour), row in zip(models, rows, strict=True)
            ],
        }
        for i, label in enumerate(labels)
    ]
    return {
        "item": first["item"],
        "photos": [] if of_images else photos,
        "text": first["texts"][0] if of_images else "",
        "options": options,
        "groups": {k: v for k, v in first["groups"] if k in groups and v != "none"},
    }
