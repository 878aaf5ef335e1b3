"""`report.html` of segmentation: the numbers, and masks over photos where the towers differ most.

Masks of the phrases that are shown are drawn again: keeping all of them would take a megabyte each.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evals.images import DataRoots
from evals.report import halves, metric_row
from evals.results import headlines
from evals.segmentation import masks, metrics, scoring
from evals.segmentation.scoring import Towers
from evals.segmentation.sources import Phrase, PhraseSet
from negclip_jax.common.page.template import write_page
from negclip_jax.common.page.thumbnails import thumbnail

PAGE = "report.html"
THRESHOLD = 0.3  # of the masks that are drawn and compared
_SIDE = 300  # pixels of the longer side of a picture
_TINT = (230, 126, 34)  # one for all models: a paler mask would look like a smaller one
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
    """Makes the page; `towers` draw the masks that are shown, `size` of each set, once more."""
    models = list(document["settings"]["models"])
    first, last = models[0], models[-1]
    galleries = {}
    for found in sets:
        phrases = {phrase.item: phrase for phrase in found.phrases}
        chosen = choose(rows[found.name], first, last, size) if rows[found.name] else []
        galleries[found.name] = [
            (title, [_shown(phrases[item], ious, towers, roots) for item, *ious in part])
            for title, part in chosen
        ]
    benchmarks = document["benchmarks"]
    return write_page(
        out / PAGE,
        Path(__file__).with_name("page.html"),
        document=document,
        models=document["settings"]["models"],
        summary=[metric_row(n, e, headlines(e)[0], models) for n, e in benchmarks.items()],
        rows={
            name: [metric_row(name, entry, m, models) for m in entry["rows"][first]["metrics"]]
            for name, entry in benchmarks.items()
        },
        galleries=galleries,
        thresholds=metrics.THRESHOLDS.tolist(),
        threshold=THRESHOLD,
    )


def choose(
    rows: Mapping[str, Mapping[str, Any]], first: str, last: str, size: int
) -> list[tuple[str, list[tuple[str, float, float]]]]:
    """Phrases of the worst losses and best wins, titled: (item, IoU before, IoU after)."""
    items, column = list(rows), metrics.column(THRESHOLD)
    before, after = (
        scoring.counts(list(rows.values()), name).ious()[:, column] for name in (first, last)
    )
    change = after - before
    order = np.argsort(change, kind="stable")
    lost = [i for i in order if change[i] < -metrics.MOVED]
    won = [i for i in order[::-1] if change[i] > metrics.MOVED]
    chosen = halves({"Worst losses": lost, "Best wins": won}, size)
    return [
        (title, [(items[i], float(before[i]), float(after[i])) for i in places])
        for title, places in chosen
        if places
    ]


def overlay(
    photo: Image.Image, truth: np.ndarray, mask: np.ndarray | None, tint: Sequence[int]
) -> Image.Image:
    """An RGB photo with the outline of the true mask, and a mask over it in a tint (RGB).

    The masks are bool, of any size; without a second one the truth is shown alone.
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


def _shown(
    phrase: Phrase, ious: Sequence[float], towers: Towers, roots: DataRoots
) -> dict[str, Any]:
    """One phrase for the page: the photo, and the mask of the first and the last tower."""
    image, (truth,), drawn = scoring.look(towers, [phrase], roots)
    image.thumbnail((_SIDE, _SIDE))
    names = list(drawn)
    pictures = [
        {"caption": "true mask", "url": thumbnail(overlay(image, truth, None, _RIM), _SIDE)}
    ]
    for place, iou in zip((0, len(names) - 1), ious, strict=True):
        mask = drawn[names[place]][0] > THRESHOLD
        picture = thumbnail(overlay(image, truth, mask, _TINT), _SIDE)
        pictures.append({"caption": names[place], "place": place, "iou": iou, "url": picture})
    return {"phrase": phrase, "pictures": pictures}
