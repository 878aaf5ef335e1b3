"""The word tables in `data/*.tsv`: tab-separated text, whose head says what its columns mean."""

from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "data"


@cache
def rows(name: str, folder: Path = FOLDER) -> tuple[tuple[str, ...], ...]:
    """The rows of `NAME.tsv` in `folder` as texts, without its head; "-" stands for an empty cell.

    The head's last line, behind "# ", names the columns. Raises ValueError for a row with more or
    fewer cells, with its line.
    """
    lines = (folder / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    columns = lines[start - 1].count("\t") + 1
    found = []
    for number, line in enumerate(lines[start:], start + 1):
        cells = line.split("\t")
        if len(cells) != columns or not all(cells):
            raise ValueError(f"{name}.tsv:{number} has not {columns} cells: {line!r}")
        found.append(tuple("" if cell == "-" else cell for cell in cells))
    return tuple(found)


@cache
def _classes() -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for name, members in rows("words"):
        found.setdefault(name, set()).update(members.split())
    return {name: frozenset(members) for name, members in found.items()}


def words(name: str) -> frozenset[str]:
    """The members of a class of `words.tsv`. Raises KeyError for an unknown one."""
    return _classes()[name]
