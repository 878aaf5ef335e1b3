"""How often a model says "absent" of what is there, measured against instance annotations.

The false-absence rate is what poisons training, and no publication of this pipeline gives it. It
is counted over the objects that COCO annotates: of all verdicts "absent" that the annotations can
judge, those whose object has a plainly visible instance. Crowds, tiny instances and other classes
are left out (`annotations.InstanceVerifier`), as are verdicts that came from annotations. What
boxes cannot judge is for people, who label a sample of the accepted pairs.
"""

import collections
import csv
import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_gen import leak
from data_gen.annotations import ABSENT, PRESENT, UNSURE, InstanceVerifier
from data_gen.records import read_table
from negclip_jax.common import storage
from negclip_jax.common.errors import InputError
from negclip_jax.common.statistics import Share
from negclip_jax.language.vocabulary import canonical

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
_NOT_A_MODEL = ("instances", "vqa")
_SHOWN = 20  # classes in the printed table

# The CSV of hand labels.
COLUMNS = ("pair_id", "file_name", "caption", "negated_caption", "object", "rewriter", "label")
SAMPLE = 200
_TRUE = {"1", "true", "yes", "y", "ok", "right", "correct", "good"}
_FALSE = {"0", "false", "no", "n", "wrong", "incorrect", "bad"}


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

    Args:
      run: directory of a run with verdicts and pairs.
      instances: COCO instances JSON of the same images; without it the verifier is not measured.
      labels: `audit_sample.csv` with labels put in, if there are some.

    Raises InputError for files that cannot be read or are of another layout.
    """
    run = Path(run)
    columns = [
        *("pair_id", "image_id", "object", "question", "rewriter", "accepted"),
        *("negated_caption", "foils"),
    ]
    pairs = [row for row in read_table(run, "pairs", columns).to_pylist() if row["accepted"]]
    result: dict[str, Any] = {}
    if instances is not None:
        items = read_table(run, "items", ["image_id", "file_name"]).to_pylist()
        truth = InstanceVerifier(instances, {row["image_id"]: row["file_name"] for row in items})
        verdicts = read_table(run, "verdicts").to_pylist()
        result = measure(judge(verdicts, truth))
        result["not_of_a_model"] = sum(row["method"] in _NOT_A_MODEL for row in verdicts)
        # Of the accepted pairs that the annotations can judge, those whose object is there.
        known = [truth.verdict(p["image_id"], p["object"])[0] for p in pairs if not p["question"]]
        contradicted = Share.of(known.count(PRESENT), len(known) - known.count(UNSURE))
        result["pairs"] = contradicted._asdict()
    try:
        result["leak"] = leak.measure(leak.of_pairs(sample(pairs, leak.GROUPS)))
    except InputError as error:  # a package of an extra; the rest needs none
        result["leak"] = {"error": str(error)}
    if labels is not None:
        shares, unknown = precision(read_labels(labels), pairs)
        result["precision"] = {name: share._asdict() for name, share in shares.items()}
        result["labels_of_no_pair"] = unknown
    storage.write_json(run / "audit.json", result, sort_keys=True)
    return table_text(result)


def judge(verdicts: Sequence[dict[str, Any]], truth: InstanceVerifier) -> list[Judged]:
    """The models' verdicts on objects that the annotations can judge."""
    judged = []
    for row in verdicts:
        if row["method"] in _NOT_A_MODEL or row["question"] or row["verdict"] == "error":
            continue
        known, _ = truth.verdict(row["image_id"], row["object"])
        if known != UNSURE:
            mass = row["mass"] or 0
            p_absent = row["p_no"] / mass if mass and row["p_no"] is not None else None
            judged.append(Judged(canonical(row["object"]), row["verdict"], known, p_absent))
    return judged


def measure(judged: Sequence[Judged]) -> dict[str, Any]:
    """Rates over all judged verdicts, by class, and over the threshold on p_absent."""
    classes = collections.defaultdict(list)
    for row in judged:
        classes[row.object].append(row)
    by_class = [{"object": name, **_rates(rows)} for name, rows in classes.items()]
    by_class.sort(key=lambda row: (-row["false_absence"]["n"], row["object"]))
    return {"judged": len(judged), **_rates(judged), "by_class": by_class, "curve": _curve(judged)}


def _rates(rows: Sequence[Judged]) -> dict[str, Any]:
    said_absent = [row for row in rows if row.verdict == ABSENT]
    truly_absent = [row for row in rows if row.truth == ABSENT]
    return {
        # Of "absent", how many are there; of the absent, how many were said to be so.
        "false_absence": _share(said_absent, "truth", PRESENT),
        "found_absent": _share(truly_absent, "verdict", ABSENT),
        "unsure": _share(rows, "verdict", UNSURE),
    }


