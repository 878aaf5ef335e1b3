"""Embeddings on disk survive kills and refuse damage."""

import errno
import io
import os

import numpy as np
import pytest

from negclip_jax.embeddings.store import KEY_BYTES, EmbeddingStore, key

KEYS = [key(bytes([i])) for i in range(5)]
ROWS = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "deep" / "image-abc.rows"
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


@pytest.mark.parametrize("place", [0, KEY_BYTES + 2, 31])
@pytest.mark.parametrize("record", range(3))
def test_one_changed_byte_loses_one_record_and_is_named(path, record, place, caplog):
    before = path.read_bytes()
    content = bytearray(before)
    content[32 * record + place] ^= 1
    path.write_bytes(content)
    store = EmbeddingStore(path, 3)
    assert f"{path} is damaged: 1 of its 3 embeddings have another checksum" in caplog.text
    assert [key in store for key in KEYS[:3]] == [i != record for i in range(3)]
    kept = [i for i in range(3) if i != record]
    np.testing.assert_array_equal(store.rows([KEYS[i] for i in kept]), ROWS[kept])
    store.add(KEYS[record : record + 1], ROWS[record : record + 1])
    assert path.read_bytes() == before, "the place is used again"


def test_many_places_are_used_again_before_the_file_grows(path):
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    content[70] ^= 1
    path.write_bytes(content)
    store = EmbeddingStore(path, 3)
    mapped = store.mapped(KEYS[1:2])
    store.add([KEYS[0], KEYS[2], *KEYS[3:]], ROWS[[0, 2, 3, 4]])
    assert path.stat().st_size == 5 * 32
    for found in (store, EmbeddingStore(path, 3)):
        np.testing.assert_array_equal(found.rows(KEYS), ROWS)
    np.testing.assert_array_equal(mapped, ROWS[1:2])


def test_two_processes_may_add_to_one_file(path):
    first, second = EmbeddingStore(path, 3), EmbeddingStore(path, 3)
    first.add(KEYS[3:4], ROWS[3:4])
    second.add(KEYS[4:], ROWS[4:])
    np.testing.assert_array_equal(second.rows(KEYS[4:]), ROWS[4:])
    np.testing.assert_array_equal(first.rows(KEYS[3:4]), ROWS[3:4])
    np.testing.assert_array_equal(EmbeddingStore(path, 3).rows(KEYS), ROWS)


def test_one_that_does_not_write_reads_what_the_other_wrote(path):
    other = EmbeddingStore(path, 3, writes=False)
    before = path.read_bytes()
    other.add(KEYS[3:], ROWS[3:])
    assert path.read_bytes() == before and KEYS[3] not in other and KEYS[0] in other


def test_rows_are_mapped_in_any_order(path):
    mapped = EmbeddingStore(path, 3).mapped([KEYS[2], KEYS[0], KEYS[1]])
    assert isinstance(mapped.rows.base, np.memmap) and mapped.shape == (3, 3)
    np.testing.assert_array_equal(mapped, ROWS[[2, 0, 1]])
    np.testing.assert_array_equal(mapped[np.array([1, -1, 1])], ROWS[[0, 1, 0]])
    assert mapped[0].dtype == np.float32


@pytest.mark.parametrize("on_disk", [True, False])
def test_items_without_an_embedding_are_known(path, on_disk):
    store = EmbeddingStore(path if on_disk else None, 3)
    store.add(KEYS[3:], np.array([[1, np.inf, 2], [1, 2, 3]], np.float32))
    for found in (store, EmbeddingStore(path, 3)) if on_disk else (store,):
        assert found.unusable == {KEYS[3]} and np.isnan(found.rows(KEYS[3:4])).all()
    store.add(KEYS[3:4], ROWS[3:4])  # tried again
    assert not store.unusable and not (on_disk and EmbeddingStore(path, 3).unusable)


def test_a_full_disk_is_named_and_what_was_there_stays(path, monkeypatch):
    store = EmbeddingStore(path, 3)

    class FullDisk(io.FileIO):
        def write(self, content):
            super().write(content[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("builtins.open", lambda file, mode: FullDisk(file, mode))
    with pytest.raises(OSError, match="No space left on device") as error:
        store.add(KEYS[3:], ROWS[3:])
    monkeypatch.undo()
    assert str(path) in str(error.value) and KEYS[3] not in store
    store.add(KEYS[3:], ROWS[3:])
    np.testing.assert_array_equal(EmbeddingStore(path, 3).rows(KEYS), ROWS)


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
