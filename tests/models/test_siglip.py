"""SigLIP's modules by themselves; their numbers are compared in tests/interop/test_siglip.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from negclip_jax.models import clip, siglip

TOWER = {"layers": 2, "heads": 2, "mlp_width": 24}
CONFIG = siglip.SigLIPConfig(
    text=siglip.SigLIPTextConfig(width=16, vocab_size=50, context_length=6, **TOWER),
    vision=siglip.SigLIPVisionConfig(width=20, image_size=8, patch_size=4, **TOWER),
    projection_dim=20,
)


@pytest.fixture(scope="module")
def model():
    return CONFIG.build(dtype=jnp.float32, remat=False, scan=True, rngs=nnx.Rngs(0))


def test_the_configuration_builds_its_family(model):
    assert isinstance(model, siglip.SigLIP)
    graphdef, shapes = clip.abstract(CONFIG)
    assert isinstance(nnx.merge(graphdef, clip.split(model)[1]), siglip.SigLIP)
    assert "visual_projection" not in shapes and "class_embedding" not in shapes["vision"]
    assert shapes["vision"]["position_embedding"].shape == (4, 20)


def encode(model, method, x, **options):
    """Compiled: one operation at a time would take ten times as long here."""
    graphdef, _ = clip.abstract(CONFIG, **options)
    apply = jax.jit(lambda params: getattr(nnx.merge(graphdef, params), method)(x))
    return apply(clip.split(model)[1])


@pytest.fixture(scope="module")
def ids():
    return jnp.asarray(np.random.default_rng(0).integers(0, 50, (3, 6)))


def test_features(model, ids):
    pixels = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    images, texts = encode(model, "encode_image", pixels), encode(model, "encode_text", ids)
    assert images.shape == (2, 20) and texts.shape == (3, 20)
    assert images.dtype == texts.dtype == jnp.float32
    assert float(model.logit_bias[...]) == -10


def test_bfloat16_and_recomputation(model, ids):
    expected = encode(model, "encode_text", ids)
    for options, tolerance in (({"remat": True}, 1e-6), ({"dtype": jnp.bfloat16}, 0.1)):
        ours = encode(model, "encode_text", ids, **options)
        np.testing.assert_allclose(ours, expected, atol=tolerance)


def test_pixels_of_another_size(model):
    with pytest.raises(ValueError, match=r"reads \[B, 8, 8, 3\]"):
        jax.eval_shape(model.encode_image, jnp.zeros((1, 9, 9, 3)))


def test_features_must_have_one_length():
    with pytest.raises(ValueError, match="projects to 16, but features of the vision"):
        dataclasses.replace(CONFIG, projection_dim=16)
