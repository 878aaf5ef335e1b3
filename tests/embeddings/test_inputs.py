"""Batches of one shape, and keys that tell apart what a tower would."""

import numpy as np
import pytest

from evals.images import DataRoots
from negclip_jax.data.images import ImageRef
from negclip_jax.data.packing import Chosen, Joined, Ragged
from negclip_jax.embeddings.inputs import EncodeImages, Images, PhotoNames, Texts
from negclip_jax.runtime import sharding


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(data=-1, fsdp=1)


@pytest.fixture
def images(photos, tiny_model, tmp_path) -> Images:
    return Images(photos.refs, DataRoots((photos.data,)), tiny_model.preprocess, tmp_path)


def test_a_box_makes_another_image(images, photos):
    assert len({key.tobytes() for key in images.keys}) == 13
    one, other = images.keys[images.rows_of([photos.refs[3], photos.refs[12]])]
    assert one.tobytes() != other.tobytes()


def test_batches_of_pixels_are_full_and_in_order(images, photos, tiny_model, mesh):
    batches = list(images.batches(np.arange(13), 8, mesh))
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
    (batch,) = images.batches(np.arange(1), 8, mesh)
    assert batch["bad"].all()
    assert images.why_bad(refs[0]).startswith("x.png: this is not an image that Pillow can read")
    assert images.why_bad(photos.refs[0]) == "0.png: its features are not finite"


def test_digests_are_kept_for_the_next_start(images, photos, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(DataRoots, "read", None)
    again = Images(photos.refs, DataRoots((photos.data,)), tiny_model.preprocess, tmp_path)
    np.testing.assert_array_equal(again.keys, images.keys)


def test_texts_of_equal_tokens_share_a_key(tiny_model):
    texts = Texts(["A Dog", "a  dog", "a cat"], tiny_model.tokenizer)
    one, same, other = (key.tobytes() for key in texts.keys)
    assert one == same != other


def test_packed_batches_have_one_shape_and_lose_no_text(tiny_model, mesh):
    rng = np.random.default_rng(0)
    words = ["x" * n for n in rng.integers(1, 20, 50)]
    every = [f"{i} {word}" for i, word in enumerate(words)]
    texts = Texts(every, tiny_model.tokenizer)
    batches = list(texts.batches(np.arange(50), 24, mesh))
    assert len(batches) == 3
    assert len({tuple((k, v.shape) for k, v in batch.items()) for batch in batches}) == 1
    end = tiny_model.tokenizer.eos_id
    for batch in batches:
        assert (np.take_along_axis(batch["ids"], batch["ends"], 1) == end).sum() >= 24
        assert batch["slots"].size == 24


def test_a_batch_of_few_texts(tiny_model, mesh):
    texts = Texts(["one"], tiny_model.tokenizer)
    (batch,) = texts.batches(np.arange(1), 8, mesh)
    assert batch["slots"].shape == (8, 1)


def test_what_does_the_same_is_equal(images, photos, tiny_model, tmp_path):
    """So that models of one architecture share a compiled program."""
    other = Images(photos.refs[:1], DataRoots((photos.data,)), tiny_model.preprocess, tmp_path)
    assert other.encode == images.encode and hash(other.encode) == hash(images.encode)
    assert images.encode != EncodeImages((0.0, 0.0, 0.0), images.encode.std)


def test_names_in_another_order_are_the_same_images(photos, tiny_model, tmp_path, mesh):
    """As training has them: nothing is made of a name before it is asked for."""
    whole = [ref for ref in photos.refs if ref.box is None]
    order = np.random.default_rng(0).permutation(len(whole))
    names, roots = [ref.path for ref in whole], DataRoots((photos.data,))
    lazy = Images(PhotoNames(names, order), roots, tiny_model.preprocess, tmp_path / "a")
    listed = [whole[i] for i in order]
    eager = Images(listed, roots, tiny_model.preprocess, tmp_path / "b")
    np.testing.assert_array_equal(lazy.keys, eager.keys)
    assert list(lazy.items) == listed and lazy.items[2:4] == listed[2:4]
    rows = np.array([5, 1, 7])
    for one, other in zip(*(x.batches(rows, 8, mesh) for x in (lazy, eager)), strict=True):
        np.testing.assert_array_equal(one["pixels"], other["pixels"])


def test_chosen_texts_have_the_keys_of_a_copy(tiny_model, mesh, monkeypatch):
    monkeypatch.setattr("negclip_jax.embeddings.inputs._TEXTS_AT_ONCE", 3)
    tokenizer = tiny_model.tokenizer
    every = Ragged(*tokenizer.encode_ragged([f"{'dog ' * (i % 5)}{i}" for i in range(20)]))
    mapped = Ragged(every.ids.astype(np.uint16), every.offsets)
    index = np.array([3, 19, 0, 7, 7, 12, 4])
    chosen = Joined([Chosen(mapped, index[:4]), Chosen(every, index[4:])])
    copy = every.taken(index)
    one, other = (Texts(range(7), tokenizer, tokens) for tokens in (chosen, copy))
    np.testing.assert_array_equal(one.keys, other.keys)
    for a, b in zip(*(x.batches(np.arange(7), 8, mesh) for x in (one, other)), strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
