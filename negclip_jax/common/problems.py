"""What is wrong with the records of a file, collected: all of it comes in one error."""

from collections.abc import Sequence
from pathlib import Path

from negclip_jax.common.errors import InputError

_LONGEST_PLACE = 300  # characters


class Problems:
    """Kinds of problems, each with the first places where it was found and their number.

    `shown` places of a kind are kept: a file of nothing but problems must not fill the memory.
    """

    def __init__(self, shown: int = 10):
        self.shown = shown
        self._places: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def note(self, what: str, where: str) -> None:
        """Adds that `what` is wrong at the record `where`."""
        places = self._places.setdefault(what, [])
        self._counts[what] = self._counts.get(what, 0) + 1
        if len(places) < self.shown:
            places.append(where[:_LONGEST_PLACE])

    def __len__(self) -> int:
        """The number of problems, of all kinds."""
        return sum(self._counts.values())

    def listed(self) -> list[str]:
        """For each kind `what (count): first places and n more`."""
        return [
            f"{what} ({self._counts[what]}): {first(places, self.shown, self._counts[what])}"
            for what, places in self._places.items()
        ]

    def raise_if_any(self, path: Path, error: type[InputError], advice: str) -> None:
        """Raises `error` with all that was noted about the file, and what to do about it."""
        if count := len(self):
            found = "; ".join(self.listed())
            raise error(f"{path} has {count} problem{'s' * (count > 1)}: {found}. {advice}")


def first(
    names: Sequence[str], shown: int = 10, count: int | None = None, separator: str = ", "
) -> str:
    """The first names as text, then how many more there are; `count` if `names` are not all."""
    more = (len(names) if count is None else count) - min(shown, len(names))
    return separator.join(names[:shown]) + (f" and {more:,} more" if more > 0 else "")
