"""Embeddings on disk survive kills and refuse damage."""

import numpy as np
import pytest

from evals.store import KEY_BYTES, EmbeddingStore, key

KEYS = [key(bytes([i])) for i in range(5)]
ROWS = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "deep" / "image-abc.bin"
    EmbeddingStore(file, 3).add(KEYS[:3], ROWS[:3])
    return file


def test_what_was_added_is_read_back_bit_equal(path):
    store = EmbeddingStore(path, 3)
    assert len(store) == 3 and KEYS[0] in store and KEYS[4] not in store
    np.testing.assert_array_equal(store.rows([KEYS[2], KEYS[0], KEYS[2]]), ROWS[[2, 0, 2]])


def test_records_are_appended(path):
    EmbeddingStore(path, 3).add(KEYS[3:], ROWS[3:])
    np.testing.assert_array_equal(EmbeddingStore(path, 3).rows(KEYS), ROWS)


@pytest.mark.parametrize("cut", [1, 10, 31])
def test_a_record_cut_short_by_a_kill_is_dropped_and_the_file_mended(path, cut):
    path.write_bytes(path.read_bytes()[:-cut])
    store = EmbeddingStore(path, 3)
    assert KEYS[1] in store and KEYS[2] not in store
    store.add(KEYS[2:], ROWS[2:])
    np.testing.assert_array_equal(EmbeddingStore(path, 3).rows(KEYS), ROWS)


@pytest.mark.parametrize("place", [0, KEY_BYTES + 2, 33, 40])
def test_one_changed_byte_loses_one_record(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    store = EmbeddingStore(path, 3)
    assert len(store) == 2 and KEYS[2] in store
    np.testing.assert_array_equal(store.rows(KEYS[2:3]), ROWS[2:3])


def test_a_missing_key_is_an_error():
    with pytest.raises(KeyError):
        EmbeddingStore(None, 3).rows(KEYS)


def test_without_a_path_nothing_is_written(tmp_path):
    store = EmbeddingStore(None, 3)
    store.add(KEYS, ROWS)
    np.testing.assert_array_equal(store.rows(KEYS), ROWS)
    assert not list(tmp_path.iterdir())


def test_keys_tell_parts_apart():
    assert key(b"a", b"b") != key(b"ab", b"") and key(b"a") != key(b"b")
