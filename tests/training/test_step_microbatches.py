"""The gradient cache gives the loss and gradients of the whole batch, in parts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import random_batch

from negclip_jax.data.images import CLIP_MEAN, CLIP_STD
from negclip_jax.models import clip
from negclip_jax.runtime import sharding
from negclip_jax.training.step import Objective, map_microbatches

BATCH = 16


@pytest.fixture(scope="module")
def model(tiny_config) -> tuple:
    from flax import nnx

    return clip.split(clip.CLIP(tiny_config, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def loss_and_gradients(model, tiny_config):
    """Function of the number of micro-batches to both, by presence of foils, and to the program."""
    graphdef, params = model
    batch = random_batch(tiny_config, BATCH, foils=2)
    without = batch | {"truth": np.maximum(batch["truth"], 0)}
    # At a temperature of 20 the gradient is larger than at initialisation, where all is alike.
    hot = params | {"logit_scale": jnp.float32(3.0)}

    @functools.cache
    def results(microbatches: int) -> dict:
        objective = Objective(graphdef, CLIP_MEAN, CLIP_STD, microbatches)
        traced = jax.jit(jax.value_and_grad(objective.loss, has_aux=True)).trace(hot, batch)
        compute = traced.lower().compile()
        both = {foils: compute(hot, batch if foils else without) for foils in (True, False)}
        found = {foils: (loss, gradients) for foils, ((loss, _), gradients) in both.items()}
        return found | {"program": str(traced.jaxpr)}

    return results


@pytest.mark.parametrize("foils", [False, True])
@pytest.mark.parametrize("microbatches", [4, pytest.param(2, marks=pytest.mark.long)])
def test_loss_and_gradients_do_not_change(loss_and_gradients, microbatches, foils):
    loss, gradients = loss_and_gradients(1)[foils]
    loss_in_parts, in_parts = loss_and_gradients(microbatches)[foils]
    np.testing.assert_allclose(loss_in_parts, loss, rtol=1e-6)
    assert max(float(np.abs(g).max()) for g in jax.tree.leaves(gradients)) > 0.1
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), in_parts, gradients
    )


def test_foils_take_part(loss_and_gradients):
    assert loss_and_gradients(1)[True][0] - loss_and_gradients(1)[False][0] > 0.1


def test_towers_never_see_the_whole_batch(loss_and_gradients, tiny_config):
    tokens, width = tiny_config.vision.positions, tiny_config.vision.mlp_width
    whole, quarter = (f"f32[{rows * tokens},{width}]" for rows in (BATCH, BATCH // 4))
    at_once, in_parts = (loss_and_gradients(count)["program"] for count in (1, 4))
    assert whole in at_once
    assert whole not in in_parts and quarter in in_parts


def test_rows_come_back_in_order():
    batch = {"x": jnp.arange(24.0).reshape(12, 2), "y": jnp.arange(12)}

    def encode(factor, part):
        return {"z": part["x"][:, 0] + factor * part["y"]}

    for count in (1, 2, 3, 4):
        result = jax.jit(map_microbatches, static_argnums=(0, 3))(encode, 100.0, batch, count)
        np.testing.assert_array_equal(result["z"], batch["x"][:, 0] + 100 * batch["y"])


def test_each_device_gives_a_contiguous_share_of_its_own_to_every_part():
    # 16 rows on 4 devices, in 2 parts: the first part holds rows 0, 1, 4, 5, 8, 9, 12, 13.
    mesh = sharding.make_mesh(data=2, fsdp=2, devices=jax.devices()[:4])
    rows = sharding.to_global(mesh, np.arange(16))
    run = jax.jit(lambda x: map_microbatches(lambda _, part: part - part[0], {}, x, 2, mesh))
    np.testing.assert_array_equal(run(rows), [i % 2 for i in range(16)])
