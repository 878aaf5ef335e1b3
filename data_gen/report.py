"""The report of a run: one page that opens from disk, and a sample for hand labels."""

import collections
import contextlib
import hashlib
import itertools
import math
import os
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from data_gen.annotations import NOT_ANNOTATED
from data_gen.engines.cache import read_statistics
from data_gen.images import PhotoFolder
from data_gen.label_sheet import RATES, SAMPLE, sample, write_sample
from data_gen.manifest import (
    counts,
    error_codes,
    left_out,
    read_manifest,
    sessions,
    why_no_pair,
)
from data_gen.records import NAMED, read_rows, read_table, table_paths
from data_gen.rules import REASONS
from data_gen.texts import SOURCES, texts
from negclip_jax.common import strict_json
from negclip_jax.common.errors import InputError
from negclip_jax.common.page.template import plural, write_page
from negclip_jax.common.progress import told
from negclip_jax.common.statistics import Share, percent

THUMBNAIL = 160  # pixels, the longer side
FIRST, GALLERY, DOUBTFUL, EXAMPLES, TOP = 2, 60, 30, 5, 25
# Columns that are read, and those of which values are counted.
_COUNTED = ("object", "cue", "cue_position")
_PAIR = ("pair_id", "file_name", "caption_id", "caption", "question", "negated_caption")
_PAIR += ("rewriter", "clip_tokens", "accepted", "reasons", "p_no", "mass", *_COUNTED)
_CANDIDATE = ("image_id", "object", "question", "source", "reject_reason")
_VERDICT = ("image_id", "object", "question", "verdict", "error_code", "method", "p_yes", "mass")
_BATCH = 4096  # rows

Row = Mapping[str, Any]


def write_report(run: str | os.PathLike) -> Path:
    """Writes `report.html` and `audit_sample.csv` into a run directory; returns the page's path.

    Reads the run's tables and manifest, photos where they still are, and `audit.json` where the
    run was audited. Raises InputError for a directory without a run.
    """
    summary = RunSummary(Path(run))
    gallery, doubtful = summary.rewrites.drawn[:GALLERY], summary.rewrites.doubtful
    shown = {row["pair_id"] for row in (*gallery, *doubtful)}
    # Data URLs of the photos that are still below their folder, by their names.
    thumbnails = dict.fromkeys((row["file_name"] for row in (*gallery, *doubtful)), "")
    if photos := summary.manifest["config"]["input"]["images"]:
        with contextlib.suppress(InputError):  # photos that are not there any more
            folder = PhotoFolder(photos, THUMBNAIL)
            thumbnails = {name: folder.thumbnail(name, THUMBNAIL) for name in thumbnails}
    chosen = {pair["pair_id"]: rows for pair, rows in texts(summary.run, only=shown)}
    # What has a false text beside it shows more of what a pair is.
    bare = {name for name, rows in chosen.items() if all(row["truth"] for row in rows)}
    gallery.sort(key=lambda row: row["pair_id"] in bare)
    page = write_page(
        summary.run / "report.html",
        Path(__file__).with_name("report.html"),
        run=summary,
        manifest=summary.manifest,
        bar_rows=bar_rows,
        share=lambda found: Share(**found),
        share_text=share_text,
        left_out=left_out(summary.run).most_common(),
        failed=error_codes(summary.run).most_common(),
        rates=RATES,
        first=FIRST,
        gallery=gallery,
        doubtful=doubtful,
        texts=chosen,
        thumbnails=thumbnails,
    )
    write_sample(summary.rewrites.drawn, summary.run / "audit_sample.csv")
    return page


