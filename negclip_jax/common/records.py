"""Typed fields of untrusted records, and the one rule for ids."""

import ast
import io
import itertools
import re
import tokenize
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from negclip_jax.common.errors import InputError
from negclip_jax.common.problems import Problems

Box = tuple[float, float, float, float]

_LONGEST_TEXT = 100_000  # characters of a caption
_LONGEST_LITERAL = 2**20  # characters of a list written in Python; parsing takes 200 bytes for each
_LONGEST_ID = 1000  # characters
_ADJACENT = re.compile(r"""['"]\s*[bBrRuU]?['"]""")  # perhaps two texts without a comma
_WHOLE = re.compile(r"0*([0-9]+)(?:\.0+)?", re.ASCII)


def identity(value: Any) -> str | None:
    """The id of an image, annotation or category as text; None for what is no id.

    1, "1", 1.0, "1.0" and "0001" are the same id. Other texts stay as they are.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    text = str(value)
    if not 0 < len(text) <= _LONGEST_ID or is_half(text):
        return None
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text


def as_written(value: Any) -> str:
    """An id as text for what the project writes: as the file spells it, without a float's `.0`."""
    return str(int(value)) if isinstance(value, float) else str(value)


def is_half(text: str) -> bool:
    """Whether it holds half a surrogate pair, which JSON can and no file can."""
    return not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text)


class Fields(Problems):
    """Takes the fields out of one file's records and notes whatever is wrong with them.

    Getters return an empty value for a bad field, so that reading goes on; `done` then raises.
    """

    advice = "Correct these records or get the file again; nothing was read."  # the last words

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
                value = read_literal(value)
            except ValueError:
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

    def unique(self, identity: str, where: str) -> str:
        """Notes a second record with the same identity."""
        if identity and identity in self._ids:
            self.note("an id occurs twice", f"{identity} in {self._ids[identity]} and {where}")
        self._ids.setdefault(identity, where)
        return identity

    def identity(self, record: Any, key: str, where: str) -> str:
        """An id, normalised by `identity`."""
        value = self._value(record, key, where)
        found = identity(value)
        if value is not None and found is None:
            self.note(f'"{key}" is neither text nor a whole number', where)
        return found or ""

    def done(self) -> None:
        """Raises InputError with all that was noted, if anything was."""
        self.raise_if_any(self.path, InputError, self.advice)

    def _value(self, record: Any, key: str, where: str) -> Any:
        if not isinstance(record, Mapping):
            self.note("a record is not an object", where)
        elif record.get(key) is None:
            self.note(f'"{key}" is missing', where)
        else:
            return record[key]
        return None


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


def read_literal(text: str) -> Any:
    """The value of a Python literal, without `eval`; a list of NumPy's texts too. Or ValueError."""
    if len(text) > _LONGEST_LITERAL:
        raise ValueError
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of "\d", on the terminal
            value = ast.literal_eval(text)
            if not _ADJACENT.search(text):
                return value
            # NumPy prints `['a cat' 'a dog']`, which Python joins to one text.
            every = tokenize.generate_tokens(io.StringIO(text).readline)
            tokens = [token for token in every if token.string.strip()]
            kinds = [token.type == tokenize.STRING for token in tokens]
            if not any(a and b for a, b in itertools.pairwise(kinds)):
                return value
            if not all(kinds[1:-1]):
                raise ValueError("commas between some of its texts only")
            return [ast.literal_eval(token.string) for token in tokens[1:-1]]
    except (SyntaxError, MemoryError, RecursionError, tokenize.TokenError) as error:
        raise ValueError(str(error)) from None
