"""Texts for people to judge: a page with their photos, a CSV of pairs, and what people answered.

The page works from disk, without a server. It does not tell what the run holds for true, and its
texts come in an order that does not tell either; `audit` joins the answers with the run by their
ids.
"""

import csv
import hashlib
import heapq
import io
import itertools
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_gen.images import PhotoFolder
from data_gen.records import read_manifest
from data_gen.texts import texts
from negclip_jax.common import storage
from negclip_jax.common.errors import InputError
from negclip_jax.common.page.template import plural, write_page
from negclip_jax.common.problems import first
from negclip_jax.common.provenance import content_hash
from negclip_jax.common.statistics import Share

SAMPLE = 200  # pairs or texts
_SIDE = 512  # pixels of a photo, the longer side: what is small must be seen

# The CSV of pairs that `report` writes. The page saves the columns text_id, file_name, text, label.
COLUMNS = ("pair_id", "file_name", "caption", "negated_caption", "object", "rewriter", "label")
_TRUE = {"1", "true", "yes", "y", "ok", "right", "correct", "good"}
_FALSE = {"0", "false", "no", "n", "wrong", "incorrect", "bad"}
_UNSURE = {"cannot tell", "unsure", "unclear", "?"}
# What is measured of texts: its name in `audit.json`, and for people.
RATES = {
    "false_but_true": "false texts that are true",
    "true_but_false": "true texts that are false",
    "cannot_tell": "cannot tell",
}
_BATCH = 10_000  # texts in memory at once
_SHOWN = 5  # lines that a message names


class Labels(NamedTuple):
    """A CSV of labels."""

    key: str  # "text_id", of a text that is true or false of its photo; "pair_id", of a right pair
    answers: dict[str, bool | None]  # by id; None: cannot tell
    lines: dict[str, int]  # where each stands
    rows: int  # in the file, with a label or without


def sample(
    rows: Iterable[Mapping[str, Any]], number: int, key: str = "pair_id", seed: int | str = ""
) -> list[Mapping[str, Any]]:
    """`number` rows at random, the same for the same rows in any order (by hash of their `key`)."""

    def place(row: Mapping[str, Any]) -> bytes:
        return hashlib.blake2b(f"{seed}{row[key]}".encode()).digest()

    return heapq.nsmallest(number, rows, place)


