"""The record of a negation pair, and the split of pairs into training and validation."""

import bisect
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int

from negclip_jax.common.errors import InputError
from negclip_jax.data import order

LONGEST_TEXT = 100_000  # characters; the model reads some 300 of them
FIELDS = ("image", "caption", "negated", "foils", "image_id", "object", "provenance")  # of a pair


class PairError(InputError):
    """A file of pairs that cannot be used; the message says what is wrong and where."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One caption of one image, with its negation.

    Attributes:
      image: file name relative to the image directory, with forward slashes.
      caption: the original, affirmative caption.
      negated: a caption with a negation that is true of the image, or None.
      foils: captions that are false of the image.
      image_id: identity of the image; the split by image keeps it on one side.
      object: the absent object that `negated` names.
      provenance: where `negated` came from (model, run, prompt).
    """

    image: str
    caption: str
    negated: str | None
    foils: tuple[str, ...] = ()
    image_id: str = field(kw_only=True)
    object: str | None = None
    provenance: str | None = None


class JoinedNames(Sequence):
    """The names of several sequences one after the other, each with something before it."""

    def __init__(self, parts: Sequence[tuple[str, Sequence[str]]]):
        """`parts`: what stands before each name, and names."""
        self.parts = tuple(parts)
        self._starts = np.cumsum([0, *(len(names) for _, names in self.parts)]).tolist()

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if not isinstance(index, slice):
            index = range(len(self))[index]
            part = bisect.bisect_right(self._starts, index) - 1
            before, names = self.parts[part]
            return before + names[index - self._starts[part]]
        wanted, found = range(*index.indices(len(self))), []
        if wanted.step != 1:
            return [self[i] for i in wanted]
        for (before, names), start in zip(self.parts, self._starts, strict=False):
            first, stop = max(0, wanted.start - start), min(len(names), wanted.stop - start)
            found += [before + name for name in (names[first:stop] if first < stop else ())]
        return found

    def __iter__(self) -> Iterator[str]:
        for before, names in self.parts:
            yield from (before + name for name in names)


def unsafe_name(name) -> str | None:
    """Why `name` must not be used as a file below an image directory, or None if it may."""
    if not isinstance(name, str) or not name.strip():
        return "is empty" if isinstance(name, str) else "is not a string"
    if "\0" in name or "\\" in name:
        return "contains a NUL" if "\0" in name else "contains a backslash"
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        return "is an absolute path"
    if ".." in name.split("/"):
        return "climbs out of the image directory"
    if not name.isascii() and any("\ud800" <= c <= "\udfff" for c in name):
        return "is not valid Unicode"
    return "names no file" if posixpath.normpath(name) == "." else None


def held_out(
    groups: Int[np.ndarray, " {n}"] | None,
    n: int,
    *,
    validation_fraction: float,
    by: str,
    seed: int,
) -> Bool[np.ndarray, " {n}"]:
    """Which of n pairs are for validation. The same on every machine and numpy version.

    By "image", no image is on both sides, and `validation_fraction` is of the images. By "caption"
    it is of the pairs, and captions of one image fall on both sides: the published split, which
    leaks images.

    `groups`: for a split by image, non-negative integers, equal for pairs of one image and
    ordered as the names of images are; for one by caption None.

    Raises PairError for a fraction outside 0 <= f < 1 or one that leaves a side empty, and for
    another `by`.
    """
    if by not in ("image", "caption"):
        raise PairError(f'Pairs can be split by "image" or by "caption", not by {by!r}.')
    if not 0 <= validation_fraction < 1:
        raise PairError(f"validation_fraction is {validation_fraction}: it must be in 0 <= f < 1.")
    if groups is not None:
        is_there = np.zeros(groups.max(initial=-1) + 1, bool)
        is_there[groups] = True
    total = n if groups is None else int(is_there.sum())
    count = round(validation_fraction * total)
    if validation_fraction and not 0 < count < total:
        raise PairError(
            f"A validation_fraction of {validation_fraction} of {total} {by}s leaves the "
            f"{'training' if count else 'validation'} side empty: give more {by}s, another "
            "fraction, or 0 for no validation."
        )
    if not count:
        return np.zeros(n, bool)
    chosen = order.held_out(total, count, seed)
    if groups is None:
        return chosen
    is_there[is_there] = chosen
    return is_there[groups]
