"""`report.html` of segmentation: the numbers, and masks over photos where the towers differ most.

Masks of the phrases that are shown are drawn again: keeping all of them would take a megabyte each.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evals import pages, plots, report
from evals.images import DataRoots
from evals.results import headlines
from evals.segmentation import masks, metrics, scoring
from evals.segmentation.phrases import Phrase, PhraseSet
from evals.segmentation.scoring import Towers

PAGE, _TEMPLATE = "report.html", "segmentation.html"
THRESHOLD = 0.3  # of the masks that are drawn and compared
_SIDE, _QUALITY = 300, 80  # of a picture: pixels of the longer side, JPEG quality
_TINTS = ((138, 143, 152), (230, 126, 34), (36, 80, 200), (122, 63, 176))  # about the page's --m0..
_TINTED = 0.55
_RIM, _EDGE = (255, 255, 255), (0, 0, 0)  # of the true outline


def write(
    out: Path,
    document: Mapping[str, Any],
    sets: Sequence[PhraseSet],
    rows: Mapping[str, Mapping[str, Mapping[str, Any]]],
    towers: Towers,
    roots: DataRoots,
    *,
    size: int,
) -> Path:
    """Makes the page.

    Args:
      out: folder of the page.
      document: of `results.json`.
      sets, rows: the phrases and what `scoring.score` found of them.
      towers: draw the masks.
      roots: where photos are.
      size: phrases to show of each set.
    """
    models = list(document["settings"]["models"])
    galleries = {
        found.name: _gallery(found, rows[found.name], towers, roots, size) for found in sets
    }
    page = pages.render(
        _TEMPLATE,
        models=[
            {"name": name, "colour": plots.colour(i), "facts": model["facts"]}
            for i, (name, model) in enumerate(document["settings"]["models"].items())
        ],
        summary=[
            report.metric_row(name, entry, metric, models)
            for name, entry in document["benchmarks"].items()
            for metric in headlines(entry)[:1]
        ],
        sections=[
            _section(name, entry, models)
            | {"gallery": galleries.get(name, []), "plots": _plots(document["curves"][name])}
            for name, entry in document["benchmarks"].items()
        ],
        protocol=document["protocol"],
        warnings=document["warnings"],
        threshold=THRESHOLD,
        environment=document["environment"],
    )
    (out / PAGE).write_text(page, encoding="utf-8")
    return out / PAGE


def choose(
    rows: Mapping[str, Mapping[str, Any]], first: str, last: str, size: int
) -> list[tuple[str, list[tuple[str, float, float]]]]:
    """Which phrases to show: titled lists of (item, IoU of `first`, IoU of `last`).

    Worst losses first, then best wins, `size` in all at most.
    """
    items, column = list(rows), metrics.column(THRESHOLD)
    before, after = (
        scoring.counts(list(rows.values()), name).ious()[:, column] for name in (first, last)
    )
    change = after - before
    order = np.argsort(change, kind="stable")
    lost = [i for i in order if change[i] < -metrics.MOVED]
    won = [i for i in order[::-1] if change[i] > metrics.MOVED]
    lost = lost[: max(size // 2, size - len(won))]
    chosen = (("Worst losses", lost), ("Best wins", won[: size - len(lost)]))
    return [
        (title, [(items[i], float(before[i]), float(after[i])) for i in places])
        for title, places in chosen
        if places
    ]


def overlay(
    photo: Image.Image, truth: np.ndarray, mask: np.ndarray | None, tint: Sequence[int]
) -> Image.Image:
    """A photo with the outline of the true mask, and a mask in a colour over it.

    Args:
      photo: in mode RGB.
      truth: bool, of any size.
      mask: bool, of any size; None to show the truth alone.
      tint: red, green, blue.
    """
    pixels = np.asarray(photo, np.float32).copy()
    if mask is not None:
        inside = _fitted(mask, photo.size)
        pixels[inside] = (1 - _TINTED) * pixels[inside] + _TINTED * np.float32(tint)
    shape = _fitted(truth, photo.size)
    pixels[masks.outline(shape, 3)] = _EDGE
    pixels[masks.outline(shape, 2)] = _RIM
    return Image.fromarray(pixels.astype(np.uint8))


def _fitted(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(image.resize(size, Image.Resampling.NEAREST)) > 0


def _gallery(
    found: PhraseSet,
    rows: Mapping[str, Mapping[str, Any]],
    towers: Towers,
    roots: DataRoots,
    size: int,
) -> list[dict[str, Any]]:
    names = list(towers.embeddings)
    by_item = {phrase.item: phrase for phrase in found.phrases}
    chosen = choose(rows, names[0], names[-1], size) if rows else []
    return [
        {
            "title": title,
            "items": [_shown(by_item[item], ious, towers, roots) for item, *ious in part],
        }
        for title, part in chosen
    ]


def _shown(
    phrase: Phrase, ious: Sequence[float], towers: Towers, roots: DataRoots
) -> dict[str, Any]:
    """One phrase for the page: the photo, and the mask of the first and the last tower."""
    image, (truth,), drawn = scoring.look(towers, [phrase], roots)
    image.thumbnail((_SIDE, _SIDE))
    names = list(drawn)
    shown = [{"caption": "true mask", "uri": _uri(overlay(image, truth, None, _RIM)), "iou": None}]
    for name, iou in zip((names[0], names[-1]), ious, strict=True):
        place = names.index(name)
        tint = _TINTS[place % len(_TINTS)]
        picture = overlay(image, truth, drawn[name][0] > THRESHOLD, tint)
        shown.append({"caption": name, "uri": _uri(picture), "iou": f"{100 * iou:.1f}"})
        shown[-1]["colour"] = plots.colour(place)
    return {"text": phrase.text, "path": phrase.image, "item": phrase.item, "pictures": shown}


def _uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _plots(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> list[dict[str, Any]]:
    """How the numbers depend on the threshold, for every model."""
    at = metrics.THRESHOLDS.tolist()
    by_threshold = [(at, curve["miou"]) for curve in curves.values()]
    by_recall = [(curve["recall"], curve["precision"]) for curve in curves.values()]
    return [
        {"title": "mIoU at every threshold",
         "svg": plots.lines(by_threshold, across="threshold", up="mIoU")},
        {"title": "precision against recall, over all pixels",
         "svg": plots.lines(by_recall, across="recall", up="precision")},
    ]  # fmt: skip


def _section(name: str, entry: Mapping[str, Any], models: Sequence[str]) -> dict[str, Any]:
    metric_names = list(next(iter(entry["rows"].values()))["metrics"])
    best = [m for m in metric_names if m.endswith("_best")]
    thresholds = [
        f"{row}: {m} at {entry['rows'][row]['metrics'][m]['threshold']:g}"
        for row in entry["rows"]
        for m in best
    ]
    return {
        "anchor": name,
        **{k: entry[k] for k in ("title", "task", "source", "file", "notes", "subset")},
        **{k: entry[k] for k in ("scored", "total")},
        "rows": [report.metric_row(name, entry, m, models) for m in metric_names],
        "thresholds": thresholds,
    }
