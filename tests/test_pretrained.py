"""Three lines: load, encode, compare."""

import dataclasses
import json
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny_shards import write_parquet, write_records
from tiny_tars import write_photos

from negclip_jax import CLIP, pretrained
from negclip_jax.common.errors import InputError
from negclip_jax.data.feature_files import write as write_features
from negclip_jax.data.packing import Packing, Ragged
from negclip_jax.interop import huggingface, open_clip


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return CLIP.from_pretrained(str(tiny_checkpoint))


def test_what_is_loaded_is_of_the_class_that_was_asked(tiny_checkpoint, model):
    class Mine(CLIP):
        """Somebody's own."""

    assert type(model) is CLIP
    assert type(Mine.from_pretrained(tiny_checkpoint)) is Mine
    with pytest.warns(DeprecationWarning, match=r"use CLIP\.from_pretrained"):
        assert type(pretrained.from_pretrained(tiny_checkpoint)) is CLIP


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)) for _ in range(3)]


def test_three_lines(model, images):
    similarity = model.similarity(images, ["a dog", "no dog"])
    assert similarity.shape == (3, 2) and similarity.dtype == np.float32
    assert np.abs(similarity).max() <= 1


def test_similarity_is_the_cosine_of_the_features(model, images):
    image = np.asarray(model.encode_image(model.preprocess(images[0])))[0]
    text = np.asarray(model.encode_text(model.tokenize("no dog")))[0]
    expected = image @ text / np.linalg.norm(image) / np.linalg.norm(text)
    assert model.similarity(images[0], "no dog")[0, 0] == pytest.approx(expected, abs=1e-6)


def test_shards_are_their_images_in_the_order_of_storage(model, tiny_pairs, tmp_path):
    photos = sorted((tiny_pairs / "images").iterdir())
    expected = model.similarity(list(map(str, photos)), ["no dog", "a dog"])
    write_photos(tmp_path / "a.tar", photos[0].parent, [path.name for path in photos])
    specs = [f"wds:{tmp_path}/a.tar", f"parquet:{write_parquet(photos[0].parent, tmp_path)}"]
    specs.append(f"arrayrecord:{write_records(photos[0].parent, tmp_path)[0]}")
    for spec in specs:
        np.testing.assert_allclose(model.similarity(spec, ["no dog", "a dog"]), expected, atol=1e-6)
    mixed = model.embed_images([photos[3], specs[0]])
    np.testing.assert_allclose(mixed[0], mixed[4], atol=1e-6)
    assert len(mixed) == 41
    with pytest.raises(InputError, match="match no file"):
        model.similarity(f"wds:{tmp_path}/gone.tar", "a dog")


def test_features_in_place_of_photos(model, images, tmp_path):
    texts, names = ["a dog", "no dog"], ["a.jpg", "b.jpg", "c.jpg", "broken.jpg"]
    rows = np.concatenate([3 * model.embed_images(images), np.zeros((1, 40), np.float32)])
    write_features(tmp_path / "rows.parquet", names, rows, "theirs")
    path, expected = str(tmp_path / "rows.parquet"), model.similarity(images, texts)
    towerless = dataclasses.replace(model, config=dataclasses.replace(model.config, vision=None))
    found = towerless.similarity(["c.jpg", "a.jpg"], texts, features=path)
    np.testing.assert_allclose(found, expected[[2, 0]], atol=1e-6)
    np.testing.assert_allclose(
        model.similarity("b.jpg", texts, features=path), expected[[1]], atol=1e-6
    )
    for asked, told in (
        (None, "of 1 images: broken.jpg"),
        (["d.jpg", "a.jpg"], "has no feature that can be used of 1 images: d.jpg"),
        ([], "images is empty"),
        (3, "images is 3, not a name in the file of features"),
    ):
        with pytest.raises(InputError, match=told):
            model.similarity(asked, texts, features=path)
    write_features(tmp_path / "wide.parquet", names[:1], np.ones((1, 7), np.float32), "other")
    with pytest.raises(InputError, match=r"features of 7 numbers, .* 40: .* another model, other"):
        model.similarity(None, texts, features=str(tmp_path / "wide.parquet"))


def test_similarity_encodes_in_batches(model, images, monkeypatch):
    whole = model.similarity(images, ["a", "b", "c"])
    monkeypatch.setattr("negclip_jax.pretrained._BATCH", 2)
    np.testing.assert_allclose(model.similarity(images, ["a", "b", "c"]), whole, atol=1e-6)


