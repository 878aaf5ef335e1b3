"""Batches of one shape, and keys that tell apart what a tower would."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from evals.images import DataRoots
from negclip_jax.data.images import ImageDirectory, ImageRef
from negclip_jax.embeddings import inputs
from negclip_jax.embeddings.inputs import EncodeImages, Images, Texts, image_digests
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


NAMES = [f"{i}.png" for i in range(12)]


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_damaged_digests_are_made_again(photos, tmp_path, caplog, content):
    source = ImageDirectory(photos.data / "photos")
    first = image_digests(source, NAMES, tmp_path / "cache")
    (tmp_path / "cache" / "digests.json").write_text(content)
    assert image_digests(source, NAMES, tmp_path / "cache") == first
    assert "digests.json is damaged: all images are read again" in caplog.text


def test_digests_follow_the_bytes_and_are_read_once(photos, tmp_path, monkeypatch):
    source = ImageDirectory(shutil.copytree(photos.data / "photos", tmp_path / "photos"))
    first = image_digests(source, NAMES, tmp_path)
    assert len(set(first)) == 12 and len(json.loads((tmp_path / "digests.json").read_text())) == 12
    reads, read = [], ImageDirectory.read
    monkeypatch.setattr(ImageDirectory, "read", lambda s, name: reads.append(name) or read(s, name))
    assert image_digests(source, NAMES, tmp_path) == first and not reads
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "photos" / "7.png")
    second = image_digests(source, NAMES, tmp_path)
    assert reads == ["7.png"]
    assert [i for i in range(12) if first[i] != second[i]] == [7]


def test_processes_that_share_a_folder_share_the_reading(photos, tmp_path, monkeypatch):
    source = ImageDirectory(photos.data / "photos")
    names, reads, read = NAMES[:11], [], ImageDirectory.read
    expected = image_digests(source, names, tmp_path / "alone")
    shares = []
    monkeypatch.setattr(ImageDirectory, "read", lambda s, name: reads.append(name) or read(s, name))
    for index in (1, 0):  # process 0 comes last here: what the others sent is then there
        monkeypatch.setattr(inputs.sharding, "process_place", lambda index=index: (index, 2))
        monkeypatch.setattr(
            inputs.sharding,
            "from_all",
            lambda own: shares.append(own) or np.stack(shares[::-1] * 2)[:2],
        )
        found = image_digests(source, names, tmp_path / "both", shared=True)
        assert sorted(reads) == sorted(names[6 * index : 6 * index + 6])
        reads.clear()
    assert found == expected
    both, alone = (
        json.loads((tmp_path / n / "digests.json").read_text()) for n in ("both", "alone")
    )
    assert both == alone
