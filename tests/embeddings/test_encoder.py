"""Every image and text is encoded once, as the model does it alone, and never again."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from evals.images import DataRoots
from negclip_jax.common.errors import InputError
from negclip_jax.data.images import ImageRef
from negclip_jax.embeddings import encoder
from negclip_jax.embeddings.encoder import Encoder, fingerprint
from negclip_jax.embeddings.inputs import EncodeImages
from negclip_jax.embeddings.store import EmbeddingStore, as_array, key
from negclip_jax.models import clip
from negclip_jax.pretrained import CLIP
from negclip_jax.runtime import sharding

TEXTS = [f"a picture with no {'x' * i}" for i in range(8)] + ["a" * 60, "x"]


def opened(model, photos, cache, **changes) -> Encoder:
    arguments = {"images": photos.refs, "texts": TEXTS, "source": DataRoots((photos.data,))}
    return Encoder(model, cache=cache, **arguments | changes)


def pending(encoder: Encoder) -> tuple[int, int]:
    """Images and texts that are not encoded yet."""
    return encoder.images.pending, encoder.texts.pending


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("embeddings")


@pytest.fixture(scope="module")
def encoded(tiny_model, photos, cache):
    """Features of all eight devices, several batches of each kind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "IMAGES_PER_DEVICE", 1)
        patch.setattr(encoder, "TEXTS_PER_DEVICE", 1)
        found = opened(tiny_model, photos, cache)
        assert pending(found) == (13, 10)
        features = found.features(photos.refs, TEXTS)
        assert pending(found) == (0, 0)
    return features


@pytest.mark.slow
def test_features_without_a_direction_are_an_error(tiny_model, photos, tmp_path):
    """A text tower that has collapsed to 0 would tie everywhere, by scores that are no numbers."""
    zero = np.zeros_like(np.asarray(tiny_model.params["text_projection"]))
    params = tiny_model.params | {"text_projection": zero}
    model = dataclasses.replace(tiny_model, name="zero", params=params)
    with pytest.raises(InputError, match=r"10 texts cannot be used: 'a picture with no ': all of"):
        opened(model, photos, tmp_path).features(photos.refs, TEXTS)


