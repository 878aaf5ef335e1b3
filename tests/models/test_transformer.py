"""The blocks that all towers share."""

import dataclasses
import functools
import types

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
def run(blocks, x, mask=None, read_positions=None, read_mask=None):
    return transformer.run_blocks(
        blocks,
        x,
        mask,
        read_positions=read_positions,
        read_mask=read_mask,
        remat=False,
        scan=True,
    )


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


def gradient_of(blocks, states, **how):
    """A jitted gradient over the parameters of `blocks`, and these."""
    graphdef, params = nnx.split(blocks)

    def loss(params):
        merged = nnx.merge(graphdef, params)
        x = transformer.run_blocks(merged, states, None, read_positions=None, read_mask=None, **how)
        return (x**2).sum()

    return jax.jit(jax.grad(loss)), params


@pytest.fixture(scope="module")
def plain(blocks, states):
    gradient, params = gradient_of(blocks, states, remat=False, scan=True)
    return jax.tree.leaves(gradient(params))


@pytest.mark.parametrize(
    ("remat", "scan"),
    [(True, False), *(pytest.param(r, r, marks=pytest.mark.slow) for r in (True, False))],
)
def test_how_blocks_run_changes_no_gradient(blocks, states, plain, remat, scan):
    other, params = gradient_of(blocks, states, remat=remat, scan=scan)
    for ours, theirs in zip(plain, jax.tree.leaves(other(params)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("remat", [False, True])
def test_only_a_scan_is_a_loop(blocks, states, remat):
    for scan in (True, False):
        gradient, params = gradient_of(blocks, states, remat=remat, scan=scan)
        assert ("stablehlo.while" in gradient.lower(params).as_text()) is scan


@pytest.mark.parametrize("scan", [True, False])
def test_a_tower_of_one_block(blocks, states, scan):
    graphdef, params = nnx.split(blocks)
    params = jax.tree.map(lambda p: p[:1], params)
    config = dataclasses.replace(CONFIG, layers=1)
    made = nnx.eval_shape(lambda: transformer.stacked_blocks(config, jnp.float32, nnx.Rngs(0)))
    assert jax.tree.map(jnp.shape, nnx.state(made)) == jax.tree.map(jnp.shape, params)
    one = nnx.merge(graphdef, params)
    x = transformer.run_blocks(one, states, None, remat=False, scan=scan)
    assert x.shape == states.shape and not np.allclose(x, states)


def kernel_for(capability="9.0", kind="NVIDIA H100 80GB HBM3", **sizes):
    """Which attention a device has for queries and keys of these sizes."""
    queries, length, head = (sizes.get(key, default) for key, default in SIZES.items())
    dtype = sizes.get("dtype", jnp.bfloat16)
    q, k = (jax.ShapeDtypeStruct((2, n, 4, head), dtype) for n in (queries, length))
    device = types.SimpleNamespace(device_kind=kind, compute_capability=capability)
    return transformer.attention_kernel(q, k, device, has_mask=sizes.get("has_mask", True))


SIZES = {"queries": 80, "length": 80, "head": 64}


def test_a_gpu_fuses_attention_in_bfloat16():
    assert kernel_for() == kernel_for(capability="8.0") == "cudnn"
    assert kernel_for(queries=77, length=77, has_mask=False) == "cudnn"


@pytest.mark.parametrize(
    "case",
    [
        {"kind": "cpu", "capability": None},
        {"kind": "AMD Instinct MI300X", "capability": "gfx942"},
        {"capability": "7.5"},
        {"dtype": jnp.float32},
        {"queries": 77, "length": 77},
        {"queries": 4},
        {"head": 20},
        {"head": 256},
    ],
    ids=str,
)
def test_what_the_fused_kernel_does_not_take(case):
    assert kernel_for(**case) == "xla"


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