def test_inputs_and_features_have_the_promised_shapes(model, images):
    pixels, ids = model.preprocess(images), model.tokenize(["a", "b"])
    assert pixels.shape == (3, 32, 32, 3) and pixels.dtype == np.float32
    assert ids.shape == (2, 24) and ids.dtype == np.int32
    for features, rows in ((model.encode_image(pixels), 3), (model.encode_text(ids), 2)):
        assert features.shape == (rows, 40) and features.dtype == jnp.float32
    assert not np.allclose(np.linalg.norm(features, axis=-1), 1), "features are unnormalised"


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray, np.ndarray.tolist, np.int64])
def test_ids_of_any_integer_kind(model, kind):
    ids = model.tokenize(["a"])
    np.testing.assert_array_equal(model.encode_text(kind(ids)), model.encode_text(ids))


def test_text_may_be_shorter_than_the_context(model):
    ids = model.tokenize(["a"])
    np.testing.assert_allclose(model.encode_text(ids[:, :9]), model.encode_text(ids), atol=1e-5)


def test_packed_captions_have_the_features_of_padded_ones(model):
    texts = ["a dog", "no dog", "a cat with no dog", "x"]
    ragged = Ragged(*model.tokenizer.encode_ragged(texts))
    packed = Packing.suited_to(ragged.lengths, len(texts), 1).pack(ragged, np.arange(len(texts)))
    assert len(packed["ids"]) < len(texts)
    np.testing.assert_allclose(
        model.encode_text(packed), model.encode_text(model.tokenize(texts)), atol=1e-6
    )


def test_texts_are_encoded_as_long_as_they_are(model, monkeypatch):
    """In batches of one length, in the order that was asked for, and not at 24 tokens each."""
    monkeypatch.setattr(pretrained, "_BATCH", 3)
    texts = ["a dog", "no dog " * 6, "x", "a cat with no dog", "a dog", "no"]
    expected, shapes = model.encode_text(model.tokenize(texts)), []
    encode = CLIP.encode_text

    def noted(self, ids):
        shapes.append(getattr(ids, "shape", None))
        return encode(self, ids)

    monkeypatch.setattr(CLIP, "encode_text", noted)
    features = model.encode_text(texts)
    assert isinstance(features, jax.Array) and shapes[0] is None
    assert shapes[1:] == [(4, 8), (4, 24)]
    np.testing.assert_allclose(features, expected, atol=1e-6)
    np.testing.assert_allclose(encode(model, "x"), expected[2:3], atol=1e-6)
    cosines = model.embed_texts(text for text in texts) @ model.embed_texts(texts).T
    np.testing.assert_allclose(np.diag(cosines), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "texts", "reason"),
    [
        ([], "a", "images is empty"),
        ("street.jpg", [], "texts is empty"),
        (None, "a", "images is None, not an image"),
        ("street.jpg", None, "texts is None, not a text"),
        (b"jpeg", "a", "images is bytes, not an image .*PIL.Image.open"),
        ([b"jpeg"], "a", "got bytes"),
        ("street.jpg", b"a", "texts is bytes, not a text"),
        ("street.jpg", ["a", None], "must be a string, got NoneType"),
        ("street.jpg", 7, "texts is 7, not a text"),
        (7, "a", "images is 7"),
        ([None], "a", "got NoneType"),
    ],
)
def test_what_is_neither_image_nor_text(model, images, texts, reason):
    with pytest.raises(InputError, match=reason):
        model.similarity(images, texts)


@pytest.mark.parametrize("method", ["tokenize", "preprocess", "encode_text", "embed_texts"])
@pytest.mark.parametrize("wrong", [None, b"x", 3])
def test_single_steps_refuse_it_too(model, method, wrong):
    with pytest.raises(InputError):
        getattr(model, method)(wrong)


def test_images_are_opened_a_batch_at_a_time(model, images, monkeypatch):
    """10,000 photos need the memory of a batch: the third is not asked for before the first."""
    monkeypatch.setattr(pretrained, "_BATCH", 1)
    events, encode = [], CLIP.encode_image

    def opened():
        for number, image in enumerate(images):
            events.append(number)
            yield image

    def noted(self, pixels):
        events.append("encoded")
        return encode(self, pixels)

    monkeypatch.setattr(CLIP, "encode_image", noted)
    rows = model.embed_images(opened())
    assert events == [0, "encoded", 1, "encoded", 2, "encoded"]
    monkeypatch.setattr(pretrained, "_BATCH", 2)
    np.testing.assert_allclose(model.embed_images(images), rows, atol=1e-6)


def test_logit_scale_is_the_logarithm(model):
    assert model.logit_scale == pytest.approx(np.log(1 / 0.07), abs=1e-4)


def test_repr_says_what_it_is(model, tiny_checkpoint):
    shown = repr(model)
    for part in (str(tiny_checkpoint), "patch 8 of 32 px", "24 tokens of 600", "D = 40", "float32"):
        assert part in shown
    assert len(shown.splitlines()) == 1


