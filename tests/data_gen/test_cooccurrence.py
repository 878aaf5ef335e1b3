"""Objects are drawn by what they occur with."""

import collections

import numpy as np
import pytest

from data_gen.annotations import SCENES, Cooccurrence, certain, expected, unsaid
from negclip_jax.language.vocabulary import CATEGORIES

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
    """Lamps and rugs are as frequent, but captions leave lamps unsaid three times as often."""
    photos = [(frozenset([a, b]), a, b) for a, b in (("lamp", "rug"), ("bush", "path"))] * 400
    told = [(p, (), [([b if i // 2 % 4 == 0 else a], alone)]) for i, (p, a, b) in enumerate(photos)]
    statistics = Cooccurrence([present for present, *_ in photos] * 5)
    statistics.fit(told)
    rng, drawn = np.random.default_rng(1), collections.Counter()
    for present, *_ in photos:
        drawn.update(statistics.draw(present, 1, rng, alone))
    there = collections.Counter(name for *_, left in told for (name,) in [left[0][0]])
    for name, n in there.items():
        assert abs(drawn[name] - n) < 0.25 * n + 20, (drawn, there)
    other = collections.Counter()
    for present, *_ in photos:
        other.update(statistics.draw(present, 1, rng, not alone))
    assert other["rug"] > 1.5 * there["rug"]  # the other kind of texts has factors of its own


def test_a_scene_lacks_what_belongs_to_it():
    images = [frozenset(["oven", "sink"]), frozenset(["bed"]), frozenset(["tennis racket"])] * 50
    statistics, rng = Cooccurrence(images + [frozenset(CATEGORIES)] * 50), np.random.default_rng(0)
    told = ("A woman cooks in a kitchen",)
    kitchen = {n for _ in range(99) for n in statistics.draw(frozenset(["oven"]), 9, rng)}
    assert "microwave" in kitchen and not kitchen & {"bed", "tennis racket", "zebra", "oven"}
    # Beside a person alone it is the captions that tell of the scene.
    by_words = {
        name
        for _ in range(99)
        for name in statistics.draw(frozenset(["person"]), 9, rng, captions=told)
    }
    assert "microwave" in by_words and not by_words & {"bed", "tennis racket", "zebra"}
    # Where all of the scene is there, it is what is near to it, not just anything.
    kitchen = next(objects for objects, _ in SCENES if "oven" in objects)
    near = expected(kitchen - {"cat"}, told) - kitchen
    assert "fork" in near and "tennis racket" not in near


def test_every_category_belongs_to_a_scene():
    scenes = {name for objects, _ in SCENES for name in objects}
    assert scenes == CATEGORIES.keys()


@pytest.mark.parametrize(
    ("name", "captions", "seen", "sure"),
    [
        ("spoon", ["A man cooks bread"], False, False),  # a spatula, boxed as a spoon
        ("spoon", ["A spoon in a bowl"], False, True),
        ("car", ["A dirt road"], False, False),
        ("car", ["A dirt road"], True, True),
        ("dining table", ["Two men in a kitchen"], True, False),  # a counter
        ("person", ["A bus with an ad on its side"], True, False),
        ("cow", ["A boy with a buffalo", "A boy and a cow"], True, False),
        ("chair", ["A bench and two chairs", "A chair by a wall"], True, True),
        ("bicycle", ["A man on a bike", "A man on his motor bike"], True, False),
        ("wine glass", ["A wine glass on a table"], False, True),
        ("star", ["a moon"], False, True),  # no category of COCO: its own annotators know best
    ],
)
def test_what_is_surely_in_a_photo(name, captions, seen, sure):
    assert certain([name], captions, {name} if seen else set()) == ([name] if sure else [])


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
