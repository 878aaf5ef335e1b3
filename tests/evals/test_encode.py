"""Every image and text is encoded once, as the model does it alone, and never again."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from evals import encode
from evals.encode import Encoder
from evals.images import DataRoots, ImageRef
from negclip_jax.common.errors import InputError
from negclip_jax.pretrained import CLIP

TEXTS = [f"a picture with no {'x' * i}" for i in range(8)] + ["a" * 60, "x"]


def encoder(model, photos, cache, **changes) -> Encoder:
    arguments = {"images": photos.refs, "texts": TEXTS, "roots": DataRoots((photos.data,))}
    return Encoder(model, cache=cache, **arguments | changes)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("embeddings")


@pytest.fixture(scope="module")
def encoded(tiny_model, photos, cache):
    """Features of all eight devices, several batches of each kind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "IMAGES_PER_DEVICE", 1)
        patch.setattr(encode, "TEXTS_PER_DEVICE", 1)
        found = encoder(tiny_model, photos, cache)
        assert found.pending == (13, 10)
        features = found.features(photos.refs, TEXTS)
        assert found.pending == (0, 0)
    return features


def test_features_are_those_of_the_model_alone(encoded, tiny_checkpoint, photos):
    model = CLIP.from_pretrained(tiny_checkpoint)
    roots = DataRoots((photos.data,))
    pictures = [roots.open(ref) for ref in photos.refs]
    for found, expected in zip(
        encoded,
        (
            model.encode_image(model.preprocess(pictures)),
            model.encode_text(model.tokenize(TEXTS)),
        ),
        strict=True,
    ):
        expected = np.asarray(expected)
        expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_a_second_start_encodes_nothing(encoded, tiny_model, photos, cache, monkeypatch):
    monkeypatch.setattr(encode._Tower, "_encode_next", None)
    again = encoder(tiny_model, photos, cache)
    assert again.pending == (0, 0)
    for found, expected in zip(again.features(photos.refs, TEXTS), encoded, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_killed_half_way_nothing_that_was_done_is_encoded_again(
    encoded, tiny_model, photos, tmp_path, monkeypatch, one_device_mesh
):
    monkeypatch.setattr(encode, "IMAGES_PER_DEVICE", 4)
    first = encoder(tiny_model, photos, tmp_path)
    first.features(photos.refs[:5], TEXTS)  # two batches of four
    first.close()
    second = encoder(tiny_model, photos, tmp_path)
    assert second.pending == (5, 0)
    for found, expected in zip(second.features(photos.refs, TEXTS), encoded, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_other_weights_preprocessing_or_bytes_are_encoded(
    encoded, tiny_model, other_model, photos, cache, tmp_path
):
    assert encoder(other_model, photos, cache).pending == (13, 10)
    cropped = dataclasses.replace(tiny_model.preprocess, crop="transformers")
    changed = dataclasses.replace(tiny_model, preprocess=cropped)
    assert encoder(changed, photos, cache).pending == (13, 0)
    (tmp_path / "5.png").write_bytes((photos.data / "photos" / "6.png").read_bytes())
    Image.new("RGB", (40, 40), "red").save(tmp_path / "6.png")
    roots = DataRoots((tmp_path,))
    refs = [ImageRef("5.png"), ImageRef("6.png")]
    found = encoder(tiny_model, photos, cache, images=refs, roots=roots)
    assert found.pending == (1, 0)  # 5.png has the bytes of a photo that is known
    np.testing.assert_array_equal(found.features(refs[:1], [])[0][0], encoded[0][6])


def test_equal_items_are_encoded_once(tiny_model, photos, tmp_path, one_device_mesh):
    texts = ["A Cat", "a cat", "a  cat", "a dog", "a cat"]  # the tokenizer lower-cases
    refs = [photos.refs[0]] * 3
    found = encoder(tiny_model, photos, tmp_path, images=refs, texts=texts)
    assert found.pending == found.distinct == (1, 2)
    rows = found.features(refs, texts)[1]
    np.testing.assert_array_equal(rows[[0, 1, 2]], rows[[4, 4, 4]])


def test_an_unreadable_image_stops_only_who_needs_it(tiny_model, photos, tmp_path, one_device_mesh):
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "0.png").write_bytes((photos.data / "photos" / "0.png").read_bytes())
    refs = [ImageRef("0.png"), ImageRef("bad.png")]
    cache = tmp_path / "cache"
    found = encoder(tiny_model, photos, cache, images=refs, roots=DataRoots((tmp_path,)))
    with pytest.raises(InputError, match=r"1 images cannot be used: .*bad\.png: this is not an"):
        found.features(refs, [])
    assert np.isfinite(found.features(refs[:1], TEXTS)[0]).all()
    again = encoder(tiny_model, photos, cache, images=refs, roots=DataRoots((tmp_path,)))
    assert again.pending[0] == 1  # asked for again, once it may have been replaced


def test_texts_that_are_cut_are_named(tiny_model, photos, tmp_path):
    exact = "a" * (tiny_model.tokenizer.context_length - 2)
    found = encoder(tiny_model, photos, tmp_path, texts=[exact, exact + "b", "x"])
    assert found.truncated == [exact + "b"]


@pytest.mark.parametrize(
    ("items", "devices", "per_device", "size"),
    [(0, 8, 64, 8), (1, 1, 64, 1), (13, 8, 1, 8), (65, 1, 64, 33), (1000, 8, 64, 504)],
)
def test_batches_are_equal_and_hardly_filled_up(items, devices, per_device, size):
    found = encode._batch_size(items, devices, per_device)
    assert found == size and found % devices == 0 and found <= devices * per_device


def test_every_process_works_on_what_the_main_one_lacks(tiny_model, monkeypatch):
    """What the main process's disk holds is sent to the others, so that all run equal batches."""
    from jax.experimental import multihost_utils

    from evals.store import EmbeddingStore, key

    keys = [key(bytes([i])) for i in range(3)]
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    main, other = EmbeddingStore(None, 2), EmbeddingStore(None, 2)
    main.add(keys[:2], rows[:2])
    sent = []
    monkeypatch.setattr(encode.jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        multihost_utils, "broadcast_one_to_all", lambda x: sent.append(x) or sent[0]
    )
    encode._take_from_main(main, keys)
    monkeypatch.setattr(encode.sharding, "is_main_process", lambda: False)
    encode._take_from_main(other, keys)
    assert keys[2] not in other
    np.testing.assert_array_equal(other.rows(keys[:2]), rows[:2])


def test_processes_that_have_other_items_are_found_out(monkeypatch):
    """Their batches would differ in shape, and each would wait for the other."""
    from evals.store import EmbeddingStore, key

    compared = []
    monkeypatch.setattr(
        encode.multihost, "require_same", lambda what, value: compared.append((what, str(value)))
    )
    for items in ("abc", "abd", "ab", "abc"):
        encode._take_from_main(EmbeddingStore(None, 2), [key(i.encode()) for i in items])
    assert {what for what, _ in compared} == {"items to encode"}
    values = [value for _, value in compared]
    assert values[0] == values[3] and len(set(values)) == 3
