"""The report of a run: one page that opens from disk, and a sample for hand labels."""

import collections
import contextlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data_gen.images import PhotoError, PhotoFolder
from data_gen.label_sheet import sample, write_sample
from data_gen.manifest import read_manifest
from data_gen.records import read_column, read_table
from data_gen.rules import REASONS
from negclip_jax.common import strict_json
from negclip_jax.common.errors import InputError
from negclip_jax.common.page.template import write_page
from negclip_jax.common.page.thumbnails import file_thumbnail
from negclip_jax.common.statistics import Share, percent

THUMBNAIL = 160  # pixels, the longer side
GALLERY, DOUBTFUL, EXAMPLES, TOP = 60, 30, 5, 25


def write_report(run: str | os.PathLike) -> Path:
    """Writes `report.html` and `audit_sample.csv` into a run directory; returns the page's path.

    Reads the run's tables and manifest, photos where they still are, and `audit.json` where the
    run was audited. Raises InputError for a directory without a run.
    """
    summary = RunSummary(Path(run))
    gallery, doubtful = sample(summary.accepted, GALLERY), summary.doubtful()
    # Data URLs of the photos that are still below their folder, by their names.
    thumbnails = dict.fromkeys((row["file_name"] for row in (*gallery, *doubtful)), "")
    photos = summary.manifest["config"]["input"]["images"]
    if photos is not None and Path(photos).is_dir():
        folder = PhotoFolder(photos, THUMBNAIL)
        for name in thumbnails:
            with contextlib.suppress(PhotoError):  # a name that leads out of the folder
                thumbnails[name] = file_thumbnail(folder.path(name), THUMBNAIL)
    page = write_page(
        summary.run / "report.html",
        Path(__file__).with_name("report.html"),
        run=summary,
        manifest=summary.manifest,
        bar_rows=bar_rows,
        share=lambda found: Share(**found),
        percent=percent,
        gallery=gallery,
        doubtful=doubtful,
        thumbnails=thumbnails,
    )
    write_sample(summary.accepted, summary.run / "audit_sample.csv")
    return page


