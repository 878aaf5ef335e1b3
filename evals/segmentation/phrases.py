"""Phrases with the masks that they mean: what referring segmentation is scored on.

Each source in `SOURCES` reads published files as they are (`evals.segmentation.sources`). The
negated phrases among them are found by one rule, `NEGATED`, and scored a second time on their own.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from evals.cues import find_cue
from evals.images import DataRoots
from evals.reading import AVAILABLE, load_available
from negclip_jax.common.errors import InputError

NEGATED = (
    "A phrase counts as negated if evals/cues.py finds a negating word in it: no, not, n't, never, "
    "without, w/o, neither, nor, none, nothing, nobody, no one, lack, devoid, free of, minus, "
    "absence, except, exclude, absent, missing, nowhere; not before a number (no. 12)."
)


def is_negated(text: str) -> bool:
    """Whether a text negates by the rule of `NEGATED`."""
    return find_cue(text) is not None


@dataclasses.dataclass(frozen=True)
class Phrase:
    """A phrase and its true mask.

    Attributes:
      item: unique id within its set.
      image: the photo as the file names it.
      text: the phrase.
      segmentations: see `masks.mask_of`; the union is the mask.
      size: height and width that the segmentations belong to, None for the photo's own.
    """

    item: str
    image: str
    text: str
    segmentations: tuple[Any, ...]
    size: tuple[int, int] | None = None

    @property
    def negated(self) -> bool:
        """See `NEGATED`."""
        return is_negated(self.text)


@dataclasses.dataclass(frozen=True)
class PhraseSet:
    """The phrases of one published file whose photos are there.

    Attributes:
      name, title: on the command line and in the report.
      source, file: where it is published and which file was read.
      phrases: those whose photo is there, those of one photo together.
      total, total_negated: phrases of the file and split, and how many of them negate.
      missing: photos that are not there.
      notes: lines for the report.
    """

    name: str
    title: str
    source: str
    file: str
    phrases: Sequence[Phrase]
    total: int
    total_negated: int
    missing: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def scored(self) -> int:
        """Phrases whose photo is there."""
        return len(self.phrases)


Source = Callable[[DataRoots, str | None], list[PhraseSet]]


def phrase_set(roots: DataRoots, phrases: Iterable[Phrase], **described: Any) -> PhraseSet:
    """A set of the phrases whose photos are there; `described` are its other attributes."""
    phrases = list(phrases)
    totals = {"total": len(phrases), "total_negated": sum(p.negated for p in phrases)}
    missing = roots.missing(phrase.image for phrase in phrases)
    gone, by_photo = set(missing), {}
    for phrase in phrases:
        if phrase.image not in gone:
            by_photo.setdefault(phrase.image, []).append(phrase)
    kept = [phrase for group in by_photo.values() for phrase in group]
    return PhraseSet(phrases=kept, missing=missing, **(totals | described))


def load_sets(
    names: Sequence[str],
    sources: dict[str, Source],
    roots: DataRoots,
    *,
    split: str | None,
    allow_subset: bool,
) -> list[PhraseSet]:
    """Reads the phrases of several sources, or with `[AVAILABLE]` of all that are there.

    `split` is of the files that have splits, None for each one's own default. Raises InputError
    with one line for each set that cannot be scored.
    """
    unknown = [name for name in names if name not in sources and name != AVAILABLE]
    if unknown:
        raise InputError(f"--phrases={unknown[0]} is not one of {', '.join(sources)}")
    found = load_available(
        names,
        sources,
        lambda name: {each.name: each for each in sources[name](roots, split)},
        allow_subset=allow_subset,
        items=("phrases", "phrase with a mask"),
        skip_subsets=True,
    )
    if not found:
        raise InputError(
            f"there are no phrases with masks and photos below {', '.join(map(str, roots.data))}: "
            "put refer_test.json of PhraseCut, a folder of RefCOCO or COCO's instances.json there, "
            "with their photos"
        )
    return list(found.values())
