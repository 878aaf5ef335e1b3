"""By which words a caption names an object, and by which it does not."""

import pytest

from negclip_jax.language.cues import tokenize
from negclip_jax.language.mentions import find_kinds, find_same, mentioned


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
    ],
)
def test_mentions(obj, text, same, kind, mention):
    tokens = tokenize(text)
    assert bool(find_same(obj, tokens)) == same
    assert bool(find_kinds(obj, tokens)) == kind
    assert mentioned(obj, ["a street", text]) == mention


def test_spans_are_of_tokens():
    assert find_same("wine glass", tokenize("Two wine glasses, a wine glass")) == [(1, 2), (4, 5)]
