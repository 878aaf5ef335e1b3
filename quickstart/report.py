"""Write the quickstart's results: a table for the terminal, `results.json` and `report.html`.

The page needs no network: curves are inline SVG, pictures are data URIs, and every caption is
escaped.
"""

import base64
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from quickstart.questions import REQUIRED, ROWS

WIDTH, HEIGHT = 320, 130  # of a curve, in SVG units
NOTES = {
    "base": "before: affirmative captions only",
    "published": "after the published recipe: InfoNCE on negated captions",
    "tuned": "after this project's recipe: originals mixed in, captions chosen among foils",
}


@dataclass(frozen=True)
class Story:
    """Everything the report tells.

    Attributes:
      evaluation: what `quickstart.evaluate` wrote.
      images: folder of the held-out scenes.
      runs: name of a training run to its directory.
      commands: (command line, seconds) in order.
      seconds: in all.
    """

    evaluation: Mapping[str, Any]
    images: Path
    runs: Mapping[str, Path]
    commands: Sequence[tuple[str, float]]
    seconds: float


def write_report(story: Story, out: Path) -> None:
    """Writes `results.json` and `report.html` into `out`."""
    (out / "results.json").write_text(json.dumps(results(story), indent=2) + "\n", encoding="utf-8")
    (out / "report.html").write_text(render(story), encoding="utf-8")


def results(story: Story) -> dict[str, Any]:
    """`before` and `after` with the required rows, `published` for comparison, and `seconds`."""
    models = story.evaluation["models"]
    names = {"before": "base", "published": "published", "after": "tuned"}
    rows = {
        key: {row: models[name]["rows"][row] for row in REQUIRED}
        for key, name in names.items()
        if name in models
    }
    return {**rows, "seconds": round(story.seconds, 1)}


def render(story: Story) -> str:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True
    )
    models = story.evaluation["models"]
    first, last = models["base"]["rows"], models["tuned"]["rows"]
    return environment.get_template("report.html").render(
        headline=_headline(first, last),
        world="affirmative",
        cards=[_card(row, first, last) for row in REQUIRED],
        models=[{"name": name, "note": NOTES.get(name, "")} for name in models],
        rows=[_row(row, story.evaluation) for row in ROWS if row in first],
        groups=_groups(models),
        n=max(cell["n"] for cell in first.values()),
        curves=[_curve(name, path) for name, path in story.runs.items()],
        gallery=[_scene(item, story.images, list(models)) for item in story.evaluation["gallery"]],
        commands=[{"text": text, "seconds": round(s)} for text, s in story.commands],
        machine=machine(),
        seconds=round(story.seconds),
    )


def machine() -> str:
    """Processor cores and versions, for the foot of the page."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = f"Python {platform.python_version()}, JAX {metadata.version('jax')}"
    return f"{platform.machine()}, {cores} cores, {versions}"


def _headline(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    a, b = (100 * rows["existence"]["accuracy"] for rows in (before, after))
    return f"“There is no X”: right in {a:.0f} % of scenes before fine-tuning, in {b:.0f} % after"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _cell(tally: Mapping[str, Any]) -> dict[str, Any]:
    shown = {key: _percent(tally[key]) for key in ("accuracy", "low", "high")}
    return {**shown, "n": tally["n"]}


def _card(row: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, str]:
    return {
        "title": row.replace("_", " "),
        "before": _percent(before[row]["accuracy"]),
        "after": f"{_percent(after[row]['accuracy'])} %",
        "note": ROWS[row][0],
    }


def _row(row: str, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    what, chance = ROWS[row]
    tallies = [model["rows"][row] for model in evaluation["models"].values()]
    examples = [
        " / ".join(choice) for choices in evaluation["examples"].get(row, []) for choice in choices
    ]
    return {
        "name": row.replace("_", " "),
        "what": what,
        "cells": [_cell(tally) for tally in tallies],
        "plot": _intervals(tallies, chance),
        "examples": examples[:3],
    }


def _groups(models: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = models["base"]["groups"].get("unseen_cues", {})
    return [
        {"name": name, "cells": [_cell(m["groups"]["unseen_cues"][name]) for m in models.values()]}
        for name in names
    ]


def _intervals(tallies: Sequence[Mapping[str, Any]], chance: float) -> Markup:
    """A dot with a bar for each model, one under the other, on a line from 0 to 100 %."""
    width, step = 240, 14
    height = step * len(tallies) + 4

    def x(value: float) -> float:
        return round(4 + value * (width - 8), 1)

    marks = [
        f'<line x1="{x(chance)}" x2="{x(chance)}" y1="0" y2="{height}" '
        'stroke="var(--line)" stroke-dasharray="3 3"/>'
    ]
    for i, tally in enumerate(tallies):
        y = step * i + 9
        marks.append(
            f'<line x1="{x(tally["low"])}" x2="{x(tally["high"])}" y1="{y}" y2="{y}" '
            f'stroke="var(--m{i})" stroke-width="4" stroke-linecap="round" opacity=".45"/>'
            f'<circle cx="{x(tally["accuracy"])}" cy="{y}" r="4" fill="var(--m{i})"/>'
        )
    return Markup(f'<svg viewBox="0 0 {width} {height}">{"".join(marks)}</svg>')


def _curve(name: str, workdir: Path) -> dict[str, Any]:
    """Training loss and validation loss of a run against its steps."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    train = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    validation = [(line["step"], line["val/loss"]) for line in lines if "val/loss" in line]
    smooth = _smoothed(train, max(1, len(train) // 60))
    top = max(value for _, value in smooth + validation)
    last = max(step for step, _ in train)

    def points(series: Sequence[tuple[int, float]]) -> str:
        return " ".join(
            f"{30 + s / last * (WIDTH - 36):.1f},{8 + (1 - v / top) * (HEIGHT - 28):.1f}"
            for s, v in series
        )

    dots = "".join(
        f'<circle cx="{p.split(",")[0]}" cy="{p.split(",")[1]}" r="3.5" fill="var(--m1)"/>'
        for p in points(validation).split()
    )
    foot, right = HEIGHT - 20, WIDTH - 6
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        f'<line x1="30" y1="{foot}" x2="{right}" y2="{foot}" stroke="var(--line)"/>'
        f'<polyline fill="none" stroke="var(--m2)" stroke-width="2" points="{points(smooth)}"/>'
        f'{dots}<text x="2" y="14">{top:.1f}</text><text x="2" y="{foot}">0</text>'
        f'<text x="{right}" y="{HEIGHT - 5}" text-anchor="end">{last} steps</text></svg>'
    )
    note = f"loss {smooth[0][1]:.2f} → {smooth[-1][1]:.2f}; dots: validation"
    return {"name": name, "note": note, "svg": Markup(svg)}


def _smoothed(series: Sequence[tuple[int, float]], width: int) -> list[tuple[int, float]]:
    chunks = [series[i : i + width] for i in range(0, len(series), width)]
    return [(chunk[-1][0], sum(v for _, v in chunk) / len(chunk)) for chunk in chunks]


def _scene(item: Mapping[str, Any], images: Path, models: Sequence[str]) -> dict[str, Any]:
    """One scene of the gallery: from each pair of captions the one that a model scores higher."""
    data = base64.b64encode((images / item["image"]).read_bytes()).decode()
    captions = item["captions"]
    pairs = [captions[i : i + 2] for i in range(0, len(captions), 2)]
    shown = [
        {"name": m, "captions": [max(pair, key=lambda c: c["scores"][m]) for pair in pairs]}
        for m in models
    ]
    return {"image": f"data:image/jpeg;base64,{data}", "models": shown}
