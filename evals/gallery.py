"""Items for the report: the ones where models differ most, with their photos as thumbnails.

With two or more models, items are ordered by what changed from the first to the last one: first
losses (it was right and is wrong), worst first, then wins, best first. With one model, its worst
mistakes and its surest right answers.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from evals.images import DataRoots, ImageRef
from negclip_jax.common.errors import InputError
from negclip_jax.common.page.thumbnails import thumbnail


def choose(rows: Sequence[Sequence[Mapping]], size: int) -> list[tuple[str, list[int]]]:
    """Which items to show, from each model's predictions: titled lists of places, `size` in all."""
    first, last = rows[0], rows[-1]
    margins = np.array([margin(row) for row in last])
    right = np.array([row["right"] for row in last])
    if len(rows) > 1:
        gain = margins - np.array([margin(row) for row in first])
        before = np.array([row["right"] for row in first])
        order = np.argsort(gain, kind="stable")
        lost = [i for i in order if right[i] < before[i]]
        won = [i for i in order[::-1] if right[i] > before[i]]
        titles = {"Lost: right before, wrong after": lost, "Won: wrong before, right after": won}
    else:
        order = np.argsort(margins, kind="stable")
        wrong = [i for i in order if right[i] < 1]
        sure = [i for i in order[::-1] if right[i] == 1]
        titles = {"Worst mistakes": wrong, "Surest right answers": sure}
    return halves(titles, size)


def halves(titles: Mapping[str, Sequence[int]], size: int) -> list[tuple[str, Sequence[int]]]:
    """The first of two titled lists of places: half of `size` of each, more where one is short."""
    (first, bad), (second, good) = titles.items()
    bad = bad[: max(size // 2, size - len(good))]
    return [(first, bad), (second, good[: size - len(bad)])]


def margin(row: Mapping[str, Any]) -> float:
    """Lowest score of a right option minus the highest of a wrong one."""
    answers = set(row["answers"])
    scores = [-np.inf if s is None else s for s in row["scores"]]
    true = [s for i, s in enumerate(scores) if i in answers]
    false = [s for i, s in enumerate(scores) if i not in answers]
    return min(true, default=0.0) - max(false, default=0.0)


def build(
    predictions: Path,
    benchmark: str,
    models: Mapping[str, int],
    roots: DataRoots,
    *,
    groups: Sequence[str],
    size: int,
) -> list[tuple[str, list[dict[str, Any]]]]:
    """The gallery of a benchmark, titled lists of items; empty where no model has predictions.

    Args:
      models: name to place (its colour) of those to show; the first and last one are compared.
      groups: columns to show with an item.
      size: items in all.
    """
    if not models or not size or not predictions.is_file():
        return []
    table = pq.read_table(predictions, filters=[("benchmark", "==", benchmark)])
    by_model = [
        {row["item"]: row for row in table.filter(pa.compute.equal(table["row"], m)).to_pylist()}
        for m in models
    ]
    shared = [item for item in by_model[0] if all(item in rows for rows in by_model)]
    if not shared:
        return []
    rows = [[rows[item] for item in shared] for rows in by_model]
    photo_url = functools.cache(functools.partial(_photo_url, roots))
    return [
        (
            title,
            [_item([r[i] for r in rows], list(models.values()), photo_url, groups) for i in places],
        )
        for title, places in choose(rows, size)
        if places
    ]


def _photo_url(roots: DataRoots, ref: ImageRef) -> str:
    """A photo as a small data URL; one that cannot be read is an empty string."""
    try:
        return thumbnail(ref.open(roots))
    except InputError:
        return ""


def _item(
    rows: Sequence[Mapping],
    places: Sequence[int],
    photo_url: Callable[[ImageRef], str],
    groups: Sequence[str],
) -> dict[str, Any]:
    """What the template shows of one item: photos, options and each model's scores of them."""
    first = rows[0]
    boxes = [box and tuple(box) for box in first["boxes"]]
    refs = [ImageRef(path, box) for path, box in zip(first["images"], boxes, strict=True)]
    photos = [{"url": photo_url(ref), "path": ref.path} for ref in refs]
    of_images = len(refs) == len(first["scores"]) > 1
    labels = photos if of_images else first["texts"]
    options = [
        {
            "photo": label if of_images else None,
            "text": "" if of_images else label,
            "true": i in first["answers"],
            "scores": [
                {"place": place, "value": row["scores"][i], "chosen": i in row["predicted"]}
                for place, row in zip(places, rows, strict=True)
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
