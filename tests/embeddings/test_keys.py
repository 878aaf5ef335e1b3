"""The index of keys is a dictionary, in a sixth of its memory."""

import tracemalloc

import numpy as np
import pytest

from negclip_jax.embeddings import store as module
from negclip_jax.embeddings.store import MISSING, KeyIndex, as_array, first_of_equals


def some(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 16), np.uint8)


@pytest.mark.parametrize("recent", [0, 1, 50, 2**18])
def test_an_index_is_a_dictionary(monkeypatch, recent):
    monkeypatch.setattr(module, "_RECENT", recent)
    rng, keys = np.random.default_rng(1), some(400)
    keys[200:300, :8] = keys[0, :8]  # one first half for many
    index, expected = KeyIndex(), {}
    for _ in range(40):
        chosen = rng.permutation(400)[: rng.integers(0, 60)]
        numbers = rng.integers(-1, 10**6, len(chosen))
        index.add(keys[chosen], numbers)
        for row, number in zip(chosen.tolist(), numbers.tolist(), strict=True):
            expected[keys[row].tobytes()] = number
        assert len(index) == len(expected)
        wanted = [expected.get(key.tobytes(), MISSING) for key in keys]
        assert index.find(keys).tolist() == wanted
    assert index.find([key.tobytes() for key in keys[:9]]).tolist() == wanted[:9]
    assert index.find(some(5, seed=9)).tolist() == [MISSING] * 5
    assert index.find(as_array([])).tolist() == KeyIndex().find([]).tolist() == []


def test_of_one_key_the_last_number_counts():
    index, key = KeyIndex(), some(1)
    index.add(np.repeat(key, 3, axis=0), np.array([5, 6, 7]))
    assert index.find(key).tolist() == [7] and len(index) == 1


def test_the_first_of_equal_keys():
    keys = some(300)
    keys[150:, :8] = keys[0, :8]
    rows = np.random.default_rng(2).integers(0, 300, 1000)
    first: dict[bytes, int] = {}
    expected = [first.setdefault(keys[row].tobytes(), i) for i, row in enumerate(rows.tolist())]
    assert first_of_equals(keys[rows]).tolist() == expected
    assert first_of_equals(keys[:0]).tolist() == []


@pytest.mark.slow
def test_a_key_takes_24_bytes():
    index, keys = KeyIndex(), some(2**19)
    tracemalloc.start()
    for start in range(0, len(keys), 4096):
        index.add(keys[start : start + 4096], np.arange(start, start + 4096))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Beside what is not sorted in yet.
    assert held < 24 * len(keys) + 160 * len(index._recent) + 2**22
    assert len(index._recent) <= 2**18
    assert (index.find(keys) == np.arange(len(keys))).all()
