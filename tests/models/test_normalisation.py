"""Pixels and features are normalised by the same expressions everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from negclip_jax.data.images import Preprocessor
from negclip_jax.models.normalisation import l2_normalise, normalise_pixels


def test_pixels_are_those_of_the_host():
    preprocess = Preprocessor(size=8, resize=8)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    found = jax.jit(normalise_pixels)(pixels, preprocess.mean, preprocess.std)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, preprocess.normalise(pixels), atol=1e-6)


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_unit_vectors_of_both_kinds_of_array(kind):
    features = np.random.default_rng(0).normal(size=(2, 3, 5))
    found = l2_normalise(kind(features))
    assert type(found) is type(kind(features)) and found.dtype == np.float32
    expected = features / np.sqrt((features**2).sum(-1, keepdims=True))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_traced_features():
    found = jax.jit(l2_normalise)(jnp.array([[3, 4]], jnp.bfloat16))
    np.testing.assert_allclose(found, [[0.6, 0.8]], rtol=1e-6)
