"""How often a model says "absent" of what is there, measured against instance annotations.

The false-absence rate is what poisons training, and nobody has published it for this pipeline. It
is counted over the objects that COCO annotates: of all verdicts "absent" that the annotations can
judge, those whose object has a plainly visible instance. Crowds, tiny instances and other classes
are left out (`annotations.InstanceVerifier`), as are verdicts that came from annotations.
"""

import collections
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_gen.annotations import ABSENT, PRESENT, UNSURE, InstanceVerifier
from data_gen.hand_labels import precision, read_labels
from data_gen.records import read_table
from negclip_jax.common import storage
from negclip_jax.common.statistics import Share
from negclip_jax.language.vocabulary import canonical

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
_NOT_A_MODEL = ("instances", "vqa")
_SHOWN = 20  # classes in the printed table


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
    run: str | os.PathLike, instances: str | os.PathLike, labels: str | os.PathLike | None = None
) -> str:
    """Measures a run, writes `audit.json` into it and returns a table for the terminal.

    Args:
      run: directory of a run with verdicts and pairs.
      instances: COCO instances JSON of the same images.
      labels: `audit_sample.csv` with labels put in, if there are some.

    Raises InputError for files that cannot be read or are of another layout.
    """
    run, truth = Path(run), InstanceVerifier(instances)
    verdicts = read_table(run, "verdicts").to_pylist()
    columns = ["pair_id", "image_id", "object", "question", "rewriter", "accepted"]
    pairs = [row for row in read_table(run, "pairs", columns).to_pylist() if row["accepted"]]
    result = measure(judge(verdicts, truth))
    result["not_of_a_model"] = sum(row["method"] in _NOT_A_MODEL for row in verdicts)
    result["pairs"] = contradicted(pairs, truth)._asdict()
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


def contradicted(pairs: Sequence[dict[str, Any]], truth: InstanceVerifier) -> Share:
    """Of the accepted pairs that the annotations can judge, those whose object is there."""
    known = [truth.verdict(p["image_id"], p["object"])[0] for p in pairs if not p["question"]]
    return Share.of(known.count(PRESENT), len(known) - known.count(UNSURE))


def table_text(result: dict[str, Any]) -> str:
    """The measures as lines for the terminal."""
    lines = [f"accepted pairs whose object is there  {Share(**result['pairs'])}"]
    for name, share in result.get("precision", {}).items():
        lines.append(f"hand labels, {name}: right  {Share(**share)}")
    if result.get("labels_of_no_pair"):
        lines.append(f"{result['labels_of_no_pair']} labels belong to no accepted pair of this run")
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
