"""What there is to say about a run: the numbers and examples of its report."""

import collections
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data_gen.labels import sample
from data_gen.manifest import read_manifest
from data_gen.records import read_table
from data_gen.rules import REASONS
from negclip_jax.common import strict_json
from negclip_jax.common.errors import InputError
from negclip_jax.common.statistics import Share

GALLERY, DOUBTFUL, EXAMPLES, TOP = 60, 30, 5, 25
_COLUMNS = [
    "pair_id",
    "image_id",
    "file_name",
    "caption",
    "object",
    "question",
    "negated_caption",
    "foils",
    "rewriter",
    "cue",
    "cue_position",
    "clip_tokens",
    "attempt",
    "accepted",
    "reasons",
    "p_no",
    "mass",
]


@dataclass
class Findings:
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
        return read_table(self.run, "pairs", _COLUMNS).to_pylist()

    @cached_property
    def accepted(self) -> list[dict[str, Any]]:
        return [row for row in self.rewrites if row["accepted"]]

    @cached_property
    def candidates(self) -> list[str | None]:
        return self._column("candidates", "reject_reason")

    @cached_property
    def verdicts(self) -> list[dict[str, Any]]:
        columns = ["object", "question", "verdict", "p_yes", "p_no", "mass", "method"]
        return read_table(self.run, "verdicts", columns).to_pylist()

    def _column(self, table: str, name: str) -> list[Any]:
        return read_table(self.run, table, [name]).column(name).to_pylist()

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
        return collections.Counter(self._column("rejects", "code")).most_common()

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

    def cues(self) -> list[tuple[str, int]]:
        return _counted(row["cue"] for row in self.accepted)

    def positions(self) -> list[tuple[str, int]]:
        return _counted(row["cue_position"] for row in self.accepted)

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
            for name, n in _counted(row["object"] for row in self.accepted)[:TOP]
        ]

    def variety(self) -> dict[str, float]:
        """Different objects, their perplexity (2 to the entropy), and repeated texts as a share."""
        counts = [n for _, n in _counted(row["object"] for row in self.accepted)]
        total = sum(counts)
        entropy = -sum(n / total * math.log2(n / total) for n in counts) if total else 0.0
        texts = collections.Counter(_bare(row["negated_caption"]) for row in self.accepted)
        repeated = sum(n for n in texts.values() if n > 1)
        return {
            "objects": len(counts),
            "perplexity": 2**entropy if total else 0.0,
            "repeated": repeated / total if total else 0.0,
        }

    def gallery(self) -> list[Mapping[str, Any]]:
        return sample(self.accepted, GALLERY)

    def doubtful(self) -> list[Mapping[str, Any]]:
        """The accepted pairs whose verdict was nearest to not being one; none if all were sure."""
        rows = [row for row in self.accepted if row["p_no"] is not None and row["mass"]]
        rows = [row for row in rows if _certainty(row) < 1]
        return sorted(rows, key=lambda row: (_certainty(row), row["pair_id"]))[:DOUBTFUL]

    def calls(self) -> list[dict[str, Any]]:
        """Each stage's calls, tokens, latencies and cost, from the request cache's statistics."""
        return [
            {"stage": stage, **numbers, "cost": self._cost(stage, numbers)}
            for stage, numbers in self.manifest["calls"].items()
        ]

    def _cost(self, stage: str, numbers: Mapping[str, Any]) -> float:
        prices = self.manifest["config"]["prices"]
        role = "mllm" if stage.startswith("verify") else "llm"
        inputs = numbers["prompt_tokens"] * prices[f"{role}_input"]
        return (inputs + numbers["completion_tokens"] * prices[f"{role}_output"]) / 1e6


def _certainty(row: Mapping[str, Any]) -> float:
    return row["p_no"] / row["mass"] * min(row["mass"], 1.0)


def _counted(values: Iterable[Any]) -> list[tuple[Any, int]]:
    counter = collections.Counter(value for value in values if value)
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))


def _bare(text: str) -> str:
    return " ".join("".join(c for c in text.lower() if c.isalnum() or c == " ").split())


def histogram(values: Sequence[float], low: float, high: float, bins: int) -> list[int]:
    """How many values fall into each of `bins` equal parts of [low, high]; outliers in the ends."""
    counts = [0] * bins
    for value in values:
        place = int((value - low) / (high - low) * bins)
        counts[min(max(place, 0), bins - 1)] += 1
    return counts
