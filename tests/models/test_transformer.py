"""The blocks that all towers share."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from negclip_jax.models import transformer

CONFIG = transformer.TowerConfig(width=12, layers=3, heads=2, mlp_width=20)


@pytest.fixture(scope="module")
def blocks():
    return transformer.stacked_blocks(CONFIG, jnp.float32, nnx.Rngs(0))


@pytest.fixture(scope="module")
def states():
    return jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 12)), jnp.float32)


@functools.partial(jax.jit, static_argnums=2)
def run(blocks, x, mask=None, at=None, mask_at=None):
    return transformer.run_blocks(blocks, x, mask, at=at, mask_at=mask_at, remat=False)


def test_parameters_are_stacked_by_layer(blocks):
    leaves = jax.tree.leaves(nnx.split(blocks)[1])
    assert {leaf.shape[0] for leaf in leaves} == {3}
    kernel = blocks.attn.query.kernel[...]
    assert not np.allclose(kernel[0], kernel[1]), "layers start from their own random numbers"


@pytest.mark.parametrize("mask", [None, transformer.CAUSAL])
def test_chosen_columns_are_those_of_all(blocks, states, mask):
    whole = run(blocks, states, mask)
    at = jnp.asarray([[4, 1], [0, 2]])
    mask_at = None if mask is None else jnp.arange(5) <= at[:, :, None]
    chosen = run(blocks, states, mask, at, mask_at)
    np.testing.assert_allclose(chosen, transformer.take(whole, at), atol=1e-5)


def test_causal_states_do_not_see_what_follows(blocks, states):
    changed = states.at[:, 3:].multiply(-1)  # LayerNorm would not see a constant added
    causal, bidirectional = (
        jnp.abs(run(blocks, states, mask) - run(blocks, changed, mask))[:, :3].max()
        for mask in (transformer.CAUSAL, None)
    )
    assert causal < 1e-6 and bidirectional > 1e-3


def test_recomputing_keeps_values_and_gradients(blocks, states):
    graphdef, params = nnx.split(blocks)

    @functools.partial(jax.jit, static_argnums=1)
    def gradient(params, remat):
        def loss(params):
            merged = nnx.merge(graphdef, params)
            x = transformer.run_blocks(merged, states, None, at=None, mask_at=None, remat=remat)
            return (x**2).sum()

        return jax.grad(loss)(params)

    ours, theirs = (jax.tree.leaves(gradient(params, remat)) for remat in (False, True))
    for kept, recomputed in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(kept, recomputed, rtol=1e-4, atol=1e-5)


def test_activations_at_one():
    """Values of torch's modules at 1.0."""
    expected = {"quick_gelu": 0.845795, "gelu": 0.841345, "gelu_pytorch_tanh": 0.841192}
    for name, value in expected.items():
        assert float(transformer.ACTIVATIONS[name](jnp.float32(1))) == pytest.approx(value, 1e-5)


def test_sizes_that_make_no_tower():
    with pytest.raises(ValueError, match="12 is not divisible by 5 heads"):
        dataclasses.replace(CONFIG, heads=5)
    with pytest.raises(ValueError, match="unknown activation 'relu'"):
        dataclasses.replace(CONFIG, hidden_act="relu")
