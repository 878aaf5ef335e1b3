"""Kinds, equal and wider words from WordNet."""

import pytest

from negclip_jax.language import wordnet


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("hat", "fedora"),
        ("hat", "sombrero"),
        ("tree", "willow"),
        ("vehicle", "car"),
        ("animal", "dog"),
        ("gun", "rifle"),
        ("policeman", "police officer"),
        ("faucet", "tap"),
    ],
)
def test_kinds_are_transitive_and_hold_equal_words(name, kind):
    assert kind in wordnet.kinds(name)
    assert name in wordnet.kinds(name)


def test_the_second_sense_of_a_word_counts_only_where_asked_for():
    assert "soda water" not in wordnet.kinds("soda")
    assert "soda water" in wordnet.kinds("soda", senses=2)


def test_wider_words_are_those_directly_above():
    assert "shoe" in wordnet.wider("loafer")
    assert "entity" not in wordnet.wider("hat")


def test_unknown_words_have_no_kinds():
    assert not wordnet.is_known("qwertz")
    assert wordnet.kinds("qwertz") == wordnet.wider("qwertz") == frozenset()


def test_people_are_those_named_in_every_sense():
    assert wordnet.is_person("plumber")
    assert not wordnet.is_person("cutter")  # also a ship
