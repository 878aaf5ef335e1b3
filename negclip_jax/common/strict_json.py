"""Untrusted JSON within bounds: every surprise is one error, no file fills the memory.

Python's `json` keeps the last of two equal keys, lets a `RecursionError` out of deep nesting and
builds whatever a file asks for: 1 GB of `{},{},{},...` needs 24 GB. Here the memory is estimated
before a file is read and parsed, and a file of lines is read a line at a time.

`read_json`, `parse_json` and `read_text` raise a user error that names the file. `load`, `loads`
and `read` below them raise ValueError and OSError, for callers with a message of their own.
`members` and `elements` read a file of long lists piece by piece.
"""

import codecs
import contextlib
import functools
import json
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from negclip_jax.common.errors import InputError

LONGEST_LINE = 2**24  # bytes of a JSON line: one record, thousands of captions
# Bytes of Python objects that a character of JSON stands for, measured and rounded up: a dict, a
# list, an element with its string, a key with its place in the dict.
_COSTS = ((b"{", 120), (b"[", 70), (b",", 64), (b":", 130))
_SMALL = 2**24  # bytes of a file that is read without asking how much memory is free
_BEGINS = re.compile(rb"(\xef\xbb\xbf)?\s*[\[{]")
_BLANK = re.compile(r"[ \t\n\r]*")
_PIECE = 2**20  # bytes of a file that is read piece by piece
_MARGIN = 100  # calls
_TOO_LITTLE = "it needs more memory than there is"
_MEMORY = Path("/proc/meminfo")
_KINDS = {dict: "object", list: "list"}


