"""Digests of images: read once, kept in few bytes, and those that earlier versions kept."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from negclip_jax.data.images import ImageDirectory
from negclip_jax.embeddings import inputs
from negclip_jax.embeddings.inputs import image_digests

NAMES = [f"{i}.png" for i in range(12)]


@pytest.fixture
def source(photos, tmp_path) -> ImageDirectory:
    return ImageDirectory(shutil.copytree(photos.data / "photos", tmp_path / "photos"))


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Names of the images that are read."""
    found, read = [], ImageDirectory.read
    monkeypatch.setattr(ImageDirectory, "read", lambda s, name: found.append(name) or read(s, name))
    return found


def test_digests_follow_the_bytes_and_are_read_once(source, reads, tmp_path):
    first = image_digests(source, NAMES, tmp_path)
    files = [(tmp_path / "photos" / name).read_bytes() for name in NAMES]
    assert [row.tobytes() for row in first] == [hashlib.sha256(x).digest() for x in files]
    assert (tmp_path / "digests.bin").stat().st_size == 24 + 12 * 48
    reads.clear()
    assert np.array_equal(image_digests(source, NAMES[::-1], tmp_path), first[::-1]) and not reads
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "photos" / "7.png")
    second = image_digests(source, NAMES, tmp_path)
    assert reads == ["7.png"]
    assert np.flatnonzero((first != second).any(axis=1)).tolist() == [7]
    assert np.array_equal(image_digests(source, NAMES, tmp_path), second) and reads == ["7.png"]


def test_those_of_other_images_are_kept(source, reads, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "_IMAGES_AT_ONCE", 5)
    first = image_digests(source, NAMES[:7], tmp_path)
    image_digests(source, NAMES[5:], tmp_path)
    assert sorted(reads) == sorted(NAMES)
    assert np.array_equal(image_digests(source, NAMES, tmp_path)[:7], first) and len(reads) == 12


@pytest.mark.parametrize("damage", ["short", "bit", "other"])
def test_damaged_digests_are_made_again(source, reads, tmp_path, caplog, damage):
    first, file = image_digests(source, NAMES, tmp_path / "cache"), tmp_path / "cache/digests.bin"
    content = bytearray(file.read_bytes())
    content[100] ^= damage == "bit"
    content = {"short": content[:-9], "bit": content, "other": b"x" * 72}[damage]
    file.write_bytes(content)
    assert np.array_equal(image_digests(source, NAMES, tmp_path / "cache"), first)
    assert "digests.bin is damaged: all images are read again" in caplog.text
    assert len(reads) == 24


def test_those_of_earlier_versions_are_read(source, reads, tmp_path, caplog):
    first = image_digests(source, NAMES, tmp_path / "new")
    kept = {n: [source.identity(n), d.tobytes().hex()] for n, d in zip(NAMES, first, strict=True)}
    (tmp_path / "digests.json").write_text(json.dumps(kept))
    reads.clear()
    assert np.array_equal(image_digests(source, NAMES, tmp_path), first) and not reads
    files = [tmp_path / "digests.bin", tmp_path / "new" / "digests.bin"]
    assert files[0].read_bytes() == files[1].read_bytes()
    for content in ("{", "[1]"):
        files[0].unlink()
        (tmp_path / "digests.json").write_text(content)
        assert np.array_equal(image_digests(source, NAMES, tmp_path), first)
        assert "digests.json is damaged: all images are read again" in caplog.text


def test_processes_that_share_a_folder_share_the_reading(source, reads, tmp_path, monkeypatch):
    names = NAMES[:11]
    expected = image_digests(source, names, tmp_path / "alone")
    reads.clear()
    shares = []
    for index in (1, 0):  # process 0 comes last here: what the others sent is then there
        monkeypatch.setattr(inputs.sharding, "process_place", lambda index=index: (index, 2))
        monkeypatch.setattr(
            inputs.sharding,
            "from_all",
            lambda own: shares.append(own.copy()) or np.stack(shares[::-1] * 2)[:2],
        )
        found = image_digests(source, names, tmp_path / "both", shared=True)
        assert sorted(reads) == sorted(names[6 * index : 6 * index + 6])
        reads.clear()
    assert np.array_equal(found, expected)
    both, alone = ((tmp_path / n / "digests.bin").read_bytes() for n in ("both", "alone"))
    assert both == alone
