"""The report of a run: one page that opens from disk, and a sample for hand labels.

The page needs no network: charts are inline SVG, thumbnails are data URIs, and every text from
captions, models and file names is escaped.
"""

import base64
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import ImageOps

from data_gen.findings import Findings, histogram
from data_gen.images import PhotoError, PhotoFolder
from data_gen.labels import write_sample
from negclip_jax.common import storage
from negclip_jax.common.decoding import ImageError, opened
from negclip_jax.common.statistics import Share

THUMBNAIL = 160  # pixels, the longer side
_WIDTH, _HEIGHT = 320, 110  # of a histogram, in SVG units


def write_report(run: str | os.PathLike) -> Path:
    """Writes `report.html` and `audit_sample.csv` into a run directory; returns the page's path.

    Reads the run's tables and manifest, photos where they still are, and `audit.json` where the
    run was audited. Raises InputError for a directory without a run.
    """
    run = Path(run)
    findings = Findings(run)
    page = render(findings)
    storage.write_whole(run / "report.html", page.encode())
    write_sample(findings.accepted, run / "audit_sample.csv")
    return run / "report.html"


def render(findings: Findings) -> str:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True
    )
    environment.filters |= {"percent": percent, "number": "{:,}".format}
    thumbnails = Thumbnails(findings.manifest["config"]["input"]["images"])
    return environment.get_template("report.html").render(
        run=findings,
        manifest=findings.manifest,
        cards=_cards(findings),
        funnel=_bars([(name, n, note) for name, n, note in findings.funnel()]),
        calls=findings.calls(),
        charts=_charts(findings),
        audit=_audit(findings.audit),
        gallery=[thumbnails.shown(row) for row in findings.gallery()],
        doubtful=[thumbnails.shown(row) for row in findings.doubtful()],
        models=_models(findings.manifest),
    )


