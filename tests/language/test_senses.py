"""The thesaurus holds together."""

import pytest

from negclip_jax.language.nouns import SYNONYMS
from negclip_jax.language.senses import SAME, SCENE, WIDER, canonical, concepts, kinds, same, wider


def test_every_word_belongs_to_a_known_category():
    for table in (SAME, WIDER):
        assert set(table) <= set(SYNONYMS)


def test_words_are_the_same_or_wider_and_never_both():
    for name in SYNONYMS:
        assert not same(name) & wider(name)
        assert name in kinds(name)


def test_scene_words_are_listed_once():
    words = [word for line in SCENE.strip().splitlines() for word in line.split(", ")]
    assert [w for w in set(words) if words.count(w) > 1] == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [("sofa", "couch"), ("road", "street"), ("kitten", "kitten"), ("unheard of", "unheard of")],
)
def test_canonical(name, expected):
    assert canonical(name) == expected
    assert canonical(expected) == expected


def test_concepts_know_plurals():
    assert concepts("kittens") == {"cat"}
    assert "laptop" in concepts("computers")
    assert concepts("blue") == frozenset()
