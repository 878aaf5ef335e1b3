"""The report of a run: one page that opens from disk, and a sample for hand labels."""

import collections
import contextlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data_gen.annotations import NOT_ANNOTATED
from data_gen.images import PhotoFolder
from data_gen.label_sheet import RATES, sample, write_sample
from data_gen.manifest import (
    counts,
    error_codes,
    left_out,
    read_manifest,
    sessions,
    why_no_pair,
)
from data_gen.records import read_column, read_table
from data_gen.rules import REASONS
from data_gen.texts import SOURCES, texts
from negclip_jax.common import strict_json
from negclip_jax.common.errors import InputError
from negclip_jax.common.page.template import plural, write_page
from negclip_jax.common.statistics import Share, percent

THUMBNAIL = 160  # pixels, the longer side
FIRST, GALLERY, DOUBTFUL, EXAMPLES, TOP = 3, 60, 30, 5, 25


def write_report(run: str | os.PathLike) -> Path:
    """Writes `report.html` and `audit_sample.csv` into a run directory; returns the page's path.

    Reads the run's tables and manifest, photos where they still are, and `audit.json` where the
    run was audited. Raises InputError for a directory without a run.
    """
    summary = RunSummary(Path(run))
    gallery, doubtful = sample(summary.accepted, GALLERY), summary.doubtful()
    shown = {row["pair_id"] for row in (*gallery, *doubtful)}
    # Data URLs of the photos that are still below their folder, by their names.
    thumbnails = dict.fromkeys((row["file_name"] for row in (*gallery, *doubtful)), "")
    photos = summary.manifest["config"]["input"]["images"]
    with contextlib.suppress(InputError):  # photos that are not there any more
        folder = PhotoFolder(photos, THUMBNAIL) if photos is not None else None
        for name in thumbnails if folder else ():
            thumbnails[name] = folder.thumbnail(name, THUMBNAIL)
    found = ((pair["pair_id"], rows) for pair, rows in texts(summary.run))
    told = {name: rows for name, rows in found if name in shown}
    # What has a false text beside it shows more of what a pair is.
    bare = {name for name, rows in told.items() if all(row["truth"] for row in rows)}
    gallery.sort(key=lambda row: row["pair_id"] in bare)
    page = write_page(
        summary.run / "report.html",
        Path(__file__).with_name("report.html"),
        run=summary,
        manifest=summary.manifest,
        bar_rows=bar_rows,
        share=lambda found: Share(**found),
        percent=percent,
        rates=RATES,
        first=FIRST,
        gallery=gallery,
        doubtful=doubtful,
        texts=told,
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
    def candidates(self) -> list[dict[str, Any]]:
        columns = ["image_id", "object", "question", "source", "reject_reason"]
        return read_table(self.run, "candidates", columns).to_pylist()

    @cached_property
    def verdicts(self) -> list[dict[str, Any]]:
        return read_table(self.run, "verdicts").to_pylist()

    def funnel(self) -> list[dict[str, Any]]:
        """How many captions came how far: `name`, `n`, and in `note` what became of the others."""
        captions = collections.Counter(read_column(self.run, "items", "image_id"))
        proposed = [(row["image_id"], row["reject_reason"]) for row in self.candidates]
        judged = [(row["image_id"], row["error_code"] or row["verdict"]) for row in self.verdicts]
        unknown = {image for image, why in proposed + judged if why == NOT_ANNOTATED}
        known = captions.keys() - unknown
        usable = known & {image for image, why in proposed if why is None}
        absent = usable & {image for image, why in judged if why == "absent"}

        def of(images: Set[str]) -> int:
            return sum(captions[image] for image in images)

        def among(found: Iterable[tuple[str, str]], images: Set[str]) -> str:
            """What the proposals or verdicts of the images ended with."""
            counter = collections.Counter(why for image, why in found if image in images)
            return ", ".join(f"{why} {n:,}" for why, n in counter.most_common(4)) or "none"

        codes = ["image_id", "caption_id", "code"]  # of a photo: without the id of a caption
        refused = [
            r for r in read_table(self.run, "rejects", codes).to_pylist() if not r["caption_id"]
        ]
        photos = collections.Counter({row["image_id"]: row["code"] for row in refused}.values())
        photos["not in the box file"] = len(unknown)
        photos["not done yet"] = self.unfinished()
        steps = [
            ("captions", self.manifest["captions"], ""),
            (
                "usable photo",
                of(known),
                ", ".join(f"{plural(n, 'photo')} {name}" for name, n in photos.most_common() if n),
            ),
            ("object to ask about", of(usable), f"proposals: {among(proposed, known - usable)}"),
            ("something absent", of(absent), f"verdicts: {among(judged, usable - absent)}"),
            (
                "absent object given",
                len({row["caption_id"] for row in self.rewrites}),
                "fewer things are absent than there are captions, or the caption negates already",
            ),
            (
                "accepted",
                len(self.accepted),
                "no rewrite could be used: "
                + ", ".join(f"{row['code']} {row['n']:,}" for row in self.reasons()[:4]),
            ),
        ]
        rows, before = [], steps[0][1]
        for name, n, why in steps:
            lost = before - n
            note = f"−{lost:,}: {why}" if lost > 0 else ""
            rows.append({"name": name, "n": n, "note": note})
            before = n
        return rows

    def empty_because(self) -> str:
        """Why there is no pair: the first step of the funnel that no caption passed, and why."""
        step = next(row for row in self.funnel() if not row["n"])
        why = step["note"].partition(": ")[2] or why_no_pair(self.run)
        return f"none of the captions came to “{step['name']}”; {why}"

    def filter_reasons(self) -> list[tuple[str, int]]:
        """Why candidates were not asked about, most frequent first."""
        asked = {(row["image_id"], row["object"], row["question"]) for row in self.verdicts}
        proposed = (row for row in self.candidates if row["source"] != "caption")
        reasons = collections.Counter(
            row["reject_reason"] or "not needed: enough is absent"
            for row in proposed
            if row["reject_reason"]
            or (row["image_id"], row["object"], row["question"]) not in asked
        )
        return reasons.most_common()

    def left_out(self) -> list[tuple[str, int]]:
        """Why photos and captions could not be used, most frequent first."""
        return collections.Counter(left_out(self.run)).most_common()

    def failed(self) -> list[tuple[str, int]]:
        """Requests that ended in an error, by code, most frequent first."""
        return error_codes(self.run).most_common()

    def rest_on(self) -> list[tuple[str, int]]:
        """What says that false texts are false, strongest first, as the audit counted."""
        found = self.audit["false_texts"]["rest_on"]
        return [(source, found[source]) for source in SOURCES]

    def unfinished(self) -> int:
        """Photos of which the run has no rows yet."""
        return self.manifest["images"] - counts(self.run).get("images", 0)

    def time(self) -> str:
        """How long the sessions took that ended."""
        seconds = sum(row["seconds"] for row in sessions(self.run))
        hours, minutes = f"{seconds / 3600:,.1f} h", f"{seconds / 60:.0f} min"
        return hours if seconds > 5400 else minutes if seconds > 90 else f"{seconds:.0f} s"

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
        accepted, captions = len(self.accepted), self.manifest["captions"]
        sent = sum(row["attempts"] for row in self.calls())
        tokens = sum(row["prompt_tokens"] for row in self.calls()) / max(accepted, 1)
        a_pair = " a pair" if accepted else ""
        variety, time = self.variety(), self.time()
        leak = (self.audit or {}).get("leak") or {}
        found = leak.get("accuracy")
        return [
            (
                "pairs accepted",
                f"{accepted:,}",
                f"{_share_text(accepted, captions)} of the captions; the published run kept 35.5 %",
            ),
            (
                "rewrites accepted",
                _share_text(accepted, len(self.rewrites)),
                f"of {len(self.rewrites):,}, second tries included",
            ),
            (
                f"requests{a_pair}",
                f"{sent / accepted:.2f}" if sent and accepted else f"{sent:,}" if sent else "none",
                f"retries included; {tokens:,.0f} prompt tokens{a_pair}; {time} in all"
                if sent
                else f"written without a model, in {time}",
            ),
            (
                "different objects",
                f"{variety['objects']:,}",
                f"as varied as {variety['perplexity']:.0f} equally frequent ones; "
                f"{percent(variety['repeated'])} % of the texts repeat another",
            ),
            (
                "truth told by words alone",
                f"{percent(found['rate'])} %" if found else "–",
                f"chance is {percent(leak['chance'])} %" if found else "not audited",
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
