"""Where a text negates, what it denies, and what only looks like a negation."""

import pytest

from negclip_jax.language.mentions import find_same
from negclip_jax.language.negation import (
    cue_of,
    find_cues,
    governs,
    negating_words,
    position,
)
from negclip_jax.language.text import tokenize


def cue_words(text):
    return [cue.word for cue in find_cues(tokenize(text))]


def denied(text, obj):
    tokens = tokenize(text)
    return any(
        governs(cue, tokens, *span) for cue in find_cues(tokens) for span in find_same(obj, tokens)
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A bus with no dog", ["no"]),
        ("A bus and no one in it", ["no one"]),
        ("The picture doesn’t show a dog", ["doesn't"]),
        ("You cannot see a dog, and nobody is there", ["cannot", "nobody"]),
        ("A scene devoid of dogs", ["devoid"]),
        ("A car-free street", ["-free"]),
        ("Neither a dog nor a cat", ["neither"]),
        ("A road empty of cars", ["empty"]),
        ("A man w/o a hat", ["w/o"]),
        ("A man isn ' t there", ["isn't"]),
        ("A bus", []),
        ("An empty room with a free seat and clear water", []),
        ("Not only a dog but a cat", []),
        ("Bus no. 5 and nothing but dogs, no doubt", []),
        ("A no parking sign", []),
        ("A bus with no parking meter", ["no"]),
        ("A hands-free phone", []),
        ("", []),
    ],
)
def test_cues(text, words):
    assert cue_words(text) == words


@pytest.mark.parametrize(
    ("text", "obj"),
    [
        ("A bus with no dog", "dog"),
        ("A bus without any large brown dogs", "dog"),
        ("No sign of a dog on the road", "dog"),
        ("A table with no fork, knife or spoon", "spoon"),
        ("A man not wearing a hat", "hat"),
        ("The picture does not show a dog", "dog"),
        ("A bus, but a dog is not visible", "dog"),
        ("A bus, and the dog is nowhere to be seen", "dog"),
        ("A bus, but dogs are not in the picture", "dog"),
        ("Noticeably absent from the scene is a dog", "dog"),
        ("A bus, but one thing is noticeably absent: a dog", "dog"),
        ("A bus, and notable by its absence is a dog", "dog"),
        ("Not pictured in this image is a dog", "dog"),
        ("A bus, and as for dogs, there are none", "dog"),
        ("Absent a dog, the image shows a bus", "dog"),
        ("A street free of cars", "car"),
        ("A car-free street", "car"),
        ("A bus with no sofa", "couch"),
        ("A man not in a car", "car"),
        ("The dog is missing: a bus on a road", "dog"),
        ("The dog is absent; the bus is red", "dog"),
    ],
)
def test_in_scope(text, obj):
    assert denied(text, obj)


@pytest.mark.parametrize(
    ("text", "obj"),
    [
        ("A bus with no dog, but a cat", "cat"),
        ("A man not sitting beside a dog", "dog"),
        ("A man not riding a horse with a dog", "dog"),
        ("No cat is sitting near the dog", "dog"),
        ("A dog is not barking", "dog"),
        ("A dog is not in a car", "dog"),
        ("A dog missing a leash", "dog"),
        ("A man with no dog collar", "dog"),
        ("No kitten is there", "cat"),
        ("A bus with no car and a dog", "dog"),
        ("Without a hat, a man walks a dog", "dog"),
    ],
)
def test_out_of_scope(text, obj):
    assert not denied(text, obj)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A bus on a road with no dog", "after"),
        ("No dog, just a bus on a road", "before"),
        ("There is no dog in this picture of a bus", "before"),
        ("A dog is nowhere to be seen, but a bus is parked", "before"),
        ("A bus, but a dog is nowhere to be seen", "after"),
        ("There is no dog in the picture", "alone"),
        ("The dog is missing", "alone"),
    ],
)
def test_position(text, expected):
    tokens = tokenize(text)
    assert position(find_cues(tokens)[0], tokens) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A bus with no dog", ("no", "after")),
        ("Nobody is there, just a bus", ("nobody", "before")),
        ("there isn't a dog", ("isn't", "alone")),
        ("A bus", None),
    ],
)
def test_cue_of(text, expected):
    assert cue_of(text) == expected


@pytest.mark.parametrize(
    ("text", "families"),
    [
        ("no doubt, neither a cat nor a dog", ["no", "neither", "neither"]),
        ("nobody and no one, w/o a hat", ["nobody", "nobody", "without"]),
        ("everything except a dog", ["lacks"]),
        ("bus no. 5, no . 7", []),
        ("a 'no parking' sign", []),
        ("a scene free from cars, devoid of people", ["lacks", "lacks"]),
        ("a room empty of people, sans dogs", []),  # `evals` has never counted these
    ],
)
def test_negating_words_are_literal(text, families):
    assert [cue.family for cue in negating_words(tokenize(text))] == families


def test_free_of_is_one_cue():
    tokens = tokenize("a road free of cars")
    assert [(cue.first, cue.last) for cue in negating_words(tokens)] == [(2, 3)]
