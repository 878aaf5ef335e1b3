"""Write the quickstart's results: `results.json` and `report.html`."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from negclip_jax.common import storage
from negclip_jax.common.page import charts
from negclip_jax.common.page.template import render as render_page
from negclip_jax.common.page.thumbnails import jpeg_url
from quickstart.questions import REQUIRED, ROWS

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
    storage.write_json(out / "results.json", results(story), indent=2)
    storage.write_whole(out / "report.html", render(story).encode())


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
    models = {
        name: {
            "facts": {},
            "rows": {row: _estimate(tally) for row, tally in model["rows"].items()},
            "groups": {
                row: {group: _estimate(tally) for group, tally in groups.items()}
                for row, groups in model["groups"].items()
            },
        }
        for name, model in story.evaluation["models"].items()
    }
    return render_page(
        Path(__file__).with_name("report.html"),
        models=models,
        notes={name: NOTES.get(name, "") for name in models},
        required=REQUIRED,
        rows={
            row: {
                "what": what,
                "chance": chance,
                "found": [model["rows"][row] for model in models.values()],
                "examples": [
                    " / ".join(choice)
                    for choices in story.evaluation["examples"].get(row, [])
                    for choice in choices
                ][:3],
            }
            for row, (what, chance) in ROWS.items()
            if row in models["base"]["rows"]
        },
        curves=[_curve(name, path) for name, path in story.runs.items()],
        gallery=[_scene(item, story.images, models) for item in story.evaluation["gallery"]],
        commands=story.commands,
        machine=machine(),
        seconds=story.seconds,
    )


def _estimate(tally: Mapping[str, Any]) -> dict[str, Any]:
    """A tally of `quickstart.evaluate` with the names of `common.statistics.Estimate`."""
    interval = {key: tally[key] for key in ("low", "high", "n")}
    return {"value": tally["accuracy"], **interval, "method": "Wilson"}


def machine() -> str:
    """Processor cores and versions, for the foot of the page."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = f"Python {platform.python_version()}, JAX {metadata.version('jax')}"
    return f"{platform.machine()}, {cores} cores, {versions}"


def _curve(name: str, workdir: Path) -> dict[str, Any]:
    """Training loss and validation loss of a run against its steps."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    train = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    validation = [(line["step"], line["val/loss"]) for line in lines if "val/loss" in line]
    width = max(1, len(train) // 60)
    chunks = [train[i : i + width] for i in range(0, len(train), width)]
    smooth = [(chunk[-1][0], sum(loss for _, loss in chunk) / len(chunk)) for chunk in chunks]
    note = f"loss {smooth[0][1]:.2f} → {smooth[-1][1]:.2f}; dots: validation"
    return {"name": name, "note": note, "svg": charts.losses(smooth, validation)}


def _scene(item: Mapping[str, Any], images: Path, models: Sequence[str]) -> dict[str, Any]:
    """One scene of the gallery: from each pair of captions the one that a model scores higher."""
    captions = item["captions"]
    pairs = [captions[i : i + 2] for i in range(0, len(captions), 2)]
    return {
        "url": jpeg_url((images / item["image"]).read_bytes()),
        "preferred": {
            m: [max(pair, key=lambda c: c["scores"][m]) for pair in pairs] for m in models
        },
    }