@dataclass
class RunSummary:
    """A run's tables as the report tells them; everything is computed when it is asked for."""

    run: Path

    @cached_property
    def manifest(self) -> dict[str, Any]:
        return read_manifest(self.run)

    @cached_property
    def audit(self) -> dict[str, Any] | None:
        """What `audit` wrote into the run, if it was called."""
        path = self.run / "audit.json"
        try:
            return strict_json.load(path) if path.is_file() else None
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}); run `audit` again") from None

    @cached_property
    def rewrites(self) -> list[dict[str, Any]]:
        return read_table(self.run, "pairs").to_pylist()

    @cached_property
    def accepted(self) -> list[dict[str, Any]]:
        return [row for row in self.rewrites if row["accepted"]]

    @cached_property
    def candidates(self) -> list[str | None]:
        return read_column(self.run, "candidates", "reject_reason")

    @cached_property
    def verdicts(self) -> list[dict[str, Any]]:
        return read_table(self.run, "verdicts").to_pylist()

    def funnel(self) -> list[tuple[str, int, str]]:
        """(step, number, what is counted), from the captions to the accepted pairs."""
        usable = sum(reason is None for reason in self.candidates)
        asked = "questions" if self.manifest["config"]["pipeline"] == "vqa" else "objects"
        verdicts = collections.Counter(row["verdict"] for row in self.verdicts)
        tried = len({row["pair_id"] for row in self.rewrites if row["attempt"] == 0})
        return [
            ("captions", self.manifest["captions"], f"of {self.manifest['images']:,} photos"),
            ("proposed", len(self.candidates), asked),
            ("usable", usable, "not mentioned in any caption, not a duplicate"),
            ("absent", verdicts["absent"], f"of {len(self.verdicts):,} judged"),
            ("rewritten", tried, "captions with an absent object"),
            ("accepted", len(self.accepted), "rewrites that break no rule"),
        ]

    def filter_reasons(self) -> list[tuple[str, int]]:
        """Why candidates were not asked about, most frequent first."""
        return collections.Counter(reason for reason in self.candidates if reason).most_common()

    def ingest_codes(self) -> list[tuple[str, int]]:
        """Why captions and photos were refused, most frequent first."""
        return collections.Counter(read_column(self.run, "rejects", "code")).most_common()

    def verdict_counts(self) -> list[tuple[str, int]]:
        return collections.Counter(row["verdict"] for row in self.verdicts).most_common()

    def reasons(self) -> list[dict[str, Any]]:
        """Each reason against rewrites with its sentence, number and examples."""
        found = collections.defaultdict(list)
        for row in self.rewrites:
            for reason in row["reasons"] or ():
                found[reason].append(row)
        ordered = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
        return [
            {
                "code": code,
                "sentence": REASONS.get(code, "the model gave no usable answer"),
                "n": len(rows),
                "examples": sample([r for r in rows if r["negated_caption"]], EXAMPLES),
            }
            for code, rows in ordered
        ]

    def counted(self, column: str) -> list[tuple[str, int]]:
        """The values of a column over the accepted pairs, most frequent first."""
        return _counted(row[column] for row in self.accepted)

    def rewriters(self) -> list[tuple[str, int]]:
        return _counted((row["rewriter"] or "").partition(":")[0] for row in self.accepted)

    def lengths(self) -> list[int]:
        return [row["clip_tokens"] for row in self.accepted if row["clip_tokens"] is not None]

    def probabilities(self, name: str) -> list[float]:
        """Of the verdicts of a model: `p_yes` or `mass`; empty where annotations decided."""
        rows = (row for row in self.verdicts if row["method"] not in ("instances", "vqa"))
        return [row[name] for row in rows if row[name] is not None]

    def objects(self) -> list[dict[str, Any]]:
        """The objects that most pairs deny, with the share of photos that lack them."""
        asked = collections.Counter(row["object"] for row in self.verdicts)
        absent = collections.Counter(
            row["object"] for row in self.verdicts if row["verdict"] == "absent"
        )
        return [
            {"name": name, "pairs": n, "absent": Share.of(absent[name], asked[name])}
            for name, n in self.counted("object")[:TOP]
        ]

    def variety(self) -> dict[str, float]:
        """Different objects, their perplexity (2 to the entropy), and repeated texts as a share."""
        counts = [n for _, n in self.counted("object")]
        total = sum(counts)
        entropy = -sum(n / total * math.log2(n / total) for n in counts) if total else 0.0
        lower = (row["negated_caption"].lower() for row in self.accepted)
        bare = ("".join(c for c in text if c.isalnum() or c == " ") for text in lower)
        texts = collections.Counter(" ".join(text.split()) for text in bare)
        repeated = sum(n for n in texts.values() if n > 1)
        return {
            "objects": len(counts),
            "perplexity": 2**entropy if total else 0.0,
            "repeated": repeated / total if total else 0.0,
        }

    def doubtful(self) -> list[Mapping[str, Any]]:
        """The accepted pairs whose verdict was nearest to not being one; none if all were sure."""
        rows = [row for row in self.accepted if row["p_no"] is not None and row["mass"]]
        rows = [row for row in rows if _certainty(row) < 1]
        return sorted(rows, key=lambda row: (_certainty(row), row["pair_id"]))[:DOUBTFUL]

    def calls(self) -> list[dict[str, Any]]:
        """Each stage's calls, tokens, latencies and cost, from the request cache's statistics."""
        prices, found = self.manifest["config"]["prices"], []
        for stage, numbers in self.manifest["calls"].items():
            role = "mllm" if stage.startswith("verify") else "llm"
            cost = numbers["prompt_tokens"] * prices[f"{role}_input"]
            cost += numbers["completion_tokens"] * prices[f"{role}_output"]
            found.append({"stage": stage, **numbers, "cost": cost / 1e6})
        return found

    def key_figures(self) -> list[tuple[str, str, str]]:
        """(title, value, note) of what stands at the top of the page."""
        accepted, images = len(self.accepted), self.manifest["images"]
        absent = sum(row["verdict"] == "absent" for row in self.verdicts)
        calls = sum(row["calls"] for row in self.calls())
        tokens = sum(row["prompt_tokens"] for row in self.calls())
        calls_a_pair = f"{calls / accepted:.2f}" if accepted else "–"
        tokens_a_pair = f"{tokens / max(accepted, 1):,.0f} prompt tokens a pair"
        variety = self.variety()
        return [
            (
                "pairs accepted",
                f"{accepted:,}",
                f"{accepted / images:.1f} a photo" if images else "",
            ),
            (
                "rewrites accepted",
                _share_text(accepted, len(self.rewrites)),
                f"of {len(self.rewrites):,}, second tries included",
            ),
            (
                "judged absent",
                _share_text(absent, len(self.verdicts)),
                "the published run kept 35.5 % of its captions",
            ),
            (
                "model calls a pair",
                calls_a_pair if calls else "none",
                tokens_a_pair if calls else "written without a model",
            ),
            (
                "different objects",
                f"{variety['objects']:,}",
                f"as varied as {variety['perplexity']:.0f} equally frequent ones; "
                f"{percent(variety['repeated'])} % of the texts repeat another",
            ),
        ]

    def provenance(self) -> list[tuple[str, str]]:
        """(what, value) for the foot of the page: who did what, with which inputs and versions."""
        manifest = self.manifest
        models, inputs = manifest["capabilities"].items(), manifest["inputs"].items()
        return [
            ("run", manifest["run_id"]),
            ("pipeline", manifest["config"]["pipeline"]),
            *((f"{stage} by", who) for stage, who in manifest["roles"].items()),
            ("verified by", manifest["verify_method"]),
            *((f"{role} model", str(can.get("model", ""))) for role, can in models),
            *((f"{name} (sha256)", facts["sha256"]) for name, facts in inputs),
            *sorted(manifest["packages"].items()),
            ("Python", manifest["python"]),
            ("git", manifest["git"] or "not a checkout"),
        ]


def bar_rows(rows: Sequence[tuple]) -> list[dict[str, Any]]:
    """(name, number) or (name, number, note) as bars: the longest is of width 100.

    Without a note, the share of all.
    """
    top, total = max((row[1] for row in rows), default=1) or 1, sum(row[1] for row in rows)
    return [
        {
            "name": str(name),
            "n": n,
            "note": note[0] if note else _share_text(n, total),
            "width": round(100 * n / top, 1),
        }
        for name, n, *note in rows
    ]


def _share_text(n: int, total: int) -> str:
    return f"{percent(n / total)} %" if total else "–"


def _certainty(row: Mapping[str, Any]) -> float:
    return row["p_no"] / row["mass"] * min(row["mass"], 1.0)


def _counted(values: Iterable[Any]) -> list[tuple[Any, int]]:
    counter = collections.Counter(value for value in values if value)
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))
