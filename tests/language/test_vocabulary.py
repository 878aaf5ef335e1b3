"""The thesaurus holds together; closed classes hold no word for a thing that photos show."""

import pytest

from negclip_jax.language import tables
from negclip_jax.language.inflection import plural
from negclip_jax.language.text import WORD
from negclip_jax.language.vocabulary import (
    ABSTRACT,
    CATEGORIES,
    FRAME,
    STOP,
    canonical,
    concepts,
    content,
    is_participle,
    kinds,
    related,
    same,
    wider,
)


def test_words_are_in_one_relation_to_a_category():
    for name, *columns in tables.rows("categories"):
        words = " ".join(columns).split()
        assert len(set(words)) == len(words), name
        assert not same(name) & wider(name)
        assert name in kinds(name)


def test_scene_words_are_listed_once():
    words = [word for (line,) in tables.rows("things") for word in line.split(", ")]
    assert [w for w in set(words) if words.count(w) > 1] == []


def test_words_of_the_thesaurus_are_words():
    words = {w for (line,) in tables.rows("things") for w in line.split(", ")} | CATEGORIES.keys()
    for word in words.union(*CATEGORIES.values()):
        assert " ".join(WORD.findall(word)) == word == word.lower()


def test_no_category_is_lost_to_grammar():
    names = {*CATEGORIES, *map(plural, CATEGORIES)}
    assert len(CATEGORIES) == 80 and not names & (STOP | FRAME | ABSTRACT)


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


def test_content_leaves_out_grammar_and_frame():
    assert content("A photo of two dogs that aren't visible on the street") == ["dogs", "street"]
    assert content("It's a black-and-white dog") == ["it's", "black-and-white", "dog"]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("sofa", "couches", True),
        ("skier", "skiing", True),
        ("man", "person", True),
        ("car", "carpet", False),
        ("dog", "street", False),
        ("outdoor", "outdoors", True),
    ],
)
def test_related(first, second, expected):
    assert related(first, second) == related(second, first) == expected


def test_participles_are_no_nouns():
    assert is_participle("riding")
    assert not any(map(is_participle, ("building", "king", "dining table", "skiing trip", "ride")))
