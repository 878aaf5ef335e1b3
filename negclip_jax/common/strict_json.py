"""JSON that others wrote, within bounds: every surprise is a ValueError, no file eats the memory.

Python's `json` keeps the last of two equal keys, lets a `RecursionError` out of deep nesting and
builds whatever a file asks for: 1 GB of `{},{},{},...` needs 24 GB. Here a file is weighed before
it is read and parsed, and a file of lines is read a line at a time.
"""

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

LONGEST_LINE = 2**24  # bytes of a JSON line: one record, thousands of captions
# Bytes of Python objects that a character of JSON stands for, measured and rounded up: a dict, a
# list, an element with its string, a key with its place in the dict.
_COSTS = ((b"{", 120), (b"[", 70), (b",", 64), (b":", 130))
_SMALL = 2**24  # bytes of a file that is read without asking how much memory is free
_BEGINS = re.compile(rb"(\xef\xbb\xbf)?\s*[\[{]")
_MARGIN = 100  # calls
_TOO_LITTLE = "it needs more memory than there is"
_MEMORY = Path("/proc/meminfo")


def loads(text: bytes | str) -> Any:
    """The value of a JSON text; bytes are UTF-8, with or without a byte order mark.

    Raises:
      ValueError: bad syntax (then a `json.JSONDecodeError`), bad UTF-8 (`UnicodeDecodeError`), two
        equal keys in an object, nesting beyond Python's recursion limit, a number of more than
        4,300 digits, more than the memory holds.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        nested = text.count("[") + text.count("{") > _MARGIN
        return _parsed(text, _MARGIN if nested else 0)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except MemoryError:
        raise ValueError(_TOO_LITTLE) from None


def load(path: Path, *, memory: int | None = None) -> Any:
    """The value of a JSON file; see `loads`.

    Args:
      path: a regular file.
      memory: bytes that reading it may need, by default half of what is free.

    Raises:
      ValueError: see `loads`; a file that would need more memory, which is then not read.
      OSError: a file that cannot be read.
    """
    if memory is None:
        memory = _allowance(path)
    content = read(path, memory=memory, begins=_BEGINS)
    _require(memory_needed(content), memory)
    return loads(content)


def read(path: Path, *, memory: int | None = None, begins: re.Pattern | None = None) -> bytes:
    """The bytes of a text file, if they and their text fit into `memory`.

    Args:
      path, memory: see `load`.
      begins: what a large file must match at its start, or the rest of it is not read.

    Raises ValueError, OSError: see `load`.
    """
    state = path.stat()
    if not (stat.S_ISREG(state.st_mode) or stat.S_ISDIR(state.st_mode)):
        raise ValueError("it is a device or a pipe, not a file")
    _require(2 * state.st_size, _allowance(path) if memory is None else memory)
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


def lines(file: BinaryIO, longest: int = LONGEST_LINE) -> Iterator[bytes]:
    """The lines of a file, with their ends, never more than `longest` bytes of it in memory.

    Raises ValueError for a longer line.
    """
    while line := file.readline(longest + 1):
        if len(line) > longest:
            raise ValueError(f"it is longer than {longest:,} bytes")
        yield line


def _parsed(text: str, margin: int) -> Any:
    """The value, parsed `margin` calls further down: what is just not nested too deeply can still
    be printed and walked through."""
    if margin:
        return _parsed(text, margin - 1)
    return json.loads(text, object_pairs_hook=_unique)


def _unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(items)
    if len(content) < len(items):
        seen: set[str] = set()
        twice = next(key for key, _ in items if key in seen or seen.add(key))
        raise ValueError(f"the key {twice[:80]!r} occurs twice in an object")
    return content


def _require(needed: int, memory: int) -> None:
    if needed > memory:
        raise ValueError(
            f"reading it would need about {needed / 2**30:.1f} GiB of memory, and "
            f"{memory / 2**30:.1f} GiB may be used"
        )


def _allowance(path: Path) -> int:
    """Half of the memory that is free, which the system is not asked about for a small file."""
    return 2**62 if path.stat().st_size <= _SMALL else _free_memory() // 2


def _free_memory() -> int:
    """Bytes that the system can give without swapping; where it does not say, 8 GiB."""
    try:
        found = re.search(r"MemAvailable:\s*(\d+) kB", _MEMORY.read_text())
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else 2**33
