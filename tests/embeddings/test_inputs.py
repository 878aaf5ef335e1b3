"""Batches of one shape, and keys that tell apart what a tower would."""

import numpy as np
import pytest

from evals.images import DataRoots
from negclip_jax.data.images import ImageRef
from negclip_jax.embeddings.inputs import EncodeImages, Images, Texts
from negclip_jax.runtime import sharding


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(data=-1, fsdp=1)


@pytest.fixture
def images(photos, tiny_model, tmp_path) -> Images:
    return Images(photos.refs, DataRoots((photos.data,)), tiny_model.preprocess, tmp_path)


def test_a_box_makes_another_image(images, photos):
    assert len(set(images.keys.values())) == 13
    assert images.keys[photos.refs[3]] != images.keys[photos.refs[12]]


def test_batches_of_pixels_are_full_and_in_order(images, photos, tiny_model, mesh):
    batches = list(images.batches(photos.refs, 8, mesh))
    assert [batch["pixels"].shape for batch in batches] == [(8, 32, 32, 3)] * 2
    pixels = np.concatenate([batch["pixels"] for batch in batches])
    roots = DataRoots((photos.data,))
    expected = [tiny_model.preprocess.uint8(ref.open(roots)) for ref in photos.refs]
    np.testing.assert_array_equal(pixels[:13], expected)
    bad = np.concatenate([batch["bad"] for batch in batches])
    assert bad.tolist() == [False] * 13 + [True] * 3


def test_unreadable_images_are_bad_and_remembered(photos, tiny_model, tmp_path, mesh):
    (tmp_path / "x.png").write_bytes(b"no image")
    refs = [ImageRef("x.png")]
    images = Images(refs, DataRoots((tmp_path,)), tiny_model.preprocess, tmp_path)
    (batch,) = images.batches(refs, 8, mesh)
    assert batch["bad"].all()
    assert images.why_bad(refs[0]).startswith("x.png: this is not an image that Pillow can read")
    assert images.why_bad(photos.refs[0]) == "0.png: its features are not finite"


def test_digests_are_kept_for_the_next_start(images, photos, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(DataRoots, "read", None)
    again = Images(photos.refs, DataRoots((photos.data,)), tiny_model.preprocess, tmp_path)
    assert again.keys == images.keys


def test_texts_of_equal_tokens_share_a_key(tiny_model):
    texts = Texts(["A Dog", "a  dog", "a cat"], tiny_model.tokenizer)
    assert texts.keys["A Dog"] == texts.keys["a  dog"] != texts.keys["a cat"]


def test_packed_batches_have_one_shape_and_lose_no_text(tiny_model, mesh):
    rng = np.random.default_rng(0)
    words = ["x" * n for n in rng.integers(1, 20, 50)]
    every = [f"{i} {word}" for i, word in enumerate(words)]
    texts = Texts(every, tiny_model.tokenizer)
    batches = list(texts.batches(every, 24, mesh))
    assert len(batches) == 3
    assert len({tuple((k, v.shape) for k, v in batch.items()) for batch in batches}) == 1
    end = tiny_model.tokenizer.eos_id
    for batch in batches:
        assert (np.take_along_axis(batch["ids"], batch["ends"], 1) == end).sum() >= 24
        assert batch["slots"].size == 24


def test_a_batch_of_few_texts(tiny_model, mesh):
    texts = Texts(["one"], tiny_model.tokenizer)
    (batch,) = texts.batches(["one"], 8, mesh)
    assert batch["slots"].shape == (8, 1)


def test_what_does_the_same_is_equal(images, photos, tiny_model, tmp_path):
    """So that models of one architecture share a compiled program."""
    other = Images(photos.refs[:1], DataRoots((photos.data,)), tiny_model.preprocess, tmp_path)
    assert other.encode == images.encode and hash(other.encode) == hash(images.encode)
    assert images.encode != EncodeImages((0.0, 0.0, 0.0), images.encode.std)
