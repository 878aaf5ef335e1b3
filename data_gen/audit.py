"""How often a model says "absent" of what is there, measured against instance annotations.

The false-absence rate is what poisons training, and no publication of this pipeline gives it. It
is counted over the objects that COCO annotates: of all verdicts "absent" that the annotations can
judge, those whose object has a plainly visible instance. Crowds, tiny instances and other classes
are left out (`annotations.InstanceVerifier`), as are verdicts that came from annotations. What
boxes cannot judge is for people (`label_sheet`). False texts are held against the same knowledge:
one that nothing says to be false may be true.
"""

import bisect
import collections
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_gen import label_sheet, leak
from data_gen.annotations import ABSENT, PRESENT, UNSURE, InstanceVerifier
from data_gen.records import count_values, read_rows
from data_gen.texts import CONTRADICTED, NOTHING, SOURCES, texts
from negclip_jax.common import storage
from negclip_jax.common.errors import InputError
from negclip_jax.common.statistics import Share
from negclip_jax.language.vocabulary import canonical

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
_NOT_A_MODEL = ("instances", "vqa")
_SHOWN = 20  # rows of a printed table
_EXAMPLES = 5
_VALUES = 3  # of a probability: answers read as text have two, 0 and 1
_VERDICT = ("image_id", "object", "question", "verdict", "method", "p_no", "mass")


@dataclass(frozen=True)
class Judged:
    """A model's verdict beside the annotations' (`truth`: "absent" or "present").

    `p_absent` is p_no / (p_yes + p_no), None where the answer was read as text.
    """

    object: str
    verdict: str
    truth: str
    p_absent: float | None


def audit(
    run: str | os.PathLike,
    instances: str | os.PathLike | None = None,
    labels: str | os.PathLike | None = None,
) -> str:
    """Measures a run, writes `audit.json` into it and returns a table for the terminal.

    `instances`: COCO's JSON of the same images; without it the verifier is not measured. `labels`:
    `audit_sample.csv` with labels put in, or what the page of `label_sheet` saved. Raises
    InputError for files that cannot be read or are of another layout.
    """
    run, boxes = Path(run), None
    read = None if labels is None else label_sheet.read_labels(labels)
    result: dict[str, Any] = {}
    if instances is not None:
        boxes = InstanceVerifier(instances, read_rows(run, "items", ["image_id", "file_name"]))
        verdicts = read_rows(run, "verdicts", _VERDICT)
        result = measure(judge((dict(zip(_VERDICT, row, strict=True)) for row in verdicts), boxes))
        methods = count_values(run, "verdicts", "method")
        result["not_of_a_model"] = sum(methods[name] for name in _NOT_A_MODEL)
    checked = _Checked(run, boxes)
    drawn = label_sheet.sample(checked.units(), leak.GROUPS, "unit")
    result["false_texts"] = checked.false_texts()
    if boxes is not None:
        # Of the accepted pairs that the annotations can judge, those whose object is there.
        there, judged = checked.known[PRESENT], checked.known[PRESENT] + checked.known[ABSENT]
        result["pairs"] = Share.of(there, judged)._asdict()
    try:
        result["leak"] = leak.measure([text for unit in drawn for text in unit["texts"]])
    except InputError as error:  # a package of an extra; the rest needs none
        result["leak"] = {"error": str(error)}
    if read is not None:
        result |= label_sheet.measure(read, labels, run)
    storage.write_json(run / "audit.json", result, sort_keys=True)
    return table_text(result)


class _Checked:
    """The exported texts on their way through the audit, and what was counted."""

    def __init__(self, run: Path, boxes: InstanceVerifier | None):
        self._run, self._boxes = run, boxes
        self.known: collections.Counter = collections.Counter()
        self._pairs: collections.Counter = collections.Counter()  # by whether all texts are true
        self._sources = collections.defaultdict[str, collections.Counter](collections.Counter)
        self._examples: dict[str, list[dict[str, str]]] = {CONTRADICTED: [], NOTHING: []}

    def units(self) -> Iterable[dict[str, Any]]:
        """Texts of one form of words, of which some are true and some are false."""
        for pair, found in texts(self._run, self._boxes):
            if self._boxes is not None and not pair["question"]:
                self.known[self._boxes.verdict(pair["image_id"], pair["object"])[0]] += 1
            self._pairs[all(row["truth"] for row in found)] += 1
            units = collections.defaultdict(list)
            for row in found:
                if not row["truth"]:
                    self._sources[row["form"]][row["rests_on"]] += 1
                    examples = self._examples.get(row["rests_on"])
                    if examples is not None and len(examples) < _EXAMPLES:
                        examples.append({name: row[name] for name in ("file_name", "text")})
                text = (row["text"], row["truth"], row["form"])
                units[row["unit"]].append(leak.Text(row["image_id"], row["unit"], *text))
            for name, group in units.items():
                if len({text.truth for text in group}) == 2:
                    yield {"unit": name, "texts": group}

    def false_texts(self) -> dict[str, Any]:
        """How many false texts rest on what, all and by form; and examples of the doubtful."""
        total = sum(self._sources.values(), collections.Counter())
        return {
            "number": total.total(),
            "pairs": self._pairs.total(),
            "pairs_without": self._pairs[True],
            "rest_on": {source: total[source] for source in SOURCES},
            "forms": [
                {"form": form, "rest_on": {source: found[source] for source in SOURCES}}
                for form, found in sorted(self._sources.items())
            ],
            "examples": self._examples,
        }


