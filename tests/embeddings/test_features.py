"""The feature cache: complete or absent, continued after a kill, new after any change."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from negclip_jax.common.errors import InputError
from negclip_jax.data.images import ImageDirectory, Preprocessor
from negclip_jax.embeddings import feature_files
from negclip_jax.embeddings.features import FeatureCache, fingerprint, image_digests

PREPROCESS = Preprocessor(size=8, resize=8)


@pytest.fixture
def images(tmp_path, monkeypatch):
    """21 images of constant grey, in chunks of 8."""
    monkeypatch.setattr(feature_files, "CHUNK", 8)
    (tmp_path / "images").mkdir()
    for i in range(21):
        Image.new("RGB", (8, 8), (10 * i,) * 3).save(tmp_path / "images" / f"{i:02d}.png")
    return ImageDirectory(tmp_path / "images")


NAMES = [f"{i:02d}.png" for i in range(21)]


class Encoder:
    """Feature 0 is the grey level, feature 1 is one; counts what it is asked."""

    def __init__(self, fails_after=None):
        self.images, self.fails_after = 0, fails_after

    def __call__(self, pixels, bad):
        self.images += len(pixels)
        if self.fails_after is not None and self.images > self.fails_after:
            raise KeyboardInterrupt
        grey = pixels[:, 0, 0, 0].astype(np.float32)
        return np.where(bad[:, None], np.nan, np.stack([grey, np.ones_like(grey)], axis=1))


def build(cache, images, encoder):
    cache.build(
        encoder, images, PREPROCESS, batch_size=4, rows=np.arange(4), threads=2, writes=True
    )
    cache.merge()


def test_features_are_in_the_order_of_the_names(images, tmp_path):
    cache = FeatureCache(tmp_path / "cache", NAMES, 2)
    assert not cache.is_complete
    build(cache, images, Encoder())
    array, unreadable = cache.open()
    assert np.array_equal(array, [[10 * i, 1] for i in range(21)]) and not unreadable.any()
    assert sorted(p.name for p in cache.directory.iterdir()) == ["features.npy", "manifest.json"]


def test_killed_build_continues_where_it_was(images, tmp_path):
    cache = FeatureCache(tmp_path / "cache", NAMES, 2)
    with pytest.raises(KeyboardInterrupt):
        build(cache, images, Encoder(fails_after=14))
    assert not cache.is_complete
    done = list(cache.directory.glob("chunk-*"))
    assert len(done) == 1
    again = Encoder()
    build(cache, images, again)
    assert again.images == 24 - 8, "chunks that were there must not be computed again"
    assert np.array_equal(cache.open()[0][:, 0], 10 * np.arange(21))


def test_another_run_that_was_faster_has_built_the_same_cache(images, tmp_path):
    mine, other = (FeatureCache(tmp_path / "cache", NAMES, 2) for _ in range(2))
    mine.build(Encoder(), images, PREPROCESS, batch_size=4, rows=np.arange(4), threads=2)
    other.merge()  # and its chunks, which are the same files, are gone
    mine.merge()
    assert np.array_equal(mine.open()[0][:, 0], 10 * np.arange(21))
    assert sorted(p.name for p in mine.directory.iterdir()) == ["features.npy", "manifest.json"]


def test_chunks_that_are_missing_are_no_cache(images, tmp_path):
    cache = FeatureCache(tmp_path / "cache", NAMES, 2)
    cache.build(Encoder(), images, PREPROCESS, batch_size=4, rows=np.arange(4), threads=2)
    (cache.directory / "chunk-00001.npy").unlink()
    with pytest.raises(FileNotFoundError):
        cache.merge()
    assert not cache.is_complete


def test_unreadable_images_are_known_and_have_no_feature(images, tmp_path):
    (tmp_path / "images" / "05.png").write_bytes(b"not an image")
    cache = FeatureCache(tmp_path / "cache", NAMES, 2)
    build(cache, images, Encoder())
    array, unreadable = cache.open()
    assert np.flatnonzero(unreadable).tolist() == [5] and np.isnan(array[5]).all()


def test_flipped_bit_is_found(images, tmp_path):
    cache = FeatureCache(tmp_path / "cache", NAMES, 2)
    build(cache, images, Encoder())
    path = cache.directory / "features.npy"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"features\.npy is damaged"):
        cache.open()


def test_any_change_gives_another_fingerprint():
    weights = {"a": np.zeros((2, 2), np.float32), "b": np.ones(3, np.float32)}
    base = fingerprint(weights, "numerics", PREPROCESS, ["x", "y"])
    assert base == fingerprint(dict(reversed(weights.items())), "numerics", PREPROCESS, ["x", "y"])
    one_bit = weights["b"].copy()
    one_bit.view(np.uint8)[0] ^= 1
    others = [
        fingerprint(weights | {"b": one_bit}, "numerics", PREPROCESS, ["x", "y"]),
        fingerprint({"a": weights["b"], "b": weights["a"]}, "numerics", PREPROCESS, ["x", "y"]),
        fingerprint(weights, "other", PREPROCESS, ["x", "y"]),
        fingerprint(
            weights, "numerics", dataclasses.replace(PREPROCESS, crop="transformers"), ["x", "y"]
        ),
        fingerprint(weights, "numerics", PREPROCESS, ["y", "x"]),
    ]
    assert len({base, *others}) == 6


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_damaged_digests_are_made_again(images, tmp_path, caplog, content):
    first = image_digests(images, NAMES, tmp_path / "cache")
    (tmp_path / "cache" / "digests.json").write_text(content)
    assert image_digests(images, NAMES, tmp_path / "cache") == first
    assert "digests.json is damaged: all images are read again" in caplog.text


def test_digests_follow_the_bytes_and_are_read_once(images, tmp_path, monkeypatch):
    root = tmp_path / "cache"
    first = image_digests(images, NAMES, root)
    assert len(set(first)) == 21 and len(json.loads((root / "digests.json").read_text())) == 21
    reads = []
    original = ImageDirectory.read
    monkeypatch.setattr(
        ImageDirectory, "read", lambda self, name: reads.append(name) or original(self, name)
    )
    assert image_digests(images, NAMES, root) == first and not reads
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "images" / "07.png")
    second = image_digests(images, NAMES, root)
    assert reads == ["07.png"]
    assert [i for i in range(21) if first[i] != second[i]] == [7]
