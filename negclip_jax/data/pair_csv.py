"""Rows of CSV and TSV files of pairs, with the columns that open_clip, NegCLIP and NegBench write.

    open_clip   filepath, title
    NegCLIP     filepath, title, neg_caption (a list, or one text: false captions)
    NegBench    image_path, correct_answer (number), caption_0 to caption_3: one true, others false
    NegBench    filepath or image_path, captions (a list): a pair for each
    this one    image, caption, negated, foils, image_id, object, provenance

Lists are Python literals, read without `eval`. The comma of .csv and the tab of .tsv are checked
against the header.
"""

import csv
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from negclip_jax.common.problems import Problems, first
from negclip_jax.common.records import read_literal
from negclip_jax.data.fields import Named, missing, names_of
from negclip_jax.data.records import PairError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
_NAMES = {"filepath": "image", "image_path": "image", "file_name": "image", "title": "caption"}
_NAMES |= {"neg_caption": "foils", "foil": "foils"}
_SHOWN = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
_LONGEST_FIELD = 2**20  # characters


def rows(path: Path, problems: Problems, named: Named) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each row stands, and its fields by the names of `Pair`, for each of its captions.

    `named`: columns that are called otherwise, see `data.fields`. Rows that cannot be used are
    noted. Raises PairError for a file that is no such table.
    """
    delimiter = DELIMITERS[path.suffix.lower()]
    csv.field_size_limit(_LONGEST_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            columns = _columns(path, header, delimiter, named)
            places = {part: [header.index(name) for name in x] for part, x in named.items()}
            for values in reader:
                where = f"line {reader.line_num}"
                if len(values) != len(columns):
                    if values:
                        problems.note(f"not {len(columns)} fields as the header", where)
                    continue
                row = {name: value or None for name, value in zip(columns, values, strict=True)}
                row |= {part: values[at[0]] or None for part, at in places.items()}
                foils = [values[at] for at in places.get("foils", ())]
                found = _records(row, where, problems, foils or [row.get("foils")])
                yield from ((where, record) for record in found)
        except (csv.Error, UnicodeDecodeError) as error:
            what = "UTF-8" if isinstance(error, UnicodeDecodeError) else "CSV"
            raise PairError(
                f"{path} is not {what} after line {reader.line_num}: {error}; nothing was read."
            ) from None


def _columns(path: Path, header: list[str], delimiter: str, named: Named) -> list[str]:
    """What each column is called here, "" for one that a named one takes the place of."""
    listed = first([name[:40] for name in header], 20)
    if len(header) == 1:
        found = max(_SHOWN, key=header[0].count)
        if found != delimiter and header[0].count(found):
            raise PairError(
                f"{path} has {_SHOWN[found]} between its columns, where {_SHOWN[delimiter]} should "
                f"be in a {path.suffix} file: give it the other extension or write it again."
            )
    for name in names_of(named):
        if name not in header:
            raise missing(path, name, header)
    columns = [_NAMES.get(name, name) for name in header]
    hidden = set(named)
    if {"caption", "captions"} & hidden:
        hidden |= {"caption", "captions", "correct_answer"}
    columns = ["" if name in hidden else name for name in columns]
    twice = [name for i, name in enumerate(columns) if name and name in columns[:i]]
    if twice:
        raise PairError(f'{path} has two columns for "{twice[0]}"; it has: {listed}.')
    there = {*columns, *named}
    has_choices = {"correct_answer", "caption_0"} <= there
    has_caption = has_choices or {"caption", "captions"} & there
    for name, is_there in (("image", "image" in there), ("caption", has_caption)):
        if not is_there:
            other = first([k for k, v in _NAMES.items() if v == name])
            raise PairError(f'{path} has no column "{name}" (or {other}); it has: {listed}.')
    return columns


def _records(
    row: dict[str, Any], where: str, problems: Problems, foils: list[str | None]
) -> Iterator[dict[str, Any]]:
    def listed(name: str, text: str | None) -> list | None:
        """A list, or one text; None where it is neither."""
        text = text or ""
        if not text.lstrip().startswith(("[", "(")):
            return [text] if text else []
        try:
            value = list(read_literal(text))
        except (ValueError, TypeError):
            value = [None]
        if all(isinstance(item, str) for item in value):
            return value
        problems.note(f"{name} is not a Python list of strings", where)
        return None

    parts = [listed("foils", text) for text in foils]
    if None in parts:
        return
    foils = list(itertools.chain(*parts))
    record = row | {"foils": foils}
    choices = list(itertools.takewhile(row.__contains__, (f"caption_{i}" for i in range(100))))
    if "correct_answer" in row and choices:
        number = row["correct_answer"] or ""
        if not number.isdecimal() or int(number) >= len(choices):
            problems.note(f"correct_answer is not a number from 0 to {len(choices) - 1}", where)
            return
        true = choices.pop(int(number))
        yield record | {"caption": row[true], "foils": [row[name] for name in choices] + foils}
    elif row.get("caption") is None and "captions" in row:
        for caption in listed("captions", row["captions"]) or ():
            yield record | {"caption": caption}
    else:
        yield record
