"""Objects are drawn by what they occur with."""

import collections

import numpy as np
import pytest

from data_gen.annotations import Cooccurrence, unsaid

NAMES = ["cat", "couch", "dog", "kite"]
PRESENT = [frozenset(["cat", "couch"])] * 50 + [frozenset(["dog", "kite"])] * 50


@pytest.mark.parametrize("images", [PRESENT, dict(enumerate(PRESENT))])
def test_plausible_objects_are_drawn_more_often(images):
    statistics = Cooccurrence(images)
    assert statistics.names == NAMES
    rng = np.random.default_rng(0)
    first = [statistics.draw(frozenset(["cat"]), 20, rng)[0] for _ in range(200)]
    assert first.count("couch") > 180
    assert "cat" not in first


def test_a_share_of_random_objects():
    statistics = Cooccurrence(PRESENT, NAMES, random=1.0)
    rng = np.random.default_rng(0)
    drawn = collections.Counter(statistics.draw(frozenset(["cat"]), 20, rng)[0] for _ in range(300))
    assert min(drawn[name] for name in ("couch", "dog", "kite")) > 60


def test_nothing_absent_and_nothing_known():
    everything = frozenset(["cat", "dog"])
    rng = np.random.default_rng(0)
    assert Cooccurrence([everything]).draw(everything, 20, rng) == []
    assert set(Cooccurrence(PRESENT).draw(frozenset(), 20, rng)) == set(NAMES)
    assert set(Cooccurrence(PRESENT).draw(frozenset(["unheard of"]), 20, rng)) == set(NAMES)
    assert Cooccurrence([]).draw(frozenset(), 20, rng) == []


def test_proposals_are_neither_present_nor_mentioned_and_repeat():
    statistics = Cooccurrence(PRESENT)
    found = statistics.propose(frozenset(["dog"]), ["a kitten on a street"], 3, "7")
    assert sorted(found) == ["couch", "kite"]
    assert statistics.propose(frozenset(["dog"]), ["a kitten on a street"], 3, "7") == found
    assert len(statistics.propose(frozenset(), [], 2, "7")) == 2
    orders = {tuple(statistics.propose(frozenset(), [], 4, str(i))) for i in range(20)}
    assert len(orders) > 5


@pytest.mark.parametrize("alone", [False, True])
def test_objects_are_drawn_as_often_as_they_are_there_to_be_said(alone):
    """Cats and couches are as frequent, but captions leave cats unsaid three times as often."""
    photos = [(frozenset([a, b]), a, b) for a, b in (("cat", "couch"), ("dog", "kite"))] * 400
    told = [(p, [([b if i // 2 % 4 == 0 else a], alone)]) for i, (p, a, b) in enumerate(photos)]
    statistics = Cooccurrence([present for present, *_ in photos] * 5)
    statistics.fit(told)
    rng, drawn = np.random.default_rng(1), collections.Counter()
    for present, *_ in photos:
        drawn.update(statistics.draw(present, 1, rng, alone))
    there = collections.Counter(name for _, captions in told for (name,) in [captions[0][0]])
    for name, n in there.items():
        assert abs(drawn[name] - n) < 0.25 * n + 20, (drawn, there)
    other = collections.Counter()
    for present, *_ in photos:
        other.update(statistics.draw(present, 1, rng, not alone))
    assert other["couch"] > 1.5 * there["couch"]  # the other kind of texts has factors of its own


@pytest.mark.parametrize(
    ("caption", "found", "alone"),
    [
        ("a man on a street", ["dog", "kite"], False),
        ("a man with his poodle", ["kite"], False),
        ("a dog and a kite", ["dog", "kite"], True),
    ],
)
def test_what_a_caption_leaves_unsaid(caption, found, alone):
    assert unsaid(["dog", "kite"], caption) == (found, alone)
    assert unsaid([], caption) == ([], False)
