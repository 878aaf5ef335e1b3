"""Choices: of several captions for a picture, or several crops for a phrase, which one is true?

Most negation benchmarks are lists of choices. A benchmark's file only reads its items; which
photos are there, what every option scores, both rules for ties, parts and groups of the items, and
the breakdown by negation are the same for all and live here.

So do controls: what rules that see no pixels, or no text, already reach. A control scores the
options of a benchmark's items from their file alone. It appears as a row beside the models, so that
a gain which a rule could have made is recognised as one. Its ties are shared under both rules.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from evals import scoring
from evals.benchmark import Metric, Problem, Result, by_both_rules
from evals.cues import AFTER, count_cues, cue_breakdowns, cue_columns, find_cue, split_at_cue
from evals.images import DataRoots, ImageRef, ProblemImages, Views
from negclip_jax.language import tables


@dataclasses.dataclass(frozen=True)
class Choice:
    """One item: several texts for one image, or several images for one text."""

    id: str  # unique in the benchmark
    # One, or one for each option.
    images: tuple[ImageRef, ...]
    texts: tuple[str, ...]
    answer: int = 0  # index of the right option
    # Columns of the predictions, such as the type of the question.
    groups: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def options(self) -> list[tuple[ImageRef, str]]:
        """Image and text of each option."""
        count = max(len(self.images), len(self.texts))
        images, texts = (x * count if len(x) == 1 else x for x in (self.images, self.texts))
        return list(zip(images, texts, strict=True))


@dataclasses.dataclass(frozen=True)
class AccuracySpec:
    """One reported accuracy."""

    name: str = "accuracy"  # of the metric; its strict twin is `name_strict`
    # Groups with their values, which the items that it counts have.
    where: Mapping[str, Collection[str]] = dataclasses.field(default_factory=dict)
    # A group: the mean over the group's values, each of equal weight, of their accuracies.
    macro: str | None = None
    at_least: int = 1  # values of the group with fewer items are left out
    headline: bool = False  # as in `Metric`


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

    `rule` is the official one for ties (`scoring.official`). `breakdowns` are groups to draw, with
    their titles; cue and position of the negation are added where texts negate. `views` are the
    photos whose mean embedding stands for an image, such as the frames of a video.
    """
    pictures = ProblemImages(roots, (ref for item in items for ref in item.images), views)
    kept = [item for item in items if all(ref in pictures for ref in item.images)]
    texts = list(dict.fromkeys(text for item in kept for text in item.texts))
    text_row = {text: row for row, text in enumerate(texts)}
    result = functools.partial(_result, kept, pictures, rule, numbers, breakdowns or {})

    def score(images: np.ndarray, rows: np.ndarray) -> Result:
        options = [option for item in kept for option in item.options]
        image_rows = np.array([pictures.row(ref) for ref, _ in options])
        text_rows = np.array([text_row[text] for _, text in options])
        return result(scoring.inner(pictures.features(images), image_rows, rows, text_rows))

    def score_without_model(control: Control) -> Result:
        # A rule over boxes or words ties often; the official rule would then report where the file
        # puts the answer (the top-most box of NegRefCOCOg: 74 % for 49 %).
        flat = [value for row in control(kept) for value in row]
        return result(np.asarray(flat, np.float64), shared=True)

    repeated = sum(len(set(item.options)) < len(item.options) for item in kept)
    if repeated:
        notes = [*notes, f"{repeated} items have two equal options, which no model can tell apart."]
    scorers = (controls or {}).items() if kept else ()
    described = {
        "missing": pictures.missing,
        "file": str(file),
        "notes": tuple(notes),
        "controls": {title: functools.partial(score_without_model, c) for title, c in scorers},
    }
    return Problem(pictures.refs, texts, score, len(items), len(kept), **described)


