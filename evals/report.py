"""`report.html`: what `results.json` and `predictions.parquet` say, as one page to look at.

The page needs no network and no server: plots are inline SVG, photos are thumbnails in data URIs,
and every caption is escaped, since a caption may contain markup.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evals import gallery as galleries
from evals import pages, plots
from evals.images import DataRoots
from evals.interpolate import sentence
from evals.results import PREDICTIONS, RESULTS, change_text, headlines

PAGE = "report.html"
_GALLERY_MODELS = 3  # first, second and last: more do not fit a phone


def write(out: Path, roots: DataRoots, *, gallery: int) -> Path:
    """Makes the page from the files in `out`.

    Args:
      out: folder with `results.json`, perhaps `predictions.parquet`.
      roots: where photos are; a photo that is gone by now is left out.
      gallery: items to show for each benchmark.
    """
    document = json.loads((out / RESULTS).read_text(encoding="utf-8"))
    thumbnails = galleries.Thumbnails(roots)
    models = list(document["settings"]["models"])
    entries = {n: e for n, e in document["benchmarks"].items() if e["rows"] or e["errors"]}
    sections = [
        _section(name, entry, models)
        | {"gallery": _gallery(out, name, entry, models, thumbnails, gallery)}
        for name, entry in entries.items()
    ]
    page = pages.render(
        PAGE,
        models=[
            {
                "name": name,
                "colour": plots.colour(i),
                "facts": model["facts"],
                "training": model["facts"].get("training", ""),
            }
            for i, (name, model) in enumerate(document["settings"]["models"].items())
        ],
        summary=[row for name, entry in entries.items() for row in _summary(name, entry, models)],
        sections=sections,
        subsets=[entry["title"] for entry in entries.values() if entry["subset"]],
        interpolation=_interpolation(document),
        environment=document["environment"],
    )
    (out / PAGE).write_text(page, encoding="utf-8")
    return out / PAGE


def _gallery(
    out: Path,
    name: str,
    entry: Mapping[str, Any],
    models: Sequence[str],
    thumbnails: galleries.Thumbnails,
    size: int,
) -> list[galleries.Shown]:
    scored = [(m, plots.colour(i)) for i, m in enumerate(models) if m in entry["rows"]]
    if len(scored) > _GALLERY_MODELS:
        scored = [*scored[: _GALLERY_MODELS - 1], scored[-1]]
    groups = list(entry["breakdowns"])
    return galleries.build(out / PREDICTIONS, name, scored, thumbnails, groups=groups, size=size)


def _summary(name: str, entry: Mapping[str, Any], models: Sequence[str]) -> list[dict[str, Any]]:
    return [metric_row(name, entry, metric, models) for metric in headlines(entry)]


def metric_row(
    name: str, entry: Mapping[str, Any], metric: str, models: Sequence[str]
) -> dict[str, Any]:
    """One line of a table: a value per model, its change, published values and a plot."""
    found = [entry["rows"].get(m, {}).get("metrics", {}).get(metric) for m in models]
    published = [p for p in entry["published"] if p["metric"] == metric]
    chance = next((value["chance"] for value in found if value), None)
    return {
        "anchor": name,
        "title": entry["title"],
        "metric": metric.replace("_", " "),
        "subset": entry["subset"],
        "scored": entry["scored"],
        "total": entry["total"],
        "n": max((value["n"] for value in found if value), default=0),
        "cells": [_cell(entry, metric, models, i, value) for i, value in enumerate(found)],
        "published": published,
        "plot": plots.intervals(found, chance=chance, published=published),
    }


def _cell(
    entry: Mapping[str, Any], metric: str, models: Sequence[str], i: int, value: Mapping | None
) -> dict[str, Any]:
    cell = {"model": models[i], "colour": plots.colour(i), "value": None, "change": None}
    if value is None:
        return cell | {"error": entry["errors"].get(models[i], "")}
    compared = entry["comparisons"].get(f"{models[0]} -> {models[i]}", {}).get("metrics", {})
    change = compared.get(metric)
    return cell | {
        **{key: f"{100 * value[key]:.1f}" for key in ("value", "low", "high")},
        "n": value["n"],
        "method": value["method"],
        "change": change and change_text(change),
        "separable": bool(change and change["separable"]),
    }


def _section(name: str, entry: Mapping[str, Any], models: Sequence[str]) -> dict[str, Any]:
    """Everything about one benchmark but its gallery."""
    shown = headlines(entry)
    every = dict.fromkeys(metric for row in entry["rows"].values() for metric in row["metrics"])
    strict = [f"{metric}_strict" for metric in shown if f"{metric}_strict" in every]
    first = [*shown, *strict]
    others = [metric for metric in every if metric not in first]
    controls = [row for row, value in entry["rows"].items() if value["control"]]
    return {
        **{k: entry[k] for k in ("title", "task", "source", "licence", "notes", "subset")},
        **{k: entry[k] for k in ("scored", "total", "missing", "errors", "file")},
        "anchor": name,
        "metrics": [
            {"rows": [metric_row(name, entry, m, models) for m in part], "folded": folded}
            for part, folded in ((first, False), (others, True))
        ],
        "others": _other_comparisons(entry, shown, models),
        "controls": [
            {"title": row, "metrics": [_control(entry, row, metric) for metric in shown]}
            for row in controls
        ],
        "plots": [
            {"title": entry["sentences"][column], "svg": plots.breakdown(groups, models)}
            for column, groups in entry["breakdowns"].items()
            if len(groups) > 1
        ],
    }


def _other_comparisons(
    entry: Mapping[str, Any], metrics: Sequence[str], models: Sequence[str]
) -> list[str]:
    """What the tables leave out: pairs without the first model, such as control and tuned."""
    return [
        f"{found['before']} → {found['after']}: {metric.replace('_', ' ')} {change_text(change)}"
        for found in entry["comparisons"].values()
        if found["before"] != models[0] and len(models) <= plots.COLOURS
        for metric in metrics
        if (change := found["metrics"].get(metric))
    ]


def _control(entry: Mapping[str, Any], row: str, metric: str) -> str:
    value = entry["rows"][row]["metrics"].get(metric)
    if value is None:
        return ""
    low, middle, high = (f"{100 * value[key]:.1f}" for key in ("low", "value", "high"))
    return f"{metric.replace('_', ' ')} {middle} % [{low}, {high}]"


def _interpolation(document: Mapping[str, Any]) -> dict[str, Any] | None:
    found = document.get("interpolation")
    if found is None:
        return None
    svg = plots.curve(found["points"], found["best"])
    return {"svg": svg, "sentence": sentence(found), "benchmarks": found["benchmarks"]}
