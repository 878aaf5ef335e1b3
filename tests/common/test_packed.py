"""Texts as bytes: found again, in order, in little memory."""

import tracemalloc

import pytest

from negclip_jax.common.packed import Index, Texts

WORDS = ["dog", "", "Ärger 犬", "half \ud800", "dog", "a\0b", "", "dog"]


def test_texts_come_back_as_they_were():
    texts = Texts(WORDS)
    assert list(texts) == WORDS and len(texts) == 8
    assert texts[-1] == "dog" and texts[2:4] == WORDS[2:4]
    with pytest.raises(IndexError):
        texts[8]
    assert list(Texts()) == []
    in_order = sorted(range(len(WORDS)), key=WORDS.__getitem__)
    assert texts.order().tolist() == in_order and Texts().order().tolist() == []


def test_each_text_is_found_where_it_stands_first():
    index = Index(Texts(WORDS))
    assert [index.first(word) for word in WORDS] == [0, 1, 2, 3, 0, 5, 1, 0]
    assert list(index.places("dog")) == [0, 4, 7] and index.first("cat") == -1
    assert index.repeated() == [(4, 0), (6, 1), (7, 0)]
    assert Index(Texts()).first("dog") == -1 and Index(Texts()).repeated() == []


def test_texts_with_equal_hashes_are_told_apart(monkeypatch):
    monkeypatch.setattr("builtins.hash", lambda text: len(text))
    index = Index(["cat", "dog", "mouse", "dog"])
    assert [index.first(word) for word in ("cat", "dog", "mouse", "cow")] == [0, 1, 2, -1]
    assert index.repeated() == [(3, 1)]


def test_a_text_takes_few_bytes_beside_its_letters():
    tracemalloc.start()
    texts = Texts(f"{i:012d}" for i in range(20_000))
    index = Index(texts)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert index.first("000000019999") == 19_999
    assert held < 20_000 * 45
