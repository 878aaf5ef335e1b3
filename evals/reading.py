"""Published annotation files, read as they are: JSON, JSON lines, CSV, Python literals.

Everything wrong with the records of a file is collected and comes in one sentence.
"""

import ast
import contextlib
import csv
import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.images import DataRoots, FileMissing, ImageRef
from negclip_jax.common import strict_json
from negclip_jax.common.errors import InputError
from negclip_jax.common.problems import Problems
from negclip_jax.common.strict_json import parse_json, read_text

Box = tuple[float, float, float, float]

_LONGEST_TEXT = 100_000  # characters of a caption
_LONGEST_LITERAL = 2**20  # characters of a list written in Python; parsing takes 200 bytes for each


class Fields(Problems):
    """Takes the fields out of one file's records and notes whatever is wrong with them.

    Getters return an empty value for a bad field, so that reading goes on; `done` then raises.
    """

    def __init__(self, path: Path):
        super().__init__(shown=5)
        self.path = path
        self._ids: dict[str, str] = {}

    def text(self, record: Any, key: str, where: str) -> str:
        """A string that is not blank, unchanged."""
        value = self._value(record, key, where)
        if isinstance(value, str) and value.strip() and len(value) <= _LONGEST_TEXT:
            return value
        if isinstance(value, str):
            wrong = f"is longer than {_LONGEST_TEXT:,} characters" if value.strip() else "is empty"
            self.note(f'"{key}" {wrong}', where)
        elif value is not None:
            self.note(f'"{key}" is not a string', where)
        return ""

    def texts(self, record: Any, key: str, where: str) -> list[str]:
        """A list of strings, or such a list written as a Python literal (read without eval)."""
        value = self._value(record, key, where)
        if isinstance(value, str):
            try:
                value = _literal(value)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                self.note(f'"{key}" is not a Python list', where)
                return []
        if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
            return value
        if value is not None:
            self.note(f'"{key}" is not a list of strings', where)
        return []

    def number(self, record: Any, key: str, where: str) -> float:
        """An int or float; a digit string of a CSV file counts."""
        value = self._value(record, key, where)
        try:
            return float("nan") if value is None else _number(value)
        except (TypeError, ValueError):
            self.note(f'"{key}" is not a number', where)
            return float("nan")

    def sequence(self, record: Any, key: str, where: str) -> list:
        """A list that is not empty, of anything."""
        value = self._value(record, key, where)
        if isinstance(value, list) and value:
            return value
        if value is not None:
            self.note(f'"{key}" is not a list of anything', where)
        return []

    def option(self, record: Any, key: str, where: str, options: Sequence[str]) -> str:
        """One of `options`."""
        value = self._value(record, key, where)
        if value in options:
            return value
        if value is not None:
            self.note(f'"{key}" is none of {", ".join(options)}', where)
        return ""

    def box(self, value: Any, where: str) -> Box:
        """x, y, width, height; width and height are positive."""
        try:
            x, y, width, height = (_number(v) for v in value)
        except (TypeError, ValueError):
            self.note("a box is not four numbers x, y, width, height", where)
            return (0.0, 0.0, 1.0, 1.0)
        if width <= 0 or height <= 0:
            self.note("a box has no area", where)
            return (0.0, 0.0, 1.0, 1.0)
        return (x, y, width, height)

    def check_boxes(
        self, roots: DataRoots, boxes: Iterable[tuple[ImageRef, str]], tolerated: float = 0.0
    ) -> list[str]:
        """Notes boxes that reach more than a pixel out of their photo, where the photo is there.

        Many of them say that the photos are not those that were annotated (copies of another size,
        say), and crops would be filled up with black. Up to a share `tolerated` is taken for
        careless annotation and only told in the sentences returned. `boxes` are references and the
        places where they stand.
        """
        present = [(ref, where) for ref, where in boxes if not roots.missing([ref.path])]
        sizes = {path: roots.size(path) for path in dict.fromkeys(ref.path for ref, _ in present)}
        outside = []
        for ref, where in present:
            x, y, w, h = ref.box
            width, height = sizes[ref.path]
            if x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1:
                shown = f"{where}: {[x, y, w, h]} in {ref.path} of {width} x {height}"
                outside.append(shown)
        if not outside:
            return []
        if len(outside) <= tolerated * len(present):
            return [f"{len(outside)} of {len(present)} boxes reach out of their photo."]
        for where in outside:
            self.note("a box lies outside its photo", where)
        return []

    def unique(self, identity: str, where: str) -> str:
        """Notes a second record with the same identity."""
        if identity and identity in self._ids:
            self.note("an id occurs twice", f"{identity} in {self._ids[identity]} and {where}")
        self._ids.setdefault(identity, where)
        return identity

    def done(self) -> None:
        """Raises InputError with all that was noted, if anything was."""
        self.raise_if_any(
            self.path,
            InputError,
            "Is it the published file? Correct these records or get it again; nothing was scored.",
        )

    def _value(self, record: Any, key: str, where: str) -> Any:
        if not isinstance(record, Mapping):
            self.note("a record is not an object", where)
        elif record.get(key) is None:
            self.note(f'"{key}" is missing', where)
        else:
            return record[key]
        return None


def find_parts(
    roots: DataRoots, names: Mapping[str, Sequence[str]], download: str
) -> tuple[dict[str, Path], list[str]]:
    """Those files of a benchmark that are there.

    `names` gives for each part the file names that it may have. Returns files by part, and a
    sentence about the parts that are not there. Raises FileMissing where none is.
    """
    files: dict[str, Path] = {}
    for part, wanted in names.items():
        with contextlib.suppress(FileMissing):
            files[part] = roots.find(*wanted, download=download)
    if not files:
        roots.find(*(wanted[0] for wanted in names.values()), download=download)
    absent = [part for part in names if part not in files]
    return files, [f"Parts whose file is not there: {', '.join(absent)}."] if absent else []


def read_json(path: Path, kind: type | tuple[type, ...]) -> Any:
    """A JSON file whose outermost value is a non-empty `kind`: list, dict or either.

    Raises InputError for anything else, and for an object with two equal keys: `json` would
    silently keep the last.
    """
    return _nonempty(path, strict_json.read_json(path, kind))


def read_json_lines(path: Path) -> list[dict]:
    """One JSON object a line, blank lines left out. Raises InputError."""
    lines = read_text(path).split("\n")  # splitlines would split at U+2028 too, inside a caption
    numbered = [(i, line) for i, line in enumerate(lines, 1) if line.strip()]
    return _nonempty(path, [parse_json(line, f"{path} line {i}") for i, line in numbered])


def read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV file with a header line that names at least `columns`. Raises InputError."""
    csv.field_size_limit(1 << 24)
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    try:
        names = reader.fieldnames or []
        rows = list(reader)
    except csv.Error as error:
        raise InputError(f"{path} is not CSV after line {reader.line_num}: {error}.") from None
    missing = [name for name in columns if name not in names]
    if missing:
        raise InputError(
            f"{path} has no column {', '.join(missing)}; its columns are {', '.join(names)}: is it "
            "the published file?"
        )
    return _nonempty(path, rows)


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    try:
        number = float(value)
    except OverflowError:  # 1 and four hundred zeros
        raise ValueError from None
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError
    return number


def _literal(text: str) -> Any:
    if len(text) > _LONGEST_LITERAL:
        raise ValueError
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of "\d", on the terminal
        return ast.literal_eval(text)


def _nonempty(path: Path, content: Any) -> Any:
    if not content:
        raise InputError(f"{path} holds no items.")
    return content
