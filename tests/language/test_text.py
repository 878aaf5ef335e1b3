"""Words with their places, whole where an apostrophe or a hyphen joins them."""

from negclip_jax.language.text import tokenize


def words(text):
    return [token.word for token in tokenize(text)]


def test_words_are_lower_case_without_genitive():
    assert words("The dog’s T-shirt isn’t black-and-white") == [
        "the", "dog", "t-shirt", "isn't", "black-and-white"
    ]  # fmt: skip


def test_cut_negations_are_one_word():
    assert words("it isn 't , is n't, don ' t and w/o") == [
        "it", "isn't", "is", "n't", "don't", "and", "w/o"
    ]  # fmt: skip
    assert words("a man 'takes' a low/old bus") == ["a", "man", "takes", "a", "low", "old", "bus"]


def test_places_and_marks():
    text = "A dog, (two) cats"
    tokens = tokenize(text)
    assert [text[t.start : t.end] for t in tokens] == ["A", "dog", "two", "cats"]
    assert [t.mark for t in tokens] == ["", "", ", (", ")"]