class _Rewrites:
    """The table of pairs, read once: numbers, and a few rows.

    Attributes:
      captions: how many have a rewrite.
      drawn: accepted rows at random, in random order, SAMPLE at most.
      doubtful: the accepted rows whose verdict was nearest to not being one.
      reasons: number and examples by reason.
      counts: the values of columns over the accepted rows.
      lengths: their CLIP tokens.
    """

    def __init__(self, run: Path):
        self.number = self.accepted = self.captions = 0
        self.drawn, self.doubtful = list[Row](), list[Row]()
        self.reasons: dict[str, tuple[int, list[Row]]] = {}
        self.counts = {name: collections.Counter[str]() for name in (*_COUNTED, "rewriter")}
        self.lengths, self._texts = array("d"), bytearray()
        for part in told(list(table_paths(run, "pairs")), "shards of pairs"):
            rows = read_rows(run, "pairs", _PAIR, part.name)
            caption_ids = set()
            while batch := [
                dict(zip(_PAIR, row, strict=True)) for row in itertools.islice(rows, _BATCH)
            ]:
                caption_ids.update(row["caption_id"] for row in batch)
                self._add(batch, [row for row in batch if row["accepted"]])
            self.captions += len(caption_ids)

    def _add(self, rows: Sequence[Row], accepted: Sequence[Row]) -> None:
        self.number += len(rows)
        self.accepted += len(accepted)
        self.drawn = sample([*self.drawn, *accepted], SAMPLE)
        told = [row for row in accepted if row["p_no"] is not None and row["mass"]]
        unsure = [*self.doubtful, *(row for row in told if _certainty(row) < 1)]
        unsure.sort(key=lambda row: (_certainty(row), row["pair_id"]))
        self.doubtful = unsure[:DOUBTFUL]
        found = collections.defaultdict[str, list[Row]](list)
        for row in rows:
            for reason in row["reasons"] or ():
                found[reason].append(row)
        for reason, group in found.items():
            number, examples = self.reasons.get(reason, (0, []))
            examples = [*examples, *(row for row in group if row["negated_caption"])]
            self.reasons[reason] = number + len(group), sample(examples, EXAMPLES)
        for name in _COUNTED:
            self.counts[name].update(row[name] for row in accepted if row[name])
        writers = ((row["rewriter"] or "").partition(":")[0] for row in accepted)
        self.counts["rewriter"].update(filter(None, writers))
        self.lengths.extend(r["clip_tokens"] for r in accepted if r["clip_tokens"] is not None)
        for row in accepted:
            text = "".join(c for c in row["negated_caption"].lower() if c.isalnum() or c == " ")
            text = " ".join(text.split()).encode("utf-8", "surrogatepass")
            self._texts += hashlib.blake2b(text, digest_size=16).digest()

    def repeated(self) -> int:
        """How many accepted texts occur more than once, but for capitals and punctuation."""
        _, counts = np.unique(np.frombuffer(self._texts, "V16"), return_counts=True)
        return int(counts[counts > 1].sum())