def test_features_are_those_of_the_model_alone(encoded, tiny_checkpoint, photos):
    model = CLIP.from_pretrained(tiny_checkpoint)
    roots = DataRoots((photos.data,))
    pictures = [ref.open(roots) for ref in photos.refs]
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
    monkeypatch.setattr(encoder.Tower, "encode_next", None)
    again = opened(tiny_model, photos, cache)
    assert pending(again) == (0, 0)
    for found, expected in zip(again.features(photos.refs, TEXTS), encoded, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_killed_half_way_nothing_that_was_done_is_encoded_again(
    encoded, tiny_model, photos, tmp_path, monkeypatch, one_device_mesh
):
    monkeypatch.setattr(encoder, "IMAGES_PER_DEVICE", 4)
    first = opened(tiny_model, photos, tmp_path)
    first.features(photos.refs[:5], TEXTS)  # two batches of four
    first.close()
    second = opened(tiny_model, photos, tmp_path)
    assert pending(second) == (5, 0)
    for found, expected in zip(second.features(photos.refs, TEXTS), encoded, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_other_weights_preprocessing_or_bytes_are_encoded(
    encoded, tiny_model, other_model, photos, cache, tmp_path
):
    assert pending(opened(other_model, photos, cache)) == (13, 10)
    cropped = dataclasses.replace(tiny_model.preprocess, crop="transformers")
    changed = dataclasses.replace(tiny_model, preprocess=cropped)
    assert pending(opened(changed, photos, cache)) == (13, 0)
    (tmp_path / "5.png").write_bytes((photos.data / "photos" / "6.png").read_bytes())
    Image.new("RGB", (40, 40), "red").save(tmp_path / "6.png")
    roots = DataRoots((tmp_path,))
    refs = [ImageRef("5.png"), ImageRef("6.png")]
    found = opened(tiny_model, photos, cache, images=refs, source=roots)
    assert pending(found) == (1, 0)  # 5.png has the bytes of a photo that is known
    np.testing.assert_array_equal(found.features(refs[:1], [])[0][0], encoded[0][6])


def test_equal_items_are_encoded_once(tiny_model, photos, tmp_path, one_device_mesh):
    texts = ["A Cat", "a cat", "a  cat", "a dog", "a cat"]  # the tokenizer lower-cases
    refs = [photos.refs[0]] * 3
    found = opened(tiny_model, photos, tmp_path, images=refs, texts=texts)
    assert pending(found) == (found.images.distinct, found.texts.distinct) == (1, 2)
    rows = found.features(refs, texts)[1]
    np.testing.assert_array_equal(rows[[0, 1, 2]], rows[[4, 4, 4]])


def test_an_unreadable_image_stops_only_who_needs_it(tiny_model, photos, tmp_path, one_device_mesh):
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "0.png").write_bytes((photos.data / "photos" / "0.png").read_bytes())
    refs = [ImageRef("0.png"), ImageRef("bad.png")]
    cache = tmp_path / "cache"
    found = opened(tiny_model, photos, cache, images=refs, source=DataRoots((tmp_path,)))
    with pytest.raises(InputError, match=r"1 images cannot be used: .*bad\.png: this is not an"):
        found.features(refs, [])
    assert np.isfinite(found.features(refs[:1], TEXTS)[0]).all()
    again = opened(tiny_model, photos, cache, images=refs, source=DataRoots((tmp_path,)))
    assert again.images.pending == 1  # asked for again, once it may have been replaced


def test_texts_that_are_cut_are_named(tiny_model, photos, tmp_path):
    exact = "a" * (tiny_model.tokenizer.context_length - 2)
    found = opened(tiny_model, photos, tmp_path, texts=[exact, exact + "b", "x"])
    assert found.truncated == [exact + "b"]


@pytest.mark.parametrize(
    ("items", "devices", "per_device", "size"),
    [(0, 8, 64, 8), (1, 1, 64, 1), (13, 8, 1, 8), (65, 1, 64, 33), (1000, 8, 64, 504)],
)
def test_batches_are_equal_and_hardly_filled_up(items, devices, per_device, size):
    found = encoder._batch_size(items, devices, per_device)
    assert found == size and found % devices == 0 and found <= devices * per_device


def test_every_process_works_on_what_the_main_one_lacks(tiny_model, monkeypatch):
    """What the main process's disk holds is sent to the others, so that all run equal batches."""
    keys = [key(bytes([i])) for i in range(3)]
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    main, other = EmbeddingStore(None, 2), EmbeddingStore(None, 2)
    main.add(keys[:2], rows[:2])
    sent = []
    monkeypatch.setattr(encoder.multihost, "is_single_process", lambda: False)
    monkeypatch.setattr(encoder.sharding, "from_main", lambda x: sent.append(x) or sent[0])
    encoder._agree(main, as_array(keys), False)
    monkeypatch.setattr(encoder.sharding, "is_main_process", lambda: False)
    encoder._agree(other, as_array(keys), False)
    assert keys[2] not in other
    np.testing.assert_array_equal(other.rows(keys[:2]), rows[:2])


def test_processes_that_have_other_items_are_found_out(monkeypatch):
    """Their batches would differ in shape, and each would wait for the other."""
    compared = []
    monkeypatch.setattr(
        encoder.multihost, "require_same", lambda what, value: compared.append((what, str(value)))
    )
    monkeypatch.setattr(encoder.multihost, "is_single_process", lambda: False)
    monkeypatch.setattr(encoder.sharding, "from_main", lambda x: x)
    for items in ("abc", "abd", "ab", "abc"):
        keys = as_array([key(i.encode()) for i in items])
        encoder._agree(EmbeddingStore(None, 2), keys, False)
    assert {what for what, _ in compared} == {"items to encode"}
    values = [value for _, value in compared]
    assert values[0] == values[3] and len(set(values)) == 3


def test_any_change_gives_another_fingerprint(tiny_model):
    def of(tower, params=tiny_model.params, dtype="float32", preprocess=tiny_model.preprocess):
        return fingerprint(tower, tiny_model.config, params, dtype, preprocess)

    image, text = of("image"), of("text")
    flipped = tiny_model.params["visual_projection"].copy()
    flipped.view(np.uint8)[0, 0] ^= 1
    params = tiny_model.params | {"visual_projection": flipped}
    cropped = dataclasses.replace(tiny_model.preprocess, crop="transformers")
    others = [of("image", params), of("image", dtype="bfloat16"), of("image", preprocess=cropped)]
    assert len({image, text, *others, of("text", dtype="bfloat16")}) == 6
    assert of("text", params) == of("text", preprocess=cropped) == text
    assert of("image", dict(reversed(tiny_model.params.items()))) == image


def test_the_weights_are_no_constants_of_the_program(tiny_config):
    """Closed over, they would be copied on the host, and could not be split over hosts."""
    graphdef, params = clip.abstract(tiny_config)
    mesh = sharding.make_mesh(data=-1, fsdp=1)
    encode = encoder.compiled(EncodeImages((0.5,) * 3, (0.5,) * 3), graphdef, mesh)
    pixels = jax.ShapeDtypeStruct((8, 32, 32, 3), np.uint8)
    batch = {"pixels": pixels, "bad": jax.ShapeDtypeStruct((8,), bool)}
    traced = encode.trace(params, batch)
    assert sum(np.size(constant) for constant in traced.jaxpr.consts) < 100
