"""Hand labels: a sample of accepted pairs for people to judge, and what their judgement says."""

import csv
import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from negclip_jax.common import storage
from negclip_jax.common.errors import InputError
from negclip_jax.common.statistics import Share

COLUMNS = ("pair_id", "file_name", "caption", "negated_caption", "object", "rewriter", "label")
SAMPLE = 200
_TRUE = {"1", "true", "yes", "y", "ok", "right", "correct", "good"}
_FALSE = {"0", "false", "no", "n", "wrong", "incorrect", "bad"}


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
        texts = {key: _harmless(str(row.get(key) or "")) for key in COLUMNS}
        writer.writerow({**texts, "label": ""})
    storage.write_whole(path, file.getvalue().encode())


def _harmless(text: str) -> str:
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


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
