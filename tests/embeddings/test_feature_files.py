"""Files of the feature cache: whole, checked, and mended part by part."""

import errno
import io
import logging
import os

import numpy as np
import pytest
from etils import epath

from negclip_jax.common.errors import InputError
from negclip_jax.embeddings import feature_files
from negclip_jax.embeddings.feature_files import FeatureFiles

FEATURES = np.arange(63, dtype=np.float32).reshape(21, 3)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Of 21 rows in three chunks of 8, none written yet."""
    monkeypatch.setattr(feature_files, "CHUNK", 8)
    (tmp_path / "cache").mkdir()
    return FeatureFiles(epath.Path(tmp_path / "cache"), 21, 3)


def write(files, chunks=range(3)):
    for chunk in chunks:
        files.write_chunk(chunk, FEATURES[8 * chunk : 8 * chunk + 8])


def flip_bit(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 16
    path.write_bytes(content)


def test_chunks_become_one_file(files):
    assert files.missing() == [0, 1, 2] and not files.is_complete
    write(files)
    assert files.missing() == [] and not files.is_complete
    files.merge()
    assert files.is_complete and np.array_equal(files.open(), FEATURES)
    assert isinstance(files.open(), np.memmap)
    names = sorted(path.name for path in files.directory.iterdir())
    assert names == ["features.npy", "manifest.json"]


def test_a_damaged_chunk_is_missing_and_named(files, caplog):
    write(files)
    flip_bit(files.chunk(1), -20)
    assert files.missing() == [1]
    assert f"{files.chunk(1)} is damaged: it is computed again" in caplog.text
    with pytest.raises(InputError, match=r"chunk-00001\.npy was damaged since it was written"):
        files.merge()
    files.chunk(2).write_bytes(files.chunk(2).read_bytes()[:-30])
    files.chunk(0).write_bytes(b"")
    assert files.missing() == [0, 1, 2]


def damaged_rows(files) -> str:
    with pytest.raises(InputError) as error:
        files.open()
    assert f"{files.directory / 'features.npy'} is damaged: the features of" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("position", "rows"), [(-1, [2]), (128, [0]), (128 + 8 * 12, [1]), (10, [0, 1, 2])]
)
def test_only_what_a_flipped_bit_hit_is_computed_again(files, caplog, position, rows):
    write(files)
    files.merge()
    flip_bit(files.directory / "features.npy", position)
    message = damaged_rows(files)
    for row, text in enumerate(["0-7", "8-15", "16-20"]):
        assert (text in message) == (row in rows)
    files.take_apart_if_damaged()
    assert "they are computed again" in caplog.text
    assert not files.is_complete and files.missing() == rows
    write(files, rows)
    files.merge()
    assert np.array_equal(files.open(), FEATURES)


def test_what_is_left_of_a_file_that_was_cut_short_is_used(files):
    write(files)
    files.merge()
    path = files.directory / "features.npy"
    path.write_bytes(path.read_bytes()[:-70])
    assert "images 8-15, 16-20 of 21" in damaged_rows(files)
    files.take_apart_if_damaged()
    assert files.missing() == [1, 2]


def test_a_file_that_is_gone_is_made_again(files):
    write(files)
    files.merge()
    (files.directory / "features.npy").unlink()
    damaged_rows(files)
    files.take_apart_if_damaged()
    assert files.missing() == [0, 1, 2]


@pytest.mark.parametrize("text", ["{", "[]", '{"shape": [21, 3]}', '{"shape": 1, "chunk": 8}'])
def test_a_manifest_that_cannot_be_read_is_no_cache(files, caplog, text):
    write(files)
    files.merge()
    (files.directory / "manifest.json").write_text(text)
    assert not files.is_complete
    assert f"{files.directory / 'manifest.json'} is damaged" in caplog.text


def test_an_intact_cache_is_left_alone(files, caplog):
    write(files)
    files.merge()
    before = (files.directory / "manifest.json").read_bytes()
    files.take_apart_if_damaged()
    assert (files.directory / "manifest.json").read_bytes() == before
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_full_disk_leaves_the_chunks(files, monkeypatch):
    """Joined by plain writes: a map on a full disk would kill the process."""
    write(files)

    class FullDisk(io.FileIO):
        def write(self, content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.name)

    monkeypatch.setattr(feature_files, "open", lambda path, mode: FullDisk(path, mode), False)
    with pytest.raises(OSError, match="No space left on device"):
        files.merge()
    monkeypatch.undo()
    names = sorted(path.name for path in files.directory.iterdir())
    assert names == [f"chunk-0000{c}.npy" for c in range(3)]