def read_json(
    path: Path,
    kind: type | tuple[type, ...] = dict,
    error: type[InputError] = InputError,
    *,
    without: str | None = None,
) -> Any:
    """The value of a JSON file whose outermost value is of a `kind`: dict, list, or (dict, list).

    `without` is a key that is left out of every object while reading, and lists under it are not
    even parsed: polygons are nine tenths of what a COCO instance file needs in memory. Raises
    `error`, which names the file and the place, where it cannot be read, is not UTF-8, not JSON,
    cut short, of another kind, or needs more memory than half of what is free.
    """
    with reported(path, error):
        content = load(path, without=without)
    if not isinstance(content, kind):
        wanted = " or ".join(_KINDS[k] for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise error(f"{path} holds a value of type {type(content).__name__}, not a JSON {wanted}.")
    return content


def parse_json(text: bytes | str, where: object, error: type[InputError] = InputError) -> Any:
    """The value of a JSON text that stands at `where`. Raises `error` as `read_json` does."""
    with reported(where, error):
        return loads(text)


def read_text(path: Path, error: type[InputError] = InputError) -> str:
    """A UTF-8 file, with or without byte order mark, that fits into memory, or `error`."""
    with reported(path, error):
        return read(path).decode("utf-8-sig")


@contextlib.contextmanager
def reported(where: object, error: type[InputError]) -> Iterator[None]:
    """Turns what `load`, `loads` and `read` raise into `error`, which names `where`."""
    try:
        yield
    except error:
        raise
    except UnicodeDecodeError as bad:
        raise error(f"{where} is not UTF-8 text: byte {bad.start} cannot be read.") from None
    except json.JSONDecodeError as bad:
        if not bad.doc.strip():
            found = "it holds only white space" if bad.doc else "0 bytes"
            raise error(f"{where} is empty: {found}.") from None
        # A file that was cut ends inside a value, or inside a string that never closes.
        cut = not bad.doc[bad.pos :].strip() or "Unterminated" in bad.msg
        raise error(
            f"{where} is not valid JSON at line {bad.lineno} column {bad.colno} (character "
            f"{bad.pos} of {len(bad.doc)}): {bad.msg}."
            + (" The file seems to be cut short: copy or write it again." if cut else "")
        ) from None
    except ValueError as bad:
        raise error(f"{where} cannot be read: {bad}.") from None
    except OSError as bad:
        raise error(f"{where} cannot be read: {bad.strerror or bad}.") from None


def loads(text: bytes | str, *, without: str | None = None) -> Any:
    """The value of a JSON text; bytes are UTF-8, with or without a byte order mark.

    Raises ValueError for bad syntax (then a `json.JSONDecodeError`), bad UTF-8
    (`UnicodeDecodeError`), two equal keys in an object, nesting beyond Python's recursion limit, a
    number of more than 4,300 digits, more than the memory holds.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        nested = text.count("[") + text.count("{") > _MARGIN
        return _parsed(text, _MARGIN if nested else 0, without)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except MemoryError:
        raise ValueError(_TOO_LITTLE) from None


def load(path: Path, *, without: str | None = None) -> Any:
    """The value of a JSON file, which is a regular one; see `read_json` and `loads`.

    Raises OSError, and ValueError also where it needs more than half of the free memory.
    """
    content = read(path, begins=_BEGINS)
    if without is not None:  # lists of numbers become 0 and blanks; positions stay
        # Within a JSON string a quote is escaped, so that only keys are found.
        pattern = rb'("%s"\s*:\s*)(\[[\[\]\s\d.,eE+-]*\])' % re.escape(without.encode())
        blank = functools.partial(re.sub, rb"[^\n]", b" ")
        content = re.sub(pattern, lambda m: m[1] + b"0" + blank(m[2][1:]), content)
    _require_memory(path, memory_needed(content))
    return loads(content, without=without)


def read(path: Path, *, begins: re.Pattern | None = None) -> bytes:
    """The bytes of a text file that fits, with its text, into half of the free memory.

    `begins`: what a large file must match at its start. Raises ValueError, OSError: see `load`.
    """
    state = path.stat()
    if not (stat.S_ISREG(state.st_mode) or stat.S_ISDIR(state.st_mode)):
        raise ValueError("it is a device or a pipe, not a file")
    _require_memory(path, 2 * state.st_size)
    try:
        with path.open("rb") as file:
            content = file.read(min(_SMALL, state.st_size))
            if state.st_size > _SMALL:
                if begins is not None and not begins.match(content):
                    raise ValueError(f"it does not begin like JSON: {content[:20]!r}")
                content += file.read(state.st_size - len(content))
        return content
    except MemoryError:  # a limit of this process, which the system's free memory does not show
        raise ValueError(_TOO_LITTLE) from None


def memory_needed(content: bytes) -> int:
    """Bytes that parsing a JSON text needs at most, roughly: it, its text, and all objects."""
    text = len(content) * (1 if content.isascii() else 4)
    return len(content) + 2 * text + sum(content.count(mark) * cost for mark, cost in _COSTS)


class Irregular(ValueError):
    """A file that is not read piece by piece: `load` reads it whole, or says what is wrong."""


def members(path: Path, *, without: str | None = None) -> Iterator[tuple[str, bool, Any]]:
    """The object in a JSON file, piece by piece, in its order; little of it is in memory.

    Of each key that holds a list of anything: (key, True, element) for its elements. Of any other:
    (key, False, value). `without`: see `read_json`.

    Raises Irregular for whatever `load` does, and for values longer than `LONGEST_LINE`. It may do
    so after the last piece: use none before that, or be ready to begin again.
    """
    hook = functools.partial(_unique, without=without)
    decode, seen = json.JSONDecoder(object_pairs_hook=hook).raw_decode, set[str]()
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise Irregular
        with path.open("rb") as file:
            text = _Pieces(file)
            text.take("{")
            while text.next() != "}":
                if seen:
                    text.take(",")
                key = text.value(decode) if text.next() == '"' else None
                if key is None or key in seen:
                    raise Irregular
                seen.add(key)
                text.take(":")
                if text.next() != "[":
                    yield key, False, text.value(decode)
                    continue
                text.take("[")
                if text.next() == "]":
                    yield key, False, []
                while text.next() != "]":
                    yield key, True, text.value(decode)
                    if text.next() != "]":
                        text.take(",")
                        if text.next() == "]":
                            raise Irregular
                text.take("]")
            text.take("}")
            if text.next():
                raise Irregular
    except (ValueError, OSError, RecursionError, MemoryError):
        raise Irregular from None


def elements(
    path: Path, *keys: str, without: str | None = None, to_end: bool = True
) -> Iterator[Any]:
    """The elements of these lists of the object in a JSON file, which must all be there.

    Raises Irregular as `members` does. Without `to_end` what follows the lists is not looked at.
    """
    left, now = set(keys), ""
    for key, is_element, value in members(path, without=without):
        if key != now:
            left.discard(now)
            if not (left or to_end):
                return
            now = key
        if key in keys:
            if is_element:
                yield value
            elif value != []:
                raise Irregular
    if left - {now}:
        raise Irregular


class _Pieces:
    """The text of a file while it is read; `members` catches what is raised."""

    def __init__(self, file: BinaryIO):
        self._file, self._ended, self._text, self._at = file, False, "", 0
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()

    def next(self) -> str:
        """The next character that is not blank; "" at the end."""
        while (end := _BLANK.match(self._text, self._at).end()) == len(self._text):
            self._at = end
            if not self._more():
                return ""
        self._at = end
        return self._text[end]

    def take(self, mark: str) -> None:
        if self.next() != mark:
            raise Irregular
        self._at += 1

    def value(self, decode: Callable[[str, int], tuple[Any, int]]) -> Any:
        self.next()
        while True:
            with contextlib.suppress(json.JSONDecodeError):
                value, end = decode(self._text, self._at)
                if end < len(self._text):  # else it may be a number that goes on
                    self._at = end
                    return value
            if not self._more():
                raise Irregular

    def _more(self) -> bool:
        """Reads on, more the longer a value is; False at the end of the file."""
        rest = len(self._text) - self._at
        if self._ended or rest > LONGEST_LINE:
            return False
        data = self._file.read(max(_PIECE, rest))
        self._ended = not data
        self._text = self._text[self._at :] + self._decoder.decode(data, final=self._ended)
        self._at = 0
        return True


def lines(file: BinaryIO, longest: int = LONGEST_LINE) -> Iterator[bytes]:
    """The lines of a file, with their ends; ValueError for one of more than `longest` bytes."""
    while line := file.readline(longest + 1):
        if len(line) > longest:
            raise ValueError(f"it is longer than {longest:,} bytes")
        yield line


def _parsed(text: str, margin: int, without: str | None) -> Any:
    """The value, parsed `margin` calls further down: what is just not nested too deeply can still
    be printed and walked through."""
    if margin:
        return _parsed(text, margin - 1, without)
    return json.loads(text, object_pairs_hook=functools.partial(_unique, without=without))


def _unique(items: list[tuple[str, Any]], without: str | None) -> dict[str, Any]:
    content = dict(items)
    if len(content) < len(items):
        seen: set[str] = set()
        twice = next(key for key, _ in items if key in seen or seen.add(key))
        raise ValueError(f"the key {twice[:80]!r} occurs twice in an object")
    content.pop(without, None)
    return content


def _require_memory(path: Path, needed: int) -> None:
    """ValueError for more than half of what is free; for a small file nothing is asked."""
    if path.stat().st_size > _SMALL and needed > (memory := _free_memory() // 2):
        raise ValueError(
            f"reading it would need about {needed / 2**30:.1f} GiB of memory, and "
            f"{memory / 2**30:.1f} GiB may be used"
        )


def _free_memory() -> int:
    """Bytes that the system can give without swapping; where it does not say, 8 GiB."""
    try:
        found = re.search(r"MemAvailable:\s*(\d+) kB", _MEMORY.read_text())
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else 2**33


def other_format(suffix: str, start: bytes) -> str | None:
    """What a file is that holds no JSON, by suffix and first line; None where it may be."""
    if start.startswith((b"ARROW1", b"\xff\xff\xff\xff")) or suffix in (".arrow", ".feather"):
        return "an Arrow file"
    if start[257:262] == b"ustar" or suffix == ".tar":
        return "a tar archive"
    if start.startswith((b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"(\xb5/\xfd")):
        return "a compressed file"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not the file itself, which `git lfs pull` brings"
    is_utf16 = start.startswith((b"\xff\xfe", b"\xfe\xff"))
    line = start.decode("utf-16" if is_utf16 else "utf-8-sig", "replace").strip()
    if not line or (line[0] in '{["' and suffix not in (".csv", ".tsv")):
        return None
    delimiter = "\t" if suffix == ".tsv" else max(",;\t", key=line.count)
    if suffix in (".csv", ".tsv") or delimiter in line:
        first_row = line.splitlines()[0].split(delimiter)
        columns = ", ".join(word.strip(' "')[:40] for word in first_row)
        kind = {",": "comma", ";": "semicolon", "\t": "tab"}[delimiter]
        return f"a table of {kind}-separated values with the columns {columns[:200]}"
    return f"no JSON: it begins with {line[:40]!r}"
