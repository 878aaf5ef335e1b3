"""Rules that need no model: over boxes, over negating words, over captions alone."""

import pytest

from evals.choices import (
    BOX_CONTROLS,
    POLARITY_CONTROLS,
    Choice,
    contradictions,
)
from evals.images import ImageRef


def boxes(*shapes) -> list[Choice]:
    return [Choice("x", tuple(ImageRef("a", shape) for shape in shapes), ("text",))]


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("takes the smaller box", 1),
        ("takes the box of taller shape", 2),
        ("takes the left-most box", 0),
        ("takes the top-most box", 1),
    ],
)
def test_rules_over_boxes(title, expected):
    (scores,) = BOX_CONTROLS[title](boxes((0, 30, 40, 20), (50, 0, 20, 20), (60, 5, 20, 90)))
    assert max(range(3), key=scores.__getitem__) == expected
    assert len(set(scores)) == 3


def test_likings_of_negation():
    item = Choice("x", (ImageRef("a"),), ("no cat and no dog", "a cat", "not a cat"))
    assert POLARITY_CONTROLS["prefers the negated text"]([item]) == [[2, 0, 1]]
    assert POLARITY_CONTROLS["prefers the affirmed text"]([item]) == [[-2, 0, -1]]


def solved(*texts: str) -> list[int]:
    (scores,) = contradictions([Choice("x", (ImageRef("a"),), texts)])
    return [i for i, score in enumerate(scores) if score == max(scores)]


@pytest.mark.parametrize(
    "right",
    [
        "This image features a cat and a bus.",
        "A dog is not present in this image.",
        "This image features a cat, but there is no dog.",
        "This image features a cat without a dog.",
    ],
)
@pytest.mark.parametrize("position", range(4))
def test_the_option_that_contradicts_the_others(right, position):
    options = [
        "A dog is present in this image, but there is no cat.",
        "This image shows a dog.",
        "A cat is not included in this image.",
    ]
    options.insert(position, right)
    assert solved(*options) == [position]


def test_options_that_agree_are_a_tie():
    assert solved("a cat", "a dog", "no bus") == [0, 1, 2]


def test_plurals_are_the_same_thing():
    assert solved("two dogs", "no dog", "a dog and a cat", "a bus") == [1]
