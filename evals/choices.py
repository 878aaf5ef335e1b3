"""Choices: of several captions for a picture, or several crops for a phrase, which one is true?

Most negation benchmarks are lists of choices. A benchmark's file only reads its items; which
photos are there, what every option scores, both rules for ties, parts and groups of the items, and
the breakdown by negation are the same for all and live here.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from evals import scoring
from evals.benchmark import Metric, Problem, Result, by_both_rules
from evals.cues import cue_breakdowns, cue_columns
from evals.images import DataRoots, ImageRef, ProblemImages, Views


@dataclasses.dataclass(frozen=True)
class Choice:
    """One item: several texts for one image, or several images for one text.

    Attributes:
      id: unique in the benchmark.
      images, texts: one, or one for each option.
      answer: index of the right option.
      groups: columns of the predictions, such as the type of the question.
    """

    id: str
    images: tuple[ImageRef, ...]
    texts: tuple[str, ...]
    answer: int = 0
    groups: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def options(self) -> list[tuple[ImageRef, str]]:
        """Image and text of each option."""
        count = max(len(self.images), len(self.texts))
        images, texts = (x * count if len(x) == 1 else x for x in (self.images, self.texts))
        return list(zip(images, texts, strict=True))


@dataclasses.dataclass(frozen=True)
class AccuracySpec:
    """One reported accuracy.

    Attributes:
      name: of the metric; its strict twin is `name_strict`.
      where: groups with their values, which the items that it counts have.
      macro: a group: the mean over the group's values, each of equal weight, of their accuracies.
      at_least: values of the group with fewer items are left out.
      headline: as in `Metric`.
    """

    name: str = "accuracy"
    where: Mapping[str, Collection[str]] = dataclasses.field(default_factory=dict)
    macro: str | None = None
    at_least: int = 1
    headline: bool = False


# Scores of all options of all items without any model.
Control = Callable[[Sequence[Choice]], Sequence[Sequence[float]]]
ACCURACY = (AccuracySpec(headline=True),)


def by_group(
    column: str, values: Sequence[str], *, headline: bool = False
) -> tuple[AccuracySpec, ...]:
    """An accuracy for each value of a group, named `accuracy_VALUE`."""
    return tuple(AccuracySpec(f"accuracy_{v}", {column: {v}}, headline=headline) for v in values)


def choice_problem(
    roots: DataRoots,
    file: Path,
    items: Sequence[Choice],
    *,
    rule: str,
    numbers: Sequence[AccuracySpec] = ACCURACY,
    breakdowns: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    controls: Mapping[str, Control] | None = None,
    views: Views | None = None,
) -> Problem:
    """The problem of scoring `items`, without those whose photos are missing.

    Args:
      rule: the official one for ties, see `scoring.official`.
      breakdowns: groups to draw, with their titles. Cue and position of the negation are added
        where texts negate.
      controls: scorers without a model, by title.
      views: the photos whose mean embedding stands for an image, such as the frames of a video.
    """
    pictures = ProblemImages(roots, (ref for item in items for ref in item.images), views)
    kept = [item for item in items if all(ref in pictures for ref in item.images)]
    table = _Table(kept, pictures, rule, tuple(numbers), dict(breakdowns or {}))
    repeated = sum(len(set(item.options)) < len(item.options) for item in kept)
    if repeated:
        notes = [*notes, f"{repeated} items have two equal options, which no model can tell apart."]
    return Problem(
        images=pictures.refs,
        texts=table.texts,
        score=table.score,
        total=len(items),
        scored=len(kept),
        missing=pictures.missing,
        file=str(file),
        notes=tuple(notes),
        controls={
            title: functools.partial(table.control, control)
            for title, control in (controls or {}).items()
            if kept
        },
    )


class _Table:
    """Items with the rows of their pictures and distinct texts."""

    def __init__(
        self,
        items: Sequence[Choice],
        pictures: ProblemImages,
        rule: str,
        numbers: Sequence[AccuracySpec],
        breakdowns: dict[str, str],
    ):
        self.items, self.rule, self.numbers, self.pictures = items, rule, numbers, pictures
        self.texts = list(dict.fromkeys(text for item in items for text in item.texts))
        self._counts = np.array([len(item.options) for item in items], np.int64)
        self._cues = cue_columns([(item.texts, item.answer) for item in items])
        self._breakdowns = breakdowns | cue_breakdowns(self._cues)

    def score(self, images: np.ndarray, texts: np.ndarray) -> Result:
        """The result of unit features `[len(images), D]` and `[len(texts), D]`."""
        images = self.pictures.features(images)
        text_row = {text: row for row, text in enumerate(self.texts)}
        options = [option for item in self.items for option in item.options]
        image_rows = np.array([self.pictures.row(ref) for ref, _ in options])
        text_rows = np.array([text_row[text] for _, text in options])
        return self._result(scoring.inner(images, image_rows, texts, text_rows))

    def control(self, scorer: Control) -> Result:
        """The result of a scorer that needs no model, its ties always shared.

        A rule over boxes or words ties often; the official rule would then report where the file
        puts the answer (the top-most box of NegRefCOCOg: 74 % for 49 %).
        """
        flat = [value for row in scorer(self.items) for value in row]
        return self._result(np.asarray(flat, np.float64), shared=True)

    def _result(self, flat: np.ndarray, shared: bool = False) -> Result:
        """From the scores of all options, one after another; `shared` ties under every name."""
        scores = np.full((len(self.items), self._counts.max()), np.nan, flat.dtype)
        scores[np.arange(scores.shape[1]) < self._counts[:, None]] = flat
        answers = np.array([item.answer for item in self.items], np.int64)
        strict = scoring.credit(scores, answers)
        official = strict if shared else scoring.official(scores, answers, self.rule)
        real = [row[:count] for row, count in zip(scores, self._counts, strict=True)]
        columns = {
            "item": [item.id for item in self.items],
            "images": [[self.pictures.shown(ref) for ref in item.images] for item in self.items],
            "texts": [list(item.texts) for item in self.items],
            "scores": [row.tolist() for row in real],
            "answers": [[item.answer] for item in self.items],
            "predicted": [np.flatnonzero(row == row.max()).tolist() for row in real],
            "right": strict.tolist(),
            "right_official": official.tolist(),
        }
        for name in dict.fromkeys(name for item in self.items for name in item.groups):
            columns[name] = [item.groups.get(name, "") for item in self.items]
        metrics = [m for number in self.numbers for m in self._metrics(number, official, strict)]
        return Result(metrics, columns | self._cues, self._breakdowns)

    def _metrics(
        self, number: AccuracySpec, official: np.ndarray, strict: np.ndarray
    ) -> list[Metric]:
        wanted, weights = number.where.items(), None
        kept = [
            row
            for row, item in enumerate(self.items)
            if all(item.groups[column] in values for column, values in wanted)
        ]
        if number.macro:
            values = np.array([self.items[row].groups[number.macro] for row in kept])
            _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
            enough = sizes[group] >= number.at_least
            kept, weights = np.array(kept, int)[enough].tolist(), 1 / sizes[group][enough]
        if not kept:
            return []
        return by_both_rules(
            number.name,
            official[kept],
            strict[kept],
            [self.items[row].images[0].path for row in kept],
            items=np.array([self.items[row].id for row in kept]),
            weights=weights,
            chance=float(np.average(1 / self._counts[kept], weights=weights)),
            headline=number.headline,
        )