class _Asked:
    """Candidates and verdicts, read once, a shard at a time: a photo is in one.

    Attributes:
      unknown: photos that the box file does not know.
      known, usable, absent: captions of the others, of those with a candidate, and of those of
        which something is absent.
      no_object, none_absent: what became of those that fall out at the last two.
      not_asked: why candidates were not asked about.
      objects, absent_objects: how often each was asked about, and absent.
      answers: `p_yes` and `mass` of the verdicts of a model.
    """

    def __init__(self, run: Path):
        self.unknown = self.known = self.usable = self.absent = 0
        counters = [collections.Counter[str]() for _ in range(6)]
        self.no_object, self.none_absent, self.not_asked = counters[:3]
        self.verdicts, self.objects, self.absent_objects = counters[3:]
        self.answers = {"p_yes": array("d"), "mass": array("d")}
        tables = ("items", "candidates", "verdicts")
        for part in sorted({path.name for table in tables for path in table_paths(run, table)}):
            self._add(
                collections.Counter(row[0] for row in read_rows(run, "items", ["image_id"], part)),
                list(read_rows(run, "candidates", _CANDIDATE, part)),
                list(read_rows(run, "verdicts", _VERDICT, part)),
            )

    def _add(
        self, captions: collections.Counter, proposed: Sequence[tuple], verdicts: Sequence[tuple]
    ) -> None:
        whys = [(image, why) for image, _, _, _, why in proposed]
        judged = [(image, error or verdict) for image, _, _, verdict, error, *_ in verdicts]
        unknown = {image for image, why in whys + judged if why == NOT_ANNOTATED}
        known = captions.keys() - unknown
        usable = known & {image for image, why in whys if why is None}
        absent = usable & {image for image, why in judged if why == "absent"}
        self.unknown += len(unknown)
        self.known += sum(captions[image] for image in known)
        self.usable += sum(captions[image] for image in usable)
        self.absent += sum(captions[image] for image in absent)
        lost, none_absent = known - usable, usable - absent
        self.no_object.update(why for image, why in whys if image in lost)
        self.none_absent.update(why for image, why in judged if image in none_absent)
        asked = {row[:3] for row in verdicts}
        for image, name, question, source, why in proposed:
            if source != NAMED and (why or (image, name, question) not in asked):
                self.not_asked[why or "not needed: enough is absent"] += 1
        for _, name, _, verdict, _, method, p_yes, mass in verdicts:
            self.verdicts[verdict] += 1
            self.objects[name] += 1
            self.absent_objects[name] += verdict == "absent"
            if method not in ("instances", "vqa"):
                for kept, value in zip(self.answers.values(), (p_yes, mass), strict=True):
                    if value is not None:
                        kept.append(value)


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
    def rewrites(self) -> _Rewrites:
        return _Rewrites(self.run)

    @cached_property
    def asked(self) -> _Asked:
        return _Asked(self.run)

    def funnel(self) -> list[dict[str, Any]]:
        """How many captions came how far: `name`, `n`, and in `note` what became of the others."""

        def most(counter: collections.Counter[str]) -> str:
            return ", ".join(f"{why} {n:,}" for why, n in counter.most_common(4)) or "none"

        photos, asked = collections.Counter[str](), self.asked
        for part in table_paths(self.run, "rejects"):  # of a photo: without the id of a caption
            rows = read_rows(self.run, "rejects", ["image_id", "caption_id", "code"], part.name)
            photos.update({image: code for image, caption, code in rows if not caption}.values())
        photos["not in the box file"] = asked.unknown
        photos["not done yet"] = self.unfinished()
        gone = ", ".join(f"{plural(n, 'photo')} {why}" for why, n in photos.most_common() if n)
        few = "fewer things are absent than there are captions, or the caption negates already"
        wrong = ", ".join(f"{row['code']} {row['n']:,}" for row in self.reasons()[:4])
        steps = [
            ("captions", self.manifest["captions"], ""),
            ("usable photo", asked.known, gone),
            ("object to ask about", asked.usable, f"proposals: {most(asked.no_object)}"),
            ("something absent", asked.absent, f"verdicts: {most(asked.none_absent)}"),
            ("absent object given", self.rewrites.captions, few),
            ("accepted", self.rewrites.accepted, f"no rewrite could be used: {wrong}"),
        ]
        rows, before = [], steps[0][1]
        for name, n, why in steps:
            note = f"−{before - n:,}: {why}" if before > n else ""
            rows.append({"name": name, "n": n, "note": note})
            before = n
        return rows

    def empty_because(self) -> str:
        """Why there is no pair: the first step of the funnel that no caption passed, and why."""
        step = next(row for row in self.funnel() if not row["n"])
        why = step["note"].partition(": ")[2] or why_no_pair(self.run)
        return f"none of the captions came to “{step['name']}”; {why}"

    def stopped_by(self) -> str | None:
        """The error that ended the last session, where it did not get to its end."""
        return next((row["message"] for row in sessions(self.run)[-1:]), None)

    def without_boxes(self) -> int:
        """Photos that were judged although the box file of the run does not know them."""
        number, is_boxed = 0, "instances" in self.manifest["inputs"]
        for path in table_paths(self.run, "items") if is_boxed else ():
            images = {image for (image,) in read_rows(self.run, "items", ["image_id"], path.name)}
            rows = read_table(self.run, "labels", ["image_id", "source"], path.name)
            boxed = rows.filter(pc.equal(rows["source"], "boxes"))["image_id"]
            number += len(images.difference(pc.unique(boxed).to_pylist()))
        return number

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

    def reasons(self) -> list[dict[str, Any]]:
        """Each reason against rewrites with its sentence, number and examples."""
        unusable, found = "the model gave no usable answer", self.rewrites.reasons.items()
        return [
            {"code": code, "sentence": REASONS.get(code, unusable), "n": n, "examples": examples}
            for code, (n, examples) in sorted(found, key=lambda item: (-item[1][0], item[0]))
        ]

    def counted(self, column: str) -> list[tuple[str, int]]:
        """The values of a column over the accepted pairs, most frequent first."""
        return sorted(self.rewrites.counts[column].items(), key=lambda item: (-item[1], item[0]))

    def objects(self) -> list[dict[str, Any]]:
        """The objects that most pairs deny, with the share of photos that lack them."""
        absent, asked = self.asked.absent_objects, self.asked.objects
        return [
            {"name": name, "pairs": n, "absent": Share.of(absent[name], asked[name])}
            for name, n in self.counted("object")[:TOP]
        ]

    def variety(self) -> dict[str, float]:
        """Different objects, their perplexity (2 to the entropy), and repeated texts as a share."""
        counts = [n for _, n in self.counted("object")]
        total = sum(counts)
        entropy = -sum(n / total * math.log2(n / total) for n in counts) if total else 0.0
        return {
            "objects": len(counts),
            "perplexity": 2**entropy if total else 0.0,
            "repeated": self.rewrites.repeated() / total if total else 0.0,
        }

    def calls(self) -> list[dict[str, Any]]:
        """Each stage's calls, tokens, latencies and cost, from the request cache's statistics."""
        prices, found = self.manifest["config"]["prices"], []
        # The manifest of a run that was stopped has none yet.
        calls = self.manifest["calls"] or read_statistics(self.run / "cache.sqlite")
        for stage, numbers in calls.items():
            role = "mllm" if stage.startswith("verify") else "llm"
            cost = numbers["prompt_tokens"] * prices[f"{role}_input"]
            cost += numbers["completion_tokens"] * prices[f"{role}_output"]
            found.append({"stage": stage, **numbers, "cost": cost / 1e6})
        return found


def bar_rows(rows: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    """Names and numbers as bars: the longest is of width 100, and each with its share of all."""
    top, total = max((n for _, n in rows), default=1) or 1, sum(n for _, n in rows)
    bars = ((str(name), n, share_text(n, total), round(100 * n / top, 1)) for name, n in rows)
    return [dict(zip(("name", "n", "note", "width"), bar, strict=True)) for bar in bars]


def share_text(n: int, total: int) -> str:
    """ "12.3 %", "–" of nothing."""
    return f"{percent(n / total)} %" if total else "–"


def _certainty(row: Mapping[str, Any]) -> float:
    return row["p_no"] / row["mass"] * min(row["mass"], 1.0)
