"""Closed classes hold no word for a thing that photos show."""

from negclip_jax.language.nouns import SYNONYMS, plural
from negclip_jax.language.word_classes import ABSTRACT, FRAME, ING_NOUNS, STOP, word_set


def test_no_category_is_lost_to_grammar():
    names = {*SYNONYMS, *map(plural, SYNONYMS)}
    assert not names & (STOP | FRAME | ABSTRACT)


def test_words_are_lower_case_and_nouns_in_ing_end_so():
    for words in (STOP, FRAME, ABSTRACT, ING_NOUNS):
        assert all(word == word.lower() for word in words)
    assert all(word.endswith("ing") for word in ING_NOUNS)


def test_word_set():
    assert word_set(" a b\nb ") == {"a", "b"}
