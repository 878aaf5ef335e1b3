"""Where each array of the train state lies."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from negclip_jax.runtime import sharding
from negclip_jax.training.step import TrainState

PARAMS = {"w": np.zeros((64, 32), np.float32), "b": np.ones(32, np.float32)}
RULES = {"w": "fsdp", "b": "fsdp"}


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(data=2, fsdp=4)


def adam():
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1e-3)))


@pytest.mark.parametrize("ema", [False, True])
def test_moments_and_average_lie_where_their_parameter_lies(mesh, ema):
    of_params = sharding.of_parameters(mesh, PARAMS, RULES, min_shard_size=64)
    places = TrainState.placements(PARAMS, adam(), of_params, mesh, ema=ema)
    state = jax.eval_shape(lambda: TrainState.create(PARAMS, adam(), ema=ema))
    assert jax.tree.structure(places) == jax.tree.structure(state)
    (moments,) = [
        s for s in jax.tree.leaves(places.opt_state, is_leaf=lambda s: hasattr(s, "mu"))
        if hasattr(s, "mu")
    ]  # fmt: skip
    trees = [places.params, moments.mu, moments.nu] + ([places.ema] if ema else [])
    for tree in trees:
        assert {name: place.spec for name, place in tree.items()} == {"w": P("fsdp"), "b": P()}
    assert places.step.spec == P() and moments.count.spec == P()
    assert (places.ema is None) == (not ema)


def test_a_new_state_counts_from_zero_and_averages_a_copy():
    state = TrainState.create(jax.tree.map(jnp.asarray, PARAMS), adam(), ema=True)
    assert state.step.dtype == jnp.int32 and int(state.step) == 0
    assert state.ema["w"] is not state.params["w"]
    np.testing.assert_array_equal(state.ema["b"], PARAMS["b"])