def judge(verdicts: Iterable[Mapping[str, Any]], truth: InstanceVerifier) -> Iterator[Judged]:
    """The models' verdicts on objects that the annotations can judge."""
    for row in verdicts:
        if row["method"] in _NOT_A_MODEL or row["question"] or row["verdict"] == "error":
            continue
        known, _ = truth.verdict(row["image_id"], row["object"])
        if known != UNSURE:
            mass = row["mass"] or 0
            p_absent = row["p_no"] / mass if mass and row["p_no"] is not None else None
            yield Judged(canonical(row["object"]), row["verdict"], known, p_absent)


def measure(judged: Iterable[Judged]) -> dict[str, Any]:
    """Rates over all judged verdicts, by class, and over the threshold on p_absent."""
    classes = collections.defaultdict[str, collections.Counter](collections.Counter)
    # By truth and the number of thresholds that were reached, where a probability is known.
    reached, values = collections.Counter[tuple[str, int]](), set[float]()
    for row in judged:
        classes[row.object][row.verdict, row.truth] += 1
        if row.p_absent is not None:
            reached[row.truth, bisect.bisect_right(THRESHOLDS, row.p_absent)] += 1
            if len(values) < _VALUES:
                values.add(row.p_absent)
    every = sum(classes.values(), collections.Counter())
    by_class = [{"object": name, **_rates(found)} for name, found in classes.items()]
    by_class.sort(key=lambda row: (-row["false_absence"]["n"], row["object"]))
    curve = _curve(reached) if len(values) == _VALUES else []
    return {"judged": every.total(), **_rates(every), "by_class": by_class, "curve": curve}


def _rates(found: Mapping[tuple[str, str], int]) -> dict[str, Any]:
    """Of numbers by verdict and truth."""

    def share(
        of: Callable[[str, str], bool], among: Callable[[str, str], bool] = lambda *_: True
    ) -> dict[str, Any]:
        rows = {key: n for key, n in found.items() if among(*key)}
        return Share.of(sum(n for key, n in rows.items() if of(*key)), sum(rows.values()))._asdict()

    return {
        # Of "absent", how many are there; of the absent, how many were said to be so.
        "false_absence": share(lambda _, t: t == PRESENT, lambda v, _: v == ABSENT),
        "found_absent": share(lambda v, _: v == ABSENT, lambda _, t: t == ABSENT),
        "unsure": share(lambda v, _: v == UNSURE),
    }


def _curve(reached: Mapping[tuple[str, int], int]) -> list[dict[str, Any]]:
    """What another threshold would have given, where the model's probabilities are known."""

    def number(truths: Sequence[str], least: int = 0) -> int:
        return sum(n for (truth, place), n in reached.items() if truth in truths and place >= least)

    return [
        {
            "threshold": threshold,
            "false_absence": Share.of(
                number([PRESENT], place), number([PRESENT, ABSENT], place)
            )._asdict(),
            "found_absent": Share.of(number([ABSENT], place), number([ABSENT]))._asdict(),
        }
        for place, threshold in enumerate(THRESHOLDS, 1)
    ]


def table_text(result: dict[str, Any]) -> str:
    """The measures as lines for the terminal."""
    lines = leak.lines(result["leak"])
    if "pairs" in result:
        lines.append(f"accepted pairs whose object is there  {Share(**result['pairs'])}")
    if number := result["false_texts"]["number"]:
        found = result["false_texts"]["rest_on"]
        told = ", ".join(f"{source} {found[source]:,}" for source in SOURCES)
        bare, pairs = (result["false_texts"][key] for key in ("pairs_without", "pairs"))
        lines.append(f"{number:,} false texts rest on  {told}")
        lines.append(f"pairs without a false text  {Share.of(bare, pairs)}")
        for source, rows in result["false_texts"]["examples"].items():
            lines += [f"  {source}: {row['file_name']}: {row['text']}" for row in rows[:1]]
    for name, share in result.get("precision", {}).items():
        lines.append(f"hand labels, {name}: right  {Share(**share)}")
    for row in result.get("judged_texts", [])[:_SHOWN]:
        rates = ((what, row[key]) for key, what in label_sheet.RATES.items())
        told = "; ".join(f"{what} {Share(**rate)}" for what, rate in rates if rate["n"])
        lines.append(f"hand labels, {row['name']}: {told or 'none'}")
    lines += result.get("notes", [])
    if "judged" not in result:
        return "\n".join([*lines, "the verifier is measured against --instances=FILE"])
    if not result["judged"]:
        why = ": every verdict came from annotations or annotators"
        lines.append(f"no model's verdict to judge{why if result['not_of_a_model'] else ''}")
        return "\n".join(lines)
    lines += [
        f"{result['judged']} verdicts of the model judged by annotations",
        f"said absent, but there     {Share(**result['false_absence'])}",
        f"absent, and said to be so  {Share(**result['found_absent'])}",
        f"unsure                     {Share(**result['unsure'])}",
    ]
    for row in result["by_class"][:_SHOWN]:
        lines.append(f"  {row['object']:<16} false absence {Share(**row['false_absence'])}")
    for point in result["curve"]:
        false, found = (Share(**point[key]) for key in ("false_absence", "found_absent"))
        lines.append(f"p_absent >= {point['threshold']:<5} false absence {false}; found {found}")
    return "\n".join(lines)
