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


def test_acts_and_states_are_no_things_though_a_rare_sense_may_be():
    assert not any(map(wordnet.is_thing, ("trick", "kiss", "celebration")))
    assert wordnet.is_known("kiss")  # a sweet
    assert wordnet.is_thing("drain")


def test_stuffs_of_several_words():
    assert wordnet.is_stuff("tear gas")
    assert not wordnet.is_stuff("gas")
    assert not wordnet.is_stuff("toilet roll")