def test_bfloat16_computes_differently_and_answers_in_float32(model, tiny_checkpoint):
    half = CLIP.from_pretrained(tiny_checkpoint, dtype="bfloat16")
    ids = model.tokenize(["a dog"])
    ours, full = half.encode_text(ids), model.encode_text(ids)
    assert ours.dtype == jnp.float32 and not np.array_equal(ours, full)
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {jnp.dtype("float32")}
    with pytest.raises(InputError, match="must be one of float32, bfloat16"):
        CLIP.from_pretrained(tiny_checkpoint, dtype="float16")


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        ([1, 2], r"int64\[2\], not int\[B, T\]"),
        ([[0.5]], "ids are float64"),
        ([[1, 600]], "range from 1 to 600, but the model has 600 tokens"),
        ([[-1]], "range from -1"),
        ([[1] * 25], "25 tokens a row, but the model has 24 positions"),
    ],
)
def test_bad_ids(model, ids, reason):
    with pytest.raises(ValueError, match=reason):
        model.encode_text(ids)


def test_bad_pixels(model):
    with pytest.raises(InputError, match="uint8, not float: give preprocess"):
        model.encode_image(np.zeros((1, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match=r"\(1, 3, 32, 32\).*\[B, 32, 32, 3\]"):
        model.encode_image(np.zeros((1, 3, 32, 32), np.float32))


def test_without_tokenizer_and_preprocessor_files(model, tiny_checkpoint, images, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_checkpoint / name, tmp_path / name)
    bare = CLIP.from_pretrained(tmp_path)
    np.testing.assert_array_equal(bare.preprocess(images), model.preprocess(images))
    with pytest.raises(InputError, match=r"no tokenizer"):
        bare.tokenize("a")


def test_crop_reaches_the_preprocessor(tiny_checkpoint):
    assert (
        CLIP.from_pretrained(tiny_checkpoint, crop="transformers").preprocessor.crop
        == "transformers"
    )
    with pytest.raises(InputError, match="crop"):
        CLIP.from_pretrained(tiny_checkpoint, crop="middle")


def test_bad_checkpoint_is_a_sentence(tiny_checkpoint, tmp_path):
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "blip"}))
    with pytest.raises(InputError, match="blip"):
        CLIP.from_pretrained(tmp_path)


def test_what_is_assumed_is_warned_of_and_in_the_repr(tiny_checkpoint, tiny_config, tmp_path):
    """open_clip's and OpenAI's weights alone do not say their activation."""
    text = dataclasses.replace(tiny_config.text, pooling="argmax")
    config = dataclasses.replace(tiny_config, text=text)
    params = huggingface.load_params(tiny_checkpoint, tiny_config)
    out = open_clip.save(tmp_path / "out", config, params)
    alone = tmp_path / "alone"
    alone.mkdir()
    file = (out / "open_clip_model.safetensors").rename(alone / "open_clip_model.safetensors")
    with pytest.warns(UserWarning, match="activation gelu, assumed: open_clip's default.*give act"):
        model = CLIP.from_pretrained(file)
    assert "gelu, assumed: open_clip's default" in repr(model)
    with warnings.catch_warnings(action="error"):
        given = CLIP.from_pretrained(file, activation="quick_gelu")
        based = CLIP.from_pretrained(file, base=tiny_checkpoint)
    assert "assumed:" not in repr(given) + repr(based)
    assert given.config.text.hidden_act == "quick_gelu" and based.config == tiny_config
    assert based.tokenize("a dog").shape == (1, 24)


def test_other_layouts_by_the_same_door(model, tiny_checkpoint, tiny_config, images, tmp_path):
    """open_clip's directory, and its file alone with the tokenizer beside it."""
    params = huggingface.load_params(tiny_checkpoint, tiny_config)
    out = open_clip.save(tmp_path / "out", tiny_config, params, base=tiny_checkpoint)
    expected = model.similarity(images, ["a dog", "no dog"])
    for path in (out, out / "open_clip_model.safetensors"):
        other = CLIP.from_pretrained(path)
        np.testing.assert_array_equal(other.similarity(images, ["a dog", "no dog"]), expected)


def test_real_vocabulary(shared_data, tiny_checkpoint, tmp_path):
    """With CLIP's own vocabulary the ids are OpenAI's, and the model says if it is too small."""
    shutil.copytree(tiny_checkpoint, tmp_path, dirs_exist_ok=True)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(shared_data / "clip_tokenizer" / name, tmp_path / name)
    model = CLIP.from_pretrained(tmp_path)
    ids = model.tokenize("a photo of a cat")
    assert ids[0, :7].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]
    with pytest.raises(InputError, match="but the model has 600 tokens"):
        model.encode_text(ids)
