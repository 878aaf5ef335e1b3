"""Names of photos in other spellings, and what is no photo."""

import unicodedata

import pytest

from negclip_jax.common import photos
from negclip_jax.common.photos import PHOTO_SUFFIXES, find_file, name_key

NFC = "caf\u00e9/\u00fcber.jpg"
NFD = unicodedata.normalize("NFD", NFC)


@pytest.mark.parametrize(
    ("on_disk", "asked"),
    [(NFC, NFC), (NFD, NFC), (NFC, NFD), ("a/b.JPG", "a/b.jpg"), ("a/b.jpeg", "a/b.JPEG")],
)
def test_one_file_in_two_spellings(tmp_path, on_disk, asked):
    file = tmp_path / on_disk
    file.parent.mkdir()
    file.touch()
    assert find_file(tmp_path, asked).samefile(file)


@pytest.mark.parametrize("asked", ["b.jpg", "A.jpg", "a.png", "a", "a.jpg/b.jpg", "b/a.jpg", "\0"])
def test_another_name_is_another_file(tmp_path, asked):
    (tmp_path / "a.jpg").touch()
    assert find_file(tmp_path, asked) is None


def test_an_exact_name_wins_and_a_choice_between_two_is_none(tmp_path):
    for name in ("a.jpg", "a.JPG"):
        (tmp_path / name).touch()
    assert find_file(tmp_path, "a.JPG") == tmp_path / "a.JPG"
    assert find_file(tmp_path, "a.Jpg") is None


def test_a_directory_is_listed_once_until_it_changes(tmp_path, monkeypatch):
    (tmp_path / "a.JPG").touch()
    listed, real = [], photos.os.listdir
    monkeypatch.setattr(photos.os, "listdir", lambda folder: listed.append(folder) or real(folder))
    for _ in range(100):
        assert find_file(tmp_path, "a.jpg") and find_file(tmp_path, "b.jpg") is None
    assert len(listed) == 1
    (tmp_path / "b.JPG").touch()
    photos.os.utime(tmp_path, ns=(0, 1))
    assert find_file(tmp_path, "b.jpg") == tmp_path / "b.JPG" and len(listed) == 2


def test_keys_and_suffixes():
    assert name_key(NFD) == name_key(NFC) == NFC and name_key("A.JPG") == "A.jpg"
    assert {".jpe", ".jfif", ".avif", ".heic"} <= PHOTO_SUFFIXES
