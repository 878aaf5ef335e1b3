"""One device and eight give the same loss, gradients and parameters; nobody holds all logits."""

import functools
import re

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from tiny_runs import adam_moments, assert_close, random_batch

from negclip_jax.data.images import CLIP_MEAN, CLIP_STD
from negclip_jax.models import clip
from negclip_jax.runtime import sharding
from negclip_jax.training import optim, patterns
from negclip_jax.training.step import Objective, TrainState, make_train_step

BATCH = 56  # neither 56 nor 7 = 56 / 8 is another size of the tiny model
FREEZE = ("vision/.*", "visual_projection", "text/ln_final/.*")
MIN_SHARD_SIZE = 64
MESHES = {"1": (1, 1, 1), "8x1": (8, 8, 1), "4x2": (8, 4, 2), "2x4": (8, 2, 4)}


# The one that has both axes; `make test-long` has the others.
EIGHT = pytest.mark.parametrize(
    "mesh",
    [
        "2x4",
        pytest.param("8x1", marks=pytest.mark.slow),
        pytest.param("4x2", marks=pytest.mark.long),
    ],
)


class ShardedStep:
    """One compiled update of the tiny model on a mesh, and what it returned."""

    def __init__(self, config, devices: int, data: int, fsdp: int):
        self.mesh = sharding.make_mesh(data=data, fsdp=fsdp, devices=jax.devices()[:devices])
        graphdef, params = clip.split(clip.CLIP(config, rngs=nnx.Rngs(0)))
        mask = patterns.trainable(params, FREEZE)
        rules = patterns.resolve(params, (("logit_scale", "replicate"), (".*", "fsdp")), "rules")
        places = sharding.of_parameters(self.mesh, params, rules, min_shard_size=MIN_SHARD_SIZE)
        tx = optim.adamw(
            params,
            mask,
            optax.constant_schedule(1e-3),
            beta1=0.9,
            beta2=0.999,
            eps=1e-3,  # large, so that updates are smooth in the gradient
            clip_norm=None,
            weight_decay=0.01,
            weight_decay_rules=((".*", 1.0),),
            lr_rules=((".*", 1.0),),
        )
        trained, frozen = patterns.partition(sharding.put(params, places), mask)
        of_trained = patterns.partition(places, mask)[0]
        state_places = TrainState.placements(trained, tx, of_trained, self.mesh, ema=True)
        state = jax.jit(lambda p: TrainState.create(p, tx, ema=True), out_shardings=state_places)(
            trained
        )
        step = make_train_step(
            Objective(graphdef, CLIP_MEAN, CLIP_STD, mesh=self.mesh),
            tx,
            schedule=optax.constant_schedule(1e-3),
            logit_scale_max=None,
            ema_decay=0.9,
        )
        outputs = (state_places, sharding.replicated(self.mesh))
        batch = sharding.to_global(self.mesh, random_batch(config, BATCH, foils=1))
        compiled = jax.jit(step, out_shardings=outputs).lower(state, frozen, batch).compile()
        self.hlo = compiled.as_text()
        self.start = state
        self.state, self.metrics = compiled(state, frozen, batch)

    @property
    def gradients(self) -> dict:
        # Adam's first moment after one step is a tenth of the gradient.
        return adam_moments(self.state.opt_state)[0]


@pytest.fixture(scope="module")
def steps(tiny_config):
    """Function of the name of a mesh to its step."""
    return functools.cache(lambda name: ShardedStep(tiny_config, *MESHES[name]))


@EIGHT
def test_eight_devices_equal_one(steps, mesh):
    one, eight = steps("1"), steps(mesh)
    np.testing.assert_allclose(eight.metrics["loss"], one.metrics["loss"], rtol=1e-6)
    np.testing.assert_allclose(eight.metrics["grad_norm"], one.metrics["grad_norm"], rtol=1e-5)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(one.gradients))
    assert_close(eight.gradients, one.gradients, rtol=1e-5, atol=1e-6 * largest)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), one.state.params, one.start.params)
    assert max(jax.tree.leaves(moved)) > 2e-4
    assert_close(eight.state.params, one.state.params, rtol=1e-6, atol=1e-6)
    assert_close(eight.state.ema, one.state.ema, rtol=1e-6, atol=1e-6)


def test_parameters_and_moments_lie_in_parts(steps):
    state = steps("2x4").state
    mu, nu = adam_moments(state.opt_state)
    for tree in (state.params, mu, nu, state.ema):
        embedding = tree["text"]["token_embedding"]
        assert {s.data.shape for s in embedding.addressable_shards} == {(600 // 4, 32)}
        kernel = tree["text"]["blocks"]["mlp"]["fc1"]["kernel"]
        assert {s.data.shape for s in kernel.addressable_shards} == {(2, 32, 64 // 4)}
        assert tree["logit_scale"].sharding.is_fully_replicated
    for before, after in zip(
        jax.tree.leaves(steps("2x4").start), jax.tree.leaves(state), strict=True
    ):
        assert before.sharding == after.sharding, "an update moved an array"
    for array in jax.tree.leaves(steps("8x1").state):
        assert array.sharding.is_fully_replicated


@EIGHT
def test_no_device_holds_all_logits(steps, mesh):
    whole, rows = f"f32[{BATCH},{BATCH}]", f"f32[{BATCH // 8},{BATCH}]"
    assert whole in steps("1").hlo
    assert whole not in steps(mesh).hlo and rows in steps(mesh).hlo


def test_texts_are_gathered_once_and_images_never(steps, tiny_config):
    hlo = steps("8x1").hlo
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather(?:-start)?\(", hlo)
    sizes = sorted(int(np.prod([int(n) for n in shape.split(",")])) for shape in gathered)
    # One matrix of text features; beside it only a few numbers a pair.
    assert sizes[-1] == BATCH * tiny_config.projection_dim
    assert sizes[-2] <= 2 * BATCH
    assert "all-to-all" not in hlo
