"""`report.html`: what `results.json` and `predictions.parquet` say, as one page to look at."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.gallery import build
from evals.images import DataRoots
from evals.interpolate import best_alpha_text
from evals.results import PREDICTIONS, RESULTS, headlines
from negclip_jax.common import strict_json
from negclip_jax.common.page import charts
from negclip_jax.common.page.template import write_page
from negclip_jax.common.statistics import change_text, interval_text, ties_text

PAGE = "report.html"
_GALLERY_MODELS = 3  # first, second and last: more do not fit a phone


def write(out: Path, roots: DataRoots, *, gallery: int) -> Path:
    """Makes the page from the files in `out`, with `gallery` items of each benchmark.

    A photo that is gone by now is left out.
    """
    document = strict_json.read_json(out / RESULTS)
    entries = {n: e for n, e in document["benchmarks"].items() if e["rows"] or e["errors"]}
    models = list(document["settings"]["models"])
    interpolation, galleries = document.get("interpolation"), {}
    for name, entry in entries.items():
        scored = {model: place for place, model in enumerate(models) if model in entry["rows"]}
        if len(scored) > _GALLERY_MODELS:
            names = list(scored)
            scored = {n: scored[n] for n in (*names[: _GALLERY_MODELS - 1], names[-1])}
        groups = list(entry["breakdowns"])
        galleries[name] = build(out / PREDICTIONS, name, scored, roots, groups=groups, size=gallery)
    return write_page(
        out / PAGE,
        Path(__file__).with_name("report.html"),
        models=document["settings"]["models"],
        summary=[
            metric_row(name, entry, metric, models)
            for name, entry in entries.items()
            for metric in headlines(entry)
        ],
        sections=[
            _section(name, entry, models) | {"gallery": galleries[name]}
            for name, entry in entries.items()
        ],
        subsets=[entry["title"] for entry in entries.values() if entry["subset"]],
        interpolation=interpolation,
        interpolation_text=interpolation and best_alpha_text(interpolation),
        environment=document["environment"],
    )


def metric_row(
    name: str, entry: Mapping[str, Any], metric: str, models: Sequence[str]
) -> dict[str, Any]:
    """One line of a table: a value per model, its change, published values and a plot."""
    found = [entry["rows"].get(m, {}).get("metrics", {}).get(metric) for m in models]
    compared = [entry["comparisons"].get(f"{models[0]} -> {m}", {}) for m in models]
    published = [p for p in entry["published"] if p["metric"] == metric]
    chance = next((value["chance"] for value in found if value), None)
    return {
        "anchor": name,
        "entry": entry,
        "metric": metric.replace("_", " "),
        "n": max((value["n"] for value in found if value), default=0),
        "found": found,
        "changes": [comparison.get("metrics", {}).get(metric) for comparison in compared],
        "published": published,
        "plot": charts.intervals(found, chance=chance, published=published),
    }


def _section(name: str, entry: Mapping[str, Any], models: Sequence[str]) -> dict[str, Any]:
    """Everything about one benchmark but its gallery."""
    rows, shown = entry["rows"], headlines(entry)
    every = dict.fromkeys(metric for row in rows.values() for metric in row["metrics"])
    first = [*shown, *(f"{metric}_strict" for metric in shown if f"{metric}_strict" in every)]
    # What the tables leave out: pairs without the first model, such as control and tuned.
    others = [
        f"{found['before']} → {found['after']}: {metric.replace('_', ' ')} {change_text(change)}"
        for found in entry["comparisons"].values()
        if found["before"] != models[0] and len(models) <= charts.COLOURS
        for metric in shown
        if (change := found["metrics"].get(metric))
    ]
    return {
        "anchor": name,
        "entry": entry,
        "first": [metric_row(name, entry, m, models) for m in first],
        "more": [metric_row(name, entry, m, models) for m in every if m not in first],
        "other_comparisons": others,
        "controls": {
            row: [
                " ".join(
                    [metric.replace("_", " "), interval_text(found, " %"), ties_text(found)]
                ).strip()
                for metric in shown
                if (found := value["metrics"].get(metric))
            ]
            for row, value in rows.items()
            if value["control"]
        },
        "plots": [
            {
                "title": entry["sentences"][column] + _ties(groups, models),
                "svg": charts.breakdown(groups, models),
            }
            for column, groups in entry["breakdowns"].items()
            if len(groups) > 1
        ],
    }


def _ties(groups: Mapping[str, Mapping[str, Any]], models: Sequence[str]) -> str:
    """Of all groups of a breakdown, under the model that has the most: "; 2 of 9 items tie"."""
    found = [[rows[model] for rows in groups.values() if model in rows] for model in models]
    sums = [{k: sum(row.get(k, 0) for row in rows) for k in ("ties", "n")} for rows in found]
    text = ties_text(max(sums, key=lambda each: each["ties"]))
    return text and f"; {text}"
