"""By which words a caption names an object, and by which it does not."""

from pathlib import Path

import pytest

from negclip_jax.language.mentions import (
    find_kinds,
    find_same,
    mentioned,
    named_categories,
    named_things,
)
from negclip_jax.language.text import tokenize


@pytest.mark.parametrize(
    ("obj", "text", "same", "kind", "mention"),
    [
        ("couch", "two sofas", True, True, True),
        ("cat", "a kitten", False, True, True),
        ("laptop", "a computer", False, False, True),
        ("wine glass", "some wine glasses", True, True, True),
        ("person", "three women", False, True, True),
        ("dog", "a hot dog", False, False, False),
        ("dog", "the dog's bowl", True, True, True),
        ("cat", "a category", False, False, False),
        ("dog", "Two dogs play", True, True, True),
        ("dog", "a dogged runner", False, False, False),
        ("person", "A WOMAN on a horse", False, True, True),
        ("tv", "an old television", True, True, True),
        ("knife", "knives on a board", True, True, True),
        ("scissors", "garden shears", True, True, True),
        ("person", "a couple of monitors", False, False, False),
        ("person", "a couple on a bench", False, True, True),
        ("person", "a baby elephant in a passenger train", False, False, False),
        ("person", "a baby in a train", False, True, True),
        ("bus", "a bus stop", False, False, False),
        ("dog", "two hot dogs", False, False, False),
        ("car", "a car-free street", True, True, True),
        ("running", "he runs", True, True, True),
        ("red umbrella", "an umbrella", False, False, True),
        ("hot dog", "a dog", False, False, False),
        # WordNet, and what its words do not mean.
        ("dog", "a chihuahua", False, True, True),
        ("airplane", "a seaplane", False, True, True),
        ("person", "a plumber", False, True, True),
        ("person", "three planters and a trailer", False, False, False),
        ("sandwich", "a hot dog", False, False, False),
        ("bowl", "a toilet bowl", False, False, False),
        ("flower", "a vase of daisies", False, True, True),
        ("loafer", "brown shoes", False, False, True),
        ("gun", "a rifle", False, True, True),
        ("Christmas tree", "by a Christmas tree", True, True, True),
        ("piñata", "two piñatas", True, True, True),
        # An orange is a fruit.
        ("orange", "an orange cat", False, False, False),
        ("orange", "an orange and white bus", False, False, False),
        ("orange", "an orange and a banana", True, True, True),
        ("skis", "a man skiing down a hill", False, False, True),
    ],
)
def test_mentions(obj, text, same, kind, mention):
    tokens = tokenize(text)
    assert bool(find_same(obj, tokens)) == same
    assert bool(find_kinds(obj, tokens)) == kind
    assert mentioned(obj, ["a street", text]) == mention


def test_spans_are_of_tokens():
    assert find_same("wine glass", tokenize("Two wine glasses, a wine glass")) == [(1, 2), (4, 5)]


def test_categories_are_named_by_their_own_names():
    caption = "Two dogs on a sofa, a hot dog, a vehicle and a bus stop"
    assert named_categories(caption) == {"dog", "hot dog"}


@pytest.mark.parametrize(
    ("caption", "things"),
    [
        ("Two dogs, a hot dog and a vehicle",
         {"dog": "dogs", "hot dog": "hot dog", "vehicle": "vehicle"}),
        ("A kitten on a sofa", {"cat": "kitten", "couch": "sofa"}),
        ("The children ride near a tall bell tower.",
         {"person": "children", "bell tower": "bell tower"}),
        ("A girl in red, happily riding to the old barns", {"person": "girl", "barn": "barns"}),
        ("An orange cat in a blue sky", {"cat": "cat"}),
        ("Two dogs looking up at a camera", {"dog": "dogs"}),
        ("A man with a camera", {"person": "man", "camera": "camera"}),
        ("Some sort of toy", {"toy": "toy"}),
        ("A man does a trick on a ramp", {"person": "man", "ramp": "ramp"}),
        ("A closeup of a kiss at a wedding", {}),
        ("A cat at an intersection", {"cat": "cat", "intersection": "intersection"}),
    ],
)  # fmt: skip
def test_what_a_caption_names(caption, things):
    assert named_things(caption) == things


@pytest.mark.parametrize(
    ("obj", "caption"),
    [
        ("person", "A blacksmith hammers iron."),
        ("person", "Two shepherds on a hill."),
        ("shoe", "A pair of high heels on the floor."),
        ("hat", "Graduates throw their mortarboards."),
        ("fruit", "A bowl of cherries."),
        ("instrument", "A man with a guitar."),
        ("dessert", "A slice of pie on a plate."),
        ("bag", "A boy with a satchel."),
    ],
)
def test_kinds_that_wordnet_puts_elsewhere(obj, caption):
    assert mentioned(obj, [caption])


def test_lists_of_mentions_that_were_drawn_up_before():
    """Of a word in another sense the answer is mostly yes, as an object that may be there is not
    denied; another word is another thing."""
    lines = Path(__file__).with_name("mentions.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.split("|") for line in lines if not line.startswith("#")]
    there = [mentioned(name, [caption]) for name, caption, truth in rows if truth == "1"]
    other = [mentioned(name, [caption]) for name, caption, truth in rows if truth == "0"]
    assert there.count(True) >= 0.9 * len(there)
    assert other.count(True) <= 0.34 * len(other)
