"""Objects are drawn by what they occur with."""

import collections

import numpy as np
import pytest

from data_gen.annotations import Cooccurrence

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