def _result(
    items: Sequence[Choice],
    pictures: ProblemImages,
    rule: str,
    numbers: Sequence[AccuracySpec],
    breakdowns: Mapping[str, str],
    flat: np.ndarray,
    *,
    shared: bool = False,
) -> Result:
    """From the scores of all options, one after another; `shared` ties under every name."""
    counts = np.array([len(item.options) for item in items], np.int64)
    scores = np.full((len(items), counts.max()), np.nan, flat.dtype)
    scores[np.arange(scores.shape[1]) < counts[:, None]] = flat
    answers = np.array([item.answer for item in items], np.int64)
    strict = scoring.credit(scores, answers)
    official = strict if shared else scoring.official(scores, answers, rule)
    real = [row[:count] for row, count in zip(scores, counts, strict=True)]
    cues = cue_columns([(item.texts, item.answer) for item in items])
    groups = dict.fromkeys(name for item in items for name in item.groups)
    columns = {
        "item": [item.id for item in items],
        "images": [[pictures.shown(ref) for ref in item.images] for item in items],
        "texts": [list(item.texts) for item in items],
        "scores": [row.tolist() for row in real],
        "answers": [[item.answer] for item in items],
        "predicted": [np.flatnonzero(row == row.max()).tolist() for row in real],
        "right": strict.tolist(),
        "right_official": official.tolist(),
        **{name: [item.groups.get(name, "") for item in items] for name in groups},
        **cues,
    }
    metrics: list[Metric] = []
    for number in numbers:
        wanted, weights = number.where.items(), None
        rows = [i for i, x in enumerate(items) if all(x.groups[k] in v for k, v in wanted)]
        if number.macro:
            values = np.array([items[row].groups[number.macro] for row in rows])
            _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
            enough = sizes[group] >= number.at_least
            rows, weights = np.array(rows, int)[enough].tolist(), 1 / sizes[group][enough]
        if rows:
            described = {"items": np.array([items[row].id for row in rows]), "weights": weights}
            described["chance"] = float(np.average(1 / counts[rows], weights=weights))
            described["headline"] = number.headline
            photos = [items[row].images[0].path for row in rows]
            points = official[rows], strict[rows]
            metrics += by_both_rules(number.name, *points, photos, **described)
    return Result(metrics, columns, {**breakdowns, **cue_breakdowns(cues)})


def _by_box(rule: Callable[[float, float, float, float], float]) -> Control:
    return lambda items: [[rule(*ref.box) for ref in item.images] for item in items]


# Rules over x, y, width, height of the boxes; the highest value is taken.
BOX_CONTROLS: dict[str, Control] = {
    "takes the smaller box": _by_box(lambda x, y, w, h: -w * h),
    "takes the box of taller shape": _by_box(lambda x, y, w, h: h / w),
    "takes the left-most box": _by_box(lambda x, y, w, h: -(x + w / 2)),
    "takes the top-most box": _by_box(lambda x, y, w, h: -(y + h / 2)),
}


def _by_text(count: Callable[[str], float]) -> Control:
    return lambda items: [[float(count(text)) for text in item.texts] for item in items]


# For benchmarks that let captions with and without negation compete.
POLARITY_CONTROLS: dict[str, Control] = {
    "prefers the negated text": _by_text(count_cues),
    "prefers the affirmed text": _by_text(lambda text: -count_cues(text)),
}
COMMA_CONTROL: dict[str, Control] = {
    "prefers the text with commas": _by_text(lambda text: text.count(","))
}

_WORD = re.compile(r"[a-z]+")
_CLAUSE = re.compile(r"[,;.]|\b(?:but|while|though|although|however|yet)\b", re.IGNORECASE)
# What NegBench's captions are made of besides the names of objects.
_FRAME = tables.words("negbench_frame")


def contradictions(items: Sequence[Choice]) -> list[list[float]]:
    """Solves a multiple-choice question from its captions alone: how many others each contradicts.

    The wrong options of NegBench agree with each other: for objects A (there) and N (not there)
    they say "N but not A", "N" and "not A", while the right one says otherwise. So each option is
    read as statements "W is there" / "W is not there" about the words that options share, and the
    one that contradicts most is taken. A dual encoder scores options one by one and cannot do
    that; whatever sees the options together can.
    """
    scores = []
    for item in items:
        claims = [_claims(text) for text in item.texts]
        scores.append([float(sum(_conflicts(mine, o) for o in claims)) for mine in claims])
    return scores


def _conflicts(mine: dict[str, bool], other: dict[str, bool]) -> int:
    return sum(there != other.get(word, there) for word, there in mine.items())


def _claims(text: str) -> dict[str, bool]:
    """Word to whether the text says that it is there."""
    claims: dict[str, bool] = {}
    for clause in _CLAUSE.split(text):
        cue = find_cue(clause)
        before, after = split_at_cue(clause)
        negated_before = cue is not None and cue.position == AFTER
        for part, there in ((before, not negated_before), (after, cue is None)):
            for word in _WORD.findall(part.lower()):
                if word not in _FRAME:
                    claims[word.removesuffix("s")] = there
    return claims