def write_sheet(
    run: Path,
    to: Path,
    number: int = SAMPLE,
    seed: int = 0,
    images: str | os.PathLike | None = None,
) -> str:
    """Writes `label_sheet.html` into the folder `to`; returns lines to print.

    Half of the texts are false in the run's view, as far as there are so many. A text whose photo
    is gone is left out. `images`: folder of the photos; default: the run's. Raises InputError where
    there is no text, or no photo.
    """
    if number < 2:
        raise InputError(f"--number is {number}; at least 2, one false and one true text")
    manifest = read_manifest(run)
    folder = images or manifest["config"]["input"]["images"]
    if folder is None:
        raise InputError(f"{run} was made without photos; give --images=DIR")
    photos = PhotoFolder(folder, _SIDE)

    half: dict[bool, list[Mapping[str, Any]]] = {False: [], True: []}
    every = (text for _, found in texts(run) for text in found)
    while batch := list(itertools.islice(every, _BATCH)):  # both halves in one pass
        for truth, kept in half.items():
            rows = [*kept, *(row for row in batch if row["truth"] == truth)]
            different = {row["text_id"]: row for row in rows}  # two pairs may say the same
            half[truth] = sample(different.values(), number, "text_id", seed)
    drawn = half[False][: number // 2]
    drawn += half[True][: number - len(drawn)]
    if not drawn:
        raise InputError(f"{run} has no accepted pair; `python -m data_gen report` shows why")
    names = sorted({row["file_name"] for row in drawn})
    photos_there = {name: url for name in names if (url := photos.thumbnail(name, _SIDE))}
    shown = [row for row in drawn if row["file_name"] in photos_there]
    if not shown:
        raise InputError(f"none of {len(names)} photos is in {folder}; give --images=DIR")
    shown = sample(shown, number, "text_id", f"{seed}/")  # an order that tells no half
    to.mkdir(parents=True, exist_ok=True)
    page = write_page(
        to / "label_sheet.html",
        Path(__file__).with_name("label_sheet.html"),
        rows=shown,
        photos=photos_there,
        key=content_hash([manifest["run_id"], [row["text_id"] for row in shown]])[:16],
        run=manifest["run_id"],
    )
    gone = len(names) - len(photos_there)
    missing = f"; {plural(gone, 'photo is', 'photos are')} not in {folder}" if gone else ""
    return (
        f"wrote {page}: {plural(len(shown), 'text')} of {plural(len(photos_there), 'photo')}"
        f"{missing}\n"
        f"open it in a browser, save the answers, and then: python -m data_gen audit --out={run} "
        "--labels=answers.csv"
    )


def write_sample(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes SAMPLE of the rows as CSV with an empty column `label`, "yes" or "no" to be put in.

    A cell that a spreadsheet would take for a formula begins with an apostrophe.
    """
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
    writer.writeheader()
    for row in sample(rows, SAMPLE):
        cells = {key: str(row.get(key) or "") for key in COLUMNS if key != "label"}
        formula = ("=", "+", "-", "@", "\t", "\r")
        writer.writerow({k: f"'{t}" if t.startswith(formula) else t for k, t in cells.items()})
    storage.write_whole(path, file.getvalue().encode())


def read_labels(path: str | os.PathLike) -> Labels:
    """The labels of `audit_sample.csv` or of the page's `answers.csv`, whatever its line ends.

    Raises InputError for a file without the columns, for labels that are no such word, and for an
    id that is answered twice, differently.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            content = file.read()
        head = content.splitlines()[0] if content else ""
        comma = next((mark for mark in ",;\t" if mark in head), ",")  # spreadsheets have others
        reader = csv.DictReader(io.StringIO(content, newline=""), delimiter=comma)
        columns = [(name or "").strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        key = next((name for name in ("text_id", "pair_id") if name in columns), None)
        if key is None or "label" not in columns:
            found = f"it has {', '.join(columns)}" if columns else "it is empty"
            raise InputError(
                f"{path} has no columns pair_id and label ({found[:200]}); `report` writes such a "
                "file, audit_sample.csv, and the page of `audit --sheet` one with text_id and label"
            )
        rows = [(reader.line_num, row[key] or "", row["label"] or "") for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV: {error}") from None
    labels = Labels(key, {}, {}, len(rows))
    wrong, twice = [], []
    for line, name, text in rows:
        word, name = text.strip().lower(), name.strip().removeprefix("'")
        if not word:
            continue
        if word not in _TRUE | _FALSE | _UNSURE:
            wrong.append(f"line {line} ({text!r})")
            continue
        answer = None if word in _UNSURE else word in _TRUE
        if labels.answers.setdefault(name, answer) != answer:
            twice.append(f"line {line}, as line {labels.lines[name]} does")
        labels.lines.setdefault(name, line)
    if wrong:
        known = "yes or no" if key == "pair_id" else "true, false or cannot tell"
        raise InputError(f"{path}: labels are {known}, not {first(wrong, _SHOWN)}")
    if twice:
        raise InputError(f"{path}: another answer to the same {key} in {first(twice, _SHOWN)}")
    return labels


def measure(labels: Labels, path: str | os.PathLike, run: Path) -> dict[str, Any]:
    """What people found, for `audit.json`. Raises InputError where no label is of this run.

    Returns:
      `precision`: share of right pairs, all and by rewriter; or `judged_texts`: rows of `by`,
      `name`, `false_but_true`, `true_but_false` and `cannot_tell`. `labels_of_no_pair` (or text):
      how many. `notes`: lines to print on what the file lacks.
    """
    of_texts = labels.key == "text_id"
    every = (row for pair, found in texts(run) for row in (found if of_texts else [pair]))
    rows = {row[labels.key]: row for row in every if row[labels.key] in labels.answers}
    unknown = [f"line {labels.lines[name]}" for name in labels.answers if name not in rows]
    what = "text" if of_texts else "accepted pair"
    answered, notes = len(labels.answers), []
    if answered and not rows:
        raise InputError(
            f"{path}: none of {answered} labels belongs to {'a' if of_texts else 'an'} {what} of "
            f"{run} ({first(unknown, _SHOWN)}); is it of another run?"
        )
    if unknown:
        noun = "labels belong" if len(unknown) > 1 else "label belongs"
        notes.append(f"{len(unknown)} {noun} to no {what} of this run: {first(unknown, _SHOWN)}")
    if answered < labels.rows:
        notes.append(f"{path}: {answered:,} of {labels.rows:,} rows have a label")
    judged = [(row, labels.answers[name]) for name, row in rows.items()]
    if not of_texts:
        groups: dict[str, list[bool]] = {"all": []}
        for row, is_right in judged:
            if is_right is not None:
                groups["all"].append(is_right)
                groups.setdefault(row["rewriter"].partition(":")[0], []).append(is_right)
        found = {name: Share.of(sum(v), len(v))._asdict() for name, v in groups.items()}
        return {"precision": found, "labels_of_no_pair": len(unknown), "notes": notes}
    tables = [{"by": "all", "name": "all texts", **_rates(judged)}]
    for by in ("writer", "form"):
        named = defaultdict(list)
        for row, answer in judged:
            named[row[by]].append((row, answer))
        for name, group in sorted(named.items(), key=lambda item: (-len(item[1]), item[0])):
            tables.append({"by": by, "name": name, **_rates(group)})
    return {"judged_texts": tables, "labels_of_no_text": len(unknown), "notes": notes}


def _rates(judged: Sequence[tuple[Mapping[str, Any], bool | None]]) -> dict[str, Any]:
    """Of the false texts those that are true, of the true ones those that are false."""
    rates = {}
    for name, truth in (("false_but_true", False), ("true_but_false", True)):
        told = [a for row, a in judged if row["truth"] == truth and a is not None]
        rates[name] = Share.of(told.count(not truth), len(told))._asdict()
    unsure = sum(answer is None for _, answer in judged)
    return rates | {"cannot_tell": Share.of(unsure, len(judged))._asdict()}
