"""Which word negates and where, on sentences of every benchmark."""

import csv
import re

import pytest

from evals.cues import (
    AFTER,
    BEFORE,
    INSTEAD,
    Cue,
    count_cues,
    cue_breakdowns,
    cue_columns,
    find_cue,
    split_at_cue,
)
from evals.reading import Fields


@pytest.mark.parametrize(
    ("text", "word", "position"),
    [
        ("a street with no cars", "no", BEFORE),
        ("a man without his shirt", "without", BEFORE),
        ("This image does not feature a knife.", "not", BEFORE),
        ("A chair is not present in this image.", "not", AFTER),
        ("the cup is not on the table", "not", AFTER),
        ("a sheep whose head isn't visible", "not", AFTER),
        ("There isn\u2019t a dog.", "not", BEFORE),
        ("you cannot see a bus", "not", BEFORE),
        ("a pier with nobody on it", "nobody", INSTEAD),
        ("the chair that no one is using", "nobody", INSTEAD),
        ("as for cats, there are none", "nothing", INSTEAD),
        ("A car is nowhere to be found.", "absent", AFTER),
        ("the dog is missing", "absent", AFTER),
        ("a bike missing a wheel", "absent", BEFORE),
        ("This image lacks a tv.", "lacks", BEFORE),
        ("neither a cat nor a dog", "neither", BEFORE),
    ],
)
def test_cue_and_position(text, word, position):
    assert find_cue(text) == Cue(word, position)


@pytest.mark.parametrize(
    "text",
    ["a knot in a notebook", "the piano", "batter no . 10", "bus No. 7", "an annotated photo", ""],
)
def test_words_that_only_look_like_negation(text):
    assert find_cue(text) is None and count_cues(text) == 0
    assert split_at_cue(text) == (text, "")


def test_counting_and_splitting():
    assert count_cues("no cat and no dog, nothing at all") == 3
    assert split_at_cue("a cat without a hat") == ("a cat ", " a hat")


def test_columns_prefer_the_right_text():
    items = [
        (("a cat", "no cat"), 0),
        (("without a cat", "no cat"), 0),
        (("a", "b is missing"), 1),
        (("a", "b"), 0),
        (("not a cat",), 0),
    ]
    assert cue_columns(items) == {
        "cue": ["no", "without", "absent", "none", "not"],
        "position": [BEFORE, BEFORE, AFTER, "none", BEFORE],
        "negated": ["wrong", "right and wrong", "right", "none", "right"],
    }
    assert cue_columns([(("a", "b"), 0)]) == {}


def test_what_is_worth_a_drawing():
    items = [(("a cat", "no cat"), 0)] * 2 + [(("a", "not b"), 1)] * 3
    columns = cue_columns(items)
    assert set(cue_breakdowns(columns)) == {"cue", "negated"}  # the position is always the same
    few = cue_columns([*items[:1], *[(("a", "b"), 0)] * 20])
    assert few["cue"].count("no") == 1 and cue_breakdowns(few) == {}
    assert set(cue_breakdowns(cue_columns([*items[:1], *[(("a", "b"), 0)] * 19]))) == set(few)
    assert cue_breakdowns({}) == {}


def test_positions_agree_with_the_labels_of_real_negated_captions(shared_data):
    """NegBench names the absent objects; where the caption names one, the cue is beside it."""
    name = "COCO_val_negated_retrieval_llama3.1_rephrased_affneg_true.csv"
    fields = Fields(shared_data / name)
    agree = total = found = captions = 0
    with (shared_data / "benchmarks" / "slices" / name).open(newline="") as file:
        for row in csv.DictReader(file):
            absent = fields.texts(row, "negative_objects", "")
            for text in fields.texts(row, "captions", ""):
                captions += 1
                cue = find_cue(text)
                found += cue is not None
                named = [re.search(rf"\b{name}s?\b", text.lower()) for name in absent]
                places = [match.start() for match in named if match]
                if cue is None or cue.position == INSTEAD or len(places) != 1:
                    continue
                before = places[0] > len(split_at_cue(text)[0])
                agree += (cue.position == BEFORE) == before
                total += 1
    assert captions == 1055 and found / captions > 0.97
    assert total > 800 and agree / total > 0.97
