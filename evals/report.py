"""`report.html`: what `results.json` and `predictions.parquet` say, as one page to look at.

Items are shown where models differ most, with their photos as thumbnails. With two or more models
they are ordered by what changed from the first to the last one: first losses (it was right and is
wrong), worst first, then wins, best first. With one model, its worst mistakes and its surest right
answers.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from evals.images import DataRoots, ImageRef
from evals.interpolate import best_alpha_text
from evals.results import PREDICTIONS, RESULTS, headlines
from negclip_jax.common import strict_json
from negclip_jax.common.errors import InputError
from negclip_jax.common.page import charts
from negclip_jax.common.page.template import write_page
from negclip_jax.common.page.thumbnails import thumbnail
from negclip_jax.common.statistics import percent, ties_text

PAGE = "report.html"
_GALLERY_MODELS = 3  # first, second and last: more do not fit a phone


def write(out: Path, roots: DataRoots, *, gallery: int) -> Path:
    """Makes the page of what is in `out`, with `gallery` items of each benchmark."""
    document = strict_json.read_json(out / RESULTS)
    models, summary, sections = list(document["settings"]["models"]), [], []
    for name, entry in document["benchmarks"].items():
        if not entry["rows"] and not entry["errors"]:
            continue
        rows, shown = entry["rows"], headlines(entry)
        every = dict.fromkeys(metric for row in rows.values() for metric in row["metrics"])
        found = {metric: metric_row(name, entry, metric, models) for metric in (*shown, *every)}
        strict = [f"{metric}_strict" for metric in shown if f"{metric}_strict" in every]
        first = dict.fromkeys((*shown, *strict))
        scored = {model: place for place, model in enumerate(models) if model in rows}
        if len(scored) > _GALLERY_MODELS:
            names = list(scored)
            scored = {n: scored[n] for n in (*names[: _GALLERY_MODELS - 1], names[-1])}
        summary += [found[metric] for metric in shown]
        sections.append(
            {
                "anchor": name,
                "entry": entry,
                "headlines": shown,
                "first": [found[metric] for metric in first],
                "more": [found[metric] for metric in every if metric not in first],
                "ties": {c: _ties(groups, models) for c, groups in entry["breakdowns"].items()},
                "gallery": build_gallery(out / PREDICTIONS, name, scored, roots, size=gallery),
            }
        )
    interpolation = document.get("interpolation")
    return write_page(
        out / PAGE,
        Path(__file__).with_name("report.html"),
        models=document["settings"]["models"],
        verdict=verdict(document),
        summary=summary,
        sections=sections,
        interpolation=interpolation,
        interpolation_text=interpolation and best_alpha_text(interpolation),
        environment=document["environment"],
    )


def verdict(document: Mapping[str, Any]) -> list[str]:
    """What rose, what fell and what cannot be told apart, from the first model to the last one.

    A sentence about the benchmarks of negation and one about those of retention, by the first
    headline number of each, in points, and whether there is none of retention; nothing of one
    model alone.
    """
    models, sentences = list(document["settings"]["models"]), []
    for kind in ("Negation", "Retention"):
        found: dict[str, list[str]] = {"rose": [], "fell": [], "cannot be told apart": []}
        for entry in document["benchmarks"].values():
            pair = entry["comparisons"].get(f"{models[0]} -> {models[-1]}", {})
            change = pair.get("metrics", {}).get(next(iter(headlines(entry)), None))
            if change and bool(entry.get("retention")) == (kind == "Retention"):
                rose = "rose" if change["difference"] > 0 else "fell"
                points = f"{entry['title']} ({100 * change['difference']:+.1f})"
                found[rose if change["separable"] else "cannot be told apart"].append(points)
        told = [f"{how}: {', '.join(titles)}" for how, titles in found.items() if titles]
        if told:
            sentences.append(f"{kind} {'; '.join(told)}.")
        elif sentences:  # a rise of negation alone is half of the story
            sentences.append("No benchmark of retention was scored.")
    return sentences


def metric_row(
    name: str, entry: Mapping[str, Any], metric: str, models: Sequence[str]
) -> dict[str, Any]:
    """One line of a table: a value per model, its change, published values and a plot.

    Also the strict value where it differs from the official one.
    """
    found = [entry["rows"].get(m, {}).get("metrics", {}).get(metric) for m in models]
    compared = [entry["comparisons"].get(f"{models[0]} -> {m}", {}) for m in models]
    published = [p for p in entry["published"] if p["metric"] == metric]
    chance = next((value["chance"] for value in found if value), None)
    strict = [entry["rows"].get(m, {}).get("metrics", {}).get(f"{metric}_strict") for m in models]
    size = entry.get("size") or entry["total"]
    published_of = size if published and entry["scored"] != size else None
    return {
        "anchor": name,
        "entry": entry,
        "metric": metric.replace("_", " "),
        "n": max((value["n"] for value in found if value), default=0),
        "found": found,
        "changes": [comparison.get("metrics", {}).get(metric) for comparison in compared],
        "published": published,
        "published_of": published_of,  # items, where others were scored
        "strict": [  # where it differs as shown
            s["value"] if s and v and percent(s["value"]) != percent(v["value"]) else None
            for s, v in zip(strict, found, strict=True)
        ],
        "plot": charts.intervals(
            found, chance=chance, published=published, published_of=published_of
        ),
    }


def _ties(groups: Mapping[str, Mapping[str, Any]], models: Sequence[str]) -> str:
    """Of all groups of a breakdown, under the model that has the most: "; 2 of 9 items tie"."""
    found = [[rows[model] for rows in groups.values() if model in rows] for model in models]
    sums = [{k: sum(row.get(k, 0) for row in rows) for k in ("ties", "n")} for rows in found]
    text = ties_text(max(sums, key=lambda each: each["ties"]))
    return text and f"; {text}"


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


def build_gallery(
    predictions: Path, benchmark: str, models: Mapping[str, int], roots: DataRoots, *, size: int
) -> list[tuple[str, list[dict[str, Any]]]]:
    """The gallery of a benchmark, titled lists of items; empty where no model has predictions.

    `models` are name and place (its colour) of those to show; the first and last one are compared.
    Each item has `rows`, the place and the prediction of every model, and `photos`.
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
    gallery = []
    for title, places in choose(rows, size):
        items = []
        for i in places:
            boxes = [box and tuple(box) for box in rows[0][i]["boxes"]]
            refs = map(ImageRef, rows[0][i]["images"], boxes)
            photos = [{"url": photo_url(ref), "path": ref.path} for ref in refs]
            scored = zip(models.values(), (each[i] for each in rows), strict=True)
            items.append({"rows": list(scored), "photos": photos})
        if items:
            gallery.append((title, items))
    return gallery


def _photo_url(roots: DataRoots, ref: ImageRef) -> str:
    """A photo as a small data URL; one that cannot be read is an empty string."""
    try:
        return thumbnail(ref.open(roots))
    except InputError:
        return ""