class Thumbnails:
    """Small copies of the photos as data URIs; nothing where a photo cannot be read any more."""

    def __init__(self, images: str | None):
        """`images`: the run's photo folder; None if it had none."""
        there = images is not None and Path(images).is_dir()
        self._folder = PhotoFolder(images, THUMBNAIL) if there else None
        self._known: dict[str, str | None] = {}

    def shown(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row with its `thumbnail`, and `p_absent` from its probabilities."""
        name = row["file_name"]
        if name not in self._known:
            self._known[name] = self._make(name)
        p_absent = row["p_no"] / row["mass"] if row["mass"] and row["p_no"] is not None else None
        return {**row, "thumbnail": self._known[name], "p_absent": p_absent}

    def _make(self, name: str) -> str | None:
        if self._folder is None:
            return None
        try:
            with opened(self._folder.path(name)) as image:
                image.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))
                small = ImageOps.exif_transpose(image).convert("RGB")
                small.thumbnail((THUMBNAIL, THUMBNAIL))
        except (PhotoError, ImageError):
            return None
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=72)
        return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def percent(value: float | None) -> str:
    """0.123 as "12.3 %"; a dash for what is not known."""
    return "–" if value is None else f"{100 * value:.1f} %"


def _cards(findings: Findings) -> list[dict[str, str]]:
    accepted, images = len(findings.accepted), findings.manifest["images"]
    absent = sum(row["verdict"] == "absent" for row in findings.verdicts)
    calls = sum(row["calls"] for row in findings.calls())
    per_pair = f"{calls / accepted:.2f}" if accepted else "–"
    tokens = sum(row["prompt_tokens"] for row in findings.calls())
    variety = findings.variety()
    return [
        {
            "title": "pairs accepted",
            "value": f"{accepted:,}",
            "note": f"{accepted / images:.1f} a photo" if images else "",
        },
        {
            "title": "rewrites accepted",
            "value": percent(accepted / len(findings.rewrites) if findings.rewrites else None),
            "note": f"of {len(findings.rewrites):,}, second tries included",
        },
        {
            "title": "judged absent",
            "value": percent(absent / len(findings.verdicts) if findings.verdicts else None),
            "note": "the published run kept 35.5 % of its captions",
        },
        {
            "title": "model calls a pair",
            "value": per_pair if calls else "none",
            "note": f"{tokens / max(accepted, 1):,.0f} prompt tokens a pair"
            if calls
            else "written without a model",
        },
        {
            "title": "different objects",
            "value": f"{variety['objects']:,}",
            "note": f"as varied as {variety['perplexity']:.0f} equally frequent ones; "
            f"{percent(variety['repeated'])} of the texts repeat another",
        },
    ]


def _bars(rows: Sequence[tuple[str, int, str]]) -> list[dict[str, Any]]:
    top = max([n for _, n, _ in rows] + [1])
    return [{"name": a, "n": n, "note": b, "width": round(100 * n / top, 1)} for a, n, b in rows]


def _charts(findings: Findings) -> dict[str, Any]:
    def bars(rows: Sequence[tuple[Any, int]]) -> list[dict[str, Any]]:
        total = sum(n for _, n in rows)
        return _bars([(str(name), n, percent(n / total)) for name, n in rows])

    lengths = findings.lengths()
    drawn = [("CLIP tokens of the negated caption", _histogram(lengths, 0, 78, 39))]
    for name, title in (("p_yes", "p(yes) of the verifier"), ("mass", "p(yes) + p(no)")):
        values = findings.probabilities(name)
        if values:
            drawn.append((title, _histogram(values, 0, 1, 25)))
    return {
        "histograms": [{"title": title, "svg": svg} for title, svg in drawn],
        "cues": bars(findings.cues()),
        "positions": bars(findings.positions()),
        "rewriters": bars(findings.rewriters()),
        "verdicts": bars(findings.verdict_counts()),
        "filtered": bars(findings.filter_reasons()),
        "refused": bars(findings.ingest_codes()),
    }


def _histogram(values: Sequence[float], low: float, high: float, bins: int) -> Markup:
    counts = histogram(values, low, high, bins)
    top, step, foot = max([*counts, 1]), _WIDTH / bins, _HEIGHT - 18
    bars = "".join(
        f'<rect x="{i * step + 0.5:.1f}" y="{foot - foot * n / top:.1f}" width="{step - 1:.1f}" '
        f'height="{foot * n / top:.1f}" rx="1"><title>{low + (high - low) * i / bins:g} to '
        f"{low + (high - low) * (i + 1) / bins:g}: {n:,}</title></rect>"
        for i, n in enumerate(counts)
    )
    axis = f'<line x1="0" x2="{_WIDTH}" y1="{foot}" y2="{foot}"/>'
    words = (
        f'<text x="0" y="{_HEIGHT - 4}">{low:g}</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT - 4}" text-anchor="end">{high:g}</text>'
    )
    return Markup(f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{bars}{axis}{words}</svg>')


def _audit(audit: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The audit's shares as objects that print themselves."""
    if audit is None:
        return None
    rates = ("false_absence", "found_absent", "unsure")

    def shares(row: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
        return {**row, **{key: Share(**row[key]) for key in keys}}

    shown = shares(audit, (*rates, "pairs"))
    shown["by_class"] = [shares(row, rates) for row in audit["by_class"]]
    shown["curve"] = [shares(point, rates[:2]) for point in audit["curve"]]
    labels = audit.get("precision", {})
    return {**shown, "precision": {name: Share(**share) for name, share in labels.items()}}


def _models(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, value) for the foot of the page."""
    facts = [("run", manifest["run_id"]), ("pipeline", manifest["config"]["pipeline"])]
    facts += [(f"{stage} by", who) for stage, who in manifest["roles"].items()]
    facts.append(("verified by", manifest["verify_method"]))
    for role, can in manifest["capabilities"].items():
        facts.append((f"{role} model", str(can.get("model", ""))))
    for name, facts_of in manifest["inputs"].items():
        facts.append((f"{name} (sha256)", facts_of["sha256"]))
    facts += sorted(manifest["packages"].items())
    return [*facts, ("Python", manifest["python"]), ("git", manifest["git"] or "not a checkout")]