def _share(rows: Sequence[Judged], field: str, value: str) -> dict[str, Any]:
    return Share.of(sum(getattr(row, field) == value for row in rows), len(rows))._asdict()


def _curve(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """What another threshold would have given, where the model's probabilities are known."""
    known = [row for row in judged if row.p_absent is not None]
    if len({row.p_absent for row in known}) < 3:  # answers read as text are 0 or 1
        return []
    points = []
    for threshold in THRESHOLDS:
        kept = [row for row in known if row.p_absent >= threshold]
        absent = sum(row.truth == ABSENT for row in known)
        found = sum(row.truth == ABSENT for row in kept)
        points.append(
            {
                "threshold": threshold,
                "false_absence": _share(kept, "truth", PRESENT),
                "found_absent": Share.of(found, absent)._asdict(),
            }
        )
    return points


def table_text(result: dict[str, Any]) -> str:
    """The measures as lines for the terminal."""
    lines = leak.lines(result["leak"])
    if "pairs" in result:
        lines.append(f"accepted pairs whose object is there  {Share(**result['pairs'])}")
    for name, share in result.get("precision", {}).items():
        lines.append(f"hand labels, {name}: right  {Share(**share)}")
    if result.get("labels_of_no_pair"):
        lines.append(f"{result['labels_of_no_pair']} labels belong to no accepted pair of this run")
    if "judged" not in result:
        return "\n".join([*lines, "the verifier is measured against --instances=FILE"])
    if not result["judged"]:
        why = (
            "every verdict came from annotations or annotators" if result["not_of_a_model"] else ""
        )
        return "\n".join([*lines, f"no model's verdict to judge{why and f': {why}'}"])
    lines += [
        f"{result['judged']} verdicts of the model judged by annotations",
        f"said absent, but there     {Share(**result['false_absence'])}",
        f"absent, and said to be so  {Share(**result['found_absent'])}",
        f"unsure                     {Share(**result['unsure'])}",
    ]
    for row in result["by_class"][:_SHOWN]:
        lines.append(f"  {row['object']:<16} false absence {Share(**row['false_absence'])}")
    for point in result["curve"]:
        shares = (Share(**point[key]) for key in ("false_absence", "found_absent"))
        false, found = map(str, shares)
        lines.append(f"p_absent >= {point['threshold']:<5} false absence {false}; found {found}")
    return "\n".join(lines)


def sample(rows: Sequence[Mapping[str, Any]], number: int) -> list[Mapping[str, Any]]:
    """`number` rows at random, the same for the same rows in any order (by hash of `pair_id`)."""
    return sorted(rows, key=lambda row: hashlib.blake2b(row["pair_id"].encode()).digest())[:number]


def write_sample(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes SAMPLE of the rows as CSV with an empty column `label`, "yes" or "no" to be put in.

    A cell that a spreadsheet would take for a formula begins with an apostrophe.
    """
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
    writer.writeheader()
    for row in sample(rows, SAMPLE):
        texts = {key: str(row.get(key) or "") for key in COLUMNS if key != "label"}
        formula = ("=", "+", "-", "@", "\t", "\r")
        writer.writerow({k: f"'{t}" if t.startswith(formula) else t for k, t in texts.items()})
    storage.write_whole(path, file.getvalue().encode())


def read_labels(path: str | os.PathLike) -> dict[str, bool]:
    """Pair id to whether the pair is right, for the rows of the CSV that have a label.

    Raises InputError for a file without the columns and for labels that are neither yes nor no.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {"pair_id", "label"} <= set(reader.fieldnames or ()):
                raise InputError(
                    f"{path} has no columns pair_id and label; `report` writes such a file, "
                    "audit_sample.csv"
                )
            rows = [(reader.line_num, row["pair_id"], row["label"]) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV: {error}") from None
    labels, wrong = {}, []
    for line, pair_id, text in rows:
        word = (text or "").strip().lower()
        if word in _TRUE or word in _FALSE:
            labels[(pair_id or "").removeprefix("'")] = word in _TRUE
        elif word:
            wrong.append(f"line {line} ({text!r})")
    if wrong:
        raise InputError(f"{path}: labels are yes or no, not {', '.join(wrong[:5])}")
    return labels


def precision(
    labels: Mapping[str, bool], rows: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Share], int]:
    """Share of right pairs over all labels and by rewriter, and how many labels fit no pair."""
    known = {row["pair_id"]: row["rewriter"].partition(":")[0] for row in rows}
    groups: dict[str, list[bool]] = {"all": []}
    for pair_id, right in labels.items():
        if pair_id in known:
            groups["all"].append(right)
            groups.setdefault(known[pair_id], []).append(right)
    shares = {name: Share.of(sum(values), len(values)) for name, values in groups.items()}
    return shares, sum(pair_id not in known for pair_id in labels)
