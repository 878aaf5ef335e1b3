"""When image features are cached, what they are, and when they are computed again."""

import dataclasses
import logging

import jax
import numpy as np
import pytest
from etils import epath
from flax import nnx

from configs import common
from negclip_jax.common.errors import InputError
from negclip_jax.data.examples import tokenize_pairs
from negclip_jax.data.images import ImageDirectory, Preprocessor
from negclip_jax.data.loader import PairLoader
from negclip_jax.data.pairs import read_pairs
from negclip_jax.data.tokenizer import load_tokenizer
from negclip_jax.models import clip
from negclip_jax.runtime import sharding
from negclip_jax.training import image_features, patterns
from negclip_jax.training.step import Objective


@pytest.mark.parametrize(
    ("freeze", "constant"),
    [
        (("vision/.*", "visual_projection"), True),
        (("vision/.*", "visual_projection", "text/.*"), True),
        (("vision/.*",), False),
        (("visual_projection",), False),
        (("vision/blocks/0/.*", "vision/[^b].*", "visual_projection"), False),
        ((), False),
    ],
)
def test_constant_means_that_nothing_an_image_passes_is_trained(tiny_config, freeze, constant):
    _, abstract = clip.abstract(tiny_config)
    assert image_features.are_constant(patterns.trainable(abstract, freeze)) == constant


@pytest.fixture(scope="module")
def parts(tiny_config, tiny_pairs, tiny_vocabulary):
    """A model, the constants of its preprocessing, and a loader of all pairs."""
    graphdef, params = clip.split(clip.CLIP(tiny_config, rngs=nnx.Rngs(0)))
    pairs = read_pairs(tiny_pairs / "pairs.json")
    names = sorted({pair.image for pair in pairs})
    tokenizer = load_tokenizer(tiny_vocabulary, context_length=24)
    preprocess = Preprocessor(size=32, resize=32)
    loader = PairLoader(
        examples=tokenize_pairs(pairs, names, tokenizer, caption_mode="negated", foils=0),
        images=ImageDirectory(tiny_pairs / "images"),
        preprocess=preprocess,
        batch_size=8,
        threads=2,
    )
    return Objective(graphdef, preprocess.mean, preprocess.std), params, loader


def use_cache(parts, workdir, *, devices=1, numerics="float32", **data):
    objective, params, loader = parts
    mesh = sharding.make_mesh(data=-1, fsdp=1, devices=jax.devices()[:devices])
    section = common.base().data
    section.update(data)
    params = jax.device_put(params, sharding.replicated(mesh))
    loaders = [loader, None]
    workdir = epath.Path(workdir)
    return image_features.use_cache(section, workdir, loaders, objective, params, numerics, mesh)


def folders(workdir) -> set[str]:
    return {path.name for path in (workdir / "features").iterdir() if path.is_dir()}


@pytest.mark.parametrize("devices", [1, 8])
def test_features_are_those_of_the_tower(parts, tmp_path, devices):
    objective, params, loader = parts
    cached, validation = use_cache(parts, tmp_path, devices=devices)
    assert validation is None and not cached.cached.unreadable.any()
    pixels = np.stack(
        [loader.preprocess.uint8(loader.images.open(name)) for name in loader.examples.images]
    )
    expected = jax.jit(objective.encode_image)(params, pixels)
    assert cached.cached.features.shape == (40, 40) and cached.cached.features.dtype == np.float32
    np.testing.assert_allclose(cached.cached.features, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(np.diff(expected, axis=0)).max(axis=1).min() > 1e-3, "rows are all alike"


def test_what_was_computed_is_not_computed_again(parts, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    first, _ = use_cache(parts, tmp_path)
    assert f"image features of 40 images come from {tmp_path / 'features'}" in caplog.text
    monkeypatch.setattr(image_features, "_build", None)
    second, _ = use_cache(parts, tmp_path, devices=8)
    np.testing.assert_array_equal(first.cached.features, second.cached.features)


def test_whatever_changes_a_feature_changes_the_folder(parts, tmp_path):
    objective, params, loader = parts
    use_cache(parts, tmp_path)
    assert len(folders(tmp_path)) == 1
    other_text = params | {"text_projection": params["text_projection"] + 1}
    use_cache((objective, other_text, loader), tmp_path)
    assert len(folders(tmp_path)) == 1, "captions do not matter"
    use_cache(parts, tmp_path, numerics="bfloat16")
    other_head = params | {"visual_projection": params["visual_projection"] + 1}
    use_cache((objective, other_head, loader), tmp_path)
    cropped = dataclasses.replace(loader.preprocess, crop="transformers")
    use_cache((objective, params, dataclasses.replace(loader, preprocess=cropped)), tmp_path)
    assert len(folders(tmp_path)) == 4


def test_the_folder_is_a_setting_and_the_cache_can_be_off(parts, tmp_path):
    loader = parts[2]
    loaders = use_cache(parts, tmp_path / "run", cache_features=False)
    assert loaders == [loader, None] and not (tmp_path / "run").exists()
    use_cache(parts, tmp_path / "run", cache_dir=str(tmp_path / "shared"))
    assert (tmp_path / "shared").is_dir() and not (tmp_path / "run").exists()


class OneBroken(ImageDirectory):
    """Images of which one file is no image."""

    def read(self, name):
        return b"" if name == "005.png" else super().read(name)

    def open(self, name):
        from negclip_jax.data.images import decode

        return decode(self.read(name), name=name)


def test_unreadable_images_count_against_their_share(parts, tmp_path):
    objective, params, loader = parts
    broken = OneBroken(loader.images.root)
    tolerant = dataclasses.replace(loader, images=broken, max_bad_images=0.05)
    cached, _ = use_cache((objective, params, tolerant), tmp_path)
    assert np.flatnonzero(cached.cached.unreadable).tolist() == [5]
    strict = dataclasses.replace(tolerant, max_bad_images=0.01)
    message = r"1 of 40 images could not be read, .*max_bad_images=0\.01 allows: 005\.png"
    with pytest.raises(InputError, match=message):
        use_cache((objective, params, strict), tmp_path)


def test_the_weights_are_no_constants_of_the_program(tiny_config):
    """Closed over, they would be copied on the host, and could not be sharded over hosts."""
    graphdef, params = clip.abstract(tiny_config)
    objective = Objective(graphdef, (0.5,) * 3, (0.5,) * 3)
    encode = image_features.encoder(objective, sharding.make_mesh(data=-1, fsdp=1))
    pixels = jax.ShapeDtypeStruct((8, 32, 32, 3), np.uint8)
    traced = encode.trace(params, pixels, jax.ShapeDtypeStruct((8,), bool))
    assert sum(np.size(constant) for constant in traced.jaxpr.consts) < 100
