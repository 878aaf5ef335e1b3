"""Write the quickstart's results: `results.json` and `report.html`."""

import json
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from negclip_jax.common import storage
from negclip_jax.common.page import charts
from negclip_jax.common.page.template import render as render_page
from negclip_jax.common.page.template import write_page
from negclip_jax.common.page.thumbnails import jpeg_url
from negclip_jax.common.provenance import cores
from negclip_jax.common.tables import aligned
from quickstart.questions import REQUIRED, ROWS

NOTES = {
    "base": "before: affirmative captions only",
    "published": "after the published recipe: InfoNCE on negated captions",
    "tuned": "after this project's recipe: true texts against texts known to be false",
}

RUNS = ("pretrain", "published", "finetune")


def write_report(out: Path, commands: Sequence[tuple[str, float]], seconds: float) -> None:
    """Writes `results.json` and `report.html` into the folder of a quickstart.

    `commands`: (command line, seconds) in order; `seconds`: in all.
    """
    evaluation = json.loads((out / "evaluation.json").read_text())
    models = evaluation["models"]
    names = {"before": "base", "published": "published", "after": "tuned"}
    results = {
        key: {row: models[name]["rows"][row] for row in REQUIRED}
        for key, name in names.items()
        if name in models
    }
    storage.write_json(out / "results.json", {**results, "seconds": round(seconds, 1)}, indent=2)
    page = render(evaluation, out, commands=commands, seconds=seconds)
    storage.write_whole(out / "report.html", page.encode())


def write_summary(out: Path, folders: Sequence[Path]) -> str:
    """Writes `results.json` and `report.html` of a quickstart with several seeds.

    Returns mean and range of each row and model over the seeds, for a terminal, in percent.
    `folders`: of the seeds, below `out`, each with its `evaluation.json`.
    """
    found = [json.loads((folder / "evaluation.json").read_text()) for folder in folders]
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for name in found[0]["models"]:
        for row in found[0]["models"][name]["rows"]:
            values = [e["models"][name]["rows"][row]["accuracy"] for e in found]
            numbers = {"mean": sum(values) / len(values), "low": min(values), "high": max(values)}
            summary.setdefault(row, {})[name] = numbers
    for row, cell in found[0].get("probe", {}).get("heldout", {}).items():  # of the same base
        summary[row]["probe"] = dict.fromkeys(("mean", "low", "high"), cell["accuracy"])
    storage.write_json(out / "results.json", {"seeds": len(found), "rows": summary}, indent=2)
    names = [*found[0]["models"], "probe"]
    write_page(
        out / "report.html",
        Path(__file__).with_name("seeds.html"),
        names=names,
        notes=NOTES | {"probe": "a linear probe of the base's images"},
        rows={row: (ROWS[row], cells) for row, cells in summary.items()},
        seeds=len(folders),
        first=f"{folders[0].relative_to(out).as_posix()}/report.html",
    )

    def said(cell: Mapping[str, float]) -> str:
        span = "" if cell["low"] == cell["high"] else " [{low:5.1%}, {high:5.1%}]"
        return ("{mean:6.1%}" + span).format_map(cell).replace("%", "")

    lines = [["", *names]]
    for row, cells in summary.items():
        lines.append([row, *(said(cells[name]) if name in cells else "" for name in names)])
    return f"mean [range] of {len(found)} seeds, percent\n\n{aligned(lines, right=True)}\n"


def render(evaluation: Mapping[str, Any], out: Path, **shown: Any) -> str:
    """The page; `evaluation` is what `quickstart.evaluate` wrote, `shown` more for the template."""

    def estimates(tallies: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Tallies with the names of `common.statistics.Estimate`."""
        return {row: {"value": t["accuracy"], "method": "Wilson"} | t for row, t in tallies.items()}

    models, rows = {}, {}
    for name, model in evaluation["models"].items():
        groups = {row: estimates(groups) for row, groups in model["groups"].items()}
        models[name] = {"facts": {}, "rows": estimates(model["rows"]), "groups": groups}
    for row, (what, chance) in ROWS.items():
        if row in models["base"]["rows"]:
            found = [model["rows"][row] for model in models.values()]
            choices = [c for question in evaluation["examples"].get(row, []) for c in question]
            examples = [" / ".join(choice) for choice in choices[:3]]
            rows[row] = {"what": what, "chance": chance, "found": found, "examples": examples}
    images, audit = out / "world" / "heldout" / "images", out / "generation" / "audit.json"
    leak = (json.loads(audit.read_text()).get("leak") if audit.exists() else None) or {}
    versions = f"Python {platform.python_version()}, JAX {metadata.version('jax')}"
    return render_page(
        Path(__file__).with_name("report.html"),
        models=models,
        notes={name: NOTES.get(name, "") for name in models},
        required=REQUIRED,
        rows=rows,
        curves=[_curve(name, out / name) for name in RUNS],
        probe=evaluation.get("probe", {}),
        axes={name: m["axes"] for name, m in evaluation["models"].items() if "axes" in m},
        leak=leak if "accuracy" in leak else None,  # None where the audit could not ask
        gallery=[_scene(item, images, models) for item in evaluation["gallery"]],
        machine=f"{platform.machine()}, {cores()} cores, {versions}",
        **shown,
    )


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
    preferred = {m: [max(pair, key=lambda c: c["scores"][m]) for pair in pairs] for m in models}
    return {"url": jpeg_url((images / item["image"]).read_bytes()), "preferred": preferred}
