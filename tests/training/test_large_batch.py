"""A batch of 32,768 pairs on eight devices: exact, in bounded memory, and communicating once.

The batch of the published CLIP (Radford et al., 2021). Its logits are 4 GiB, and 512 MiB on each
device; its gradient must not be summed over devices once for every micro-batch.
"""

import json
import pathlib
import runpy
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_runs import ROOT, assert_close, random_batch

from bench.hlo import Program
from negclip_jax.data.images import CLIP_MEAN, CLIP_STD
from negclip_jax.models import clip
from negclip_jax.runtime import sharding
from negclip_jax.training import patterns
from negclip_jax.training.step import Objective

BATCH, DEVICES = 32_768, 8
MICROBATCHES, MEBIBYTES = 64, 16.0
LENGTH = 16
# The stated memory of the compiled step: what its arithmetic needs, and never the logits.
MAX_TEMPORARIES = 160 * 2**20


class LargeStep:
    """Loss and gradient of the tiny model's text tower at 32,768 pairs, compiled, not run."""

    def __init__(self, config, **settings):
        mesh = sharding.make_mesh(data=4, fsdp=2)
        graphdef, params = clip.abstract(config)
        objective = Objective(graphdef, CLIP_MEAN, CLIP_STD, mesh=mesh, **settings)
        rows, everywhere = sharding.batch(mesh), sharding.replicated(mesh)
        batch = {
            "feature": ((BATCH, config.projection_dim), jnp.float32),
            "text": ((2 * BATCH, LENGTH), jnp.int32),
            "truth": ((BATCH, 2), jnp.int8),
        }
        batch = {n: jax.ShapeDtypeStruct(*x, sharding=rows) for n, x in batch.items()}
        rules = patterns.resolve(params, ((".*", "fsdp"),), "rules")
        places = sharding.of_parameters(mesh, params, rules, min_shard_size=64)
        placed = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, places
        )
        trainable = patterns.trainable(params, ("vision/.*", "visual_projection"))
        trained, frozen = patterns.partition(placed, trainable)
        self.trained, self.frozen = (
            sum(4 * x.size for x in jax.tree.leaves(tree)) for tree in (trained, frozen)
        )

        def gradient(trained, frozen, batch):
            merged = patterns.merge
            return jax.grad(lambda p: objective.loss(merged(frozen, p), batch)[0])(trained)

        outputs = jax.tree.map(lambda _: everywhere, trained)
        step = jax.jit(gradient, out_shardings=outputs).lower(trained, frozen, batch).compile()
        self.text, self.memory = step.as_text(), step.memory_analysis()
        self.program = Program(self.text, DEVICES)


@pytest.fixture(scope="module")
def step(tiny_config) -> LargeStep:
    return LargeStep(tiny_config, microbatches=MICROBATCHES, logit_block_mib=MEBIBYTES)


@pytest.mark.slow
def test_no_device_holds_more_logits_than_the_bound(step):
    assert step.program.largest_array <= MEBIBYTES * 2**20 / 4
    assert step.program.largest_array < BATCH * BATCH / DEVICES / 16
    assert f"{BATCH},{BATCH}]" not in step.text and f"{BATCH // DEVICES},{BATCH}]" not in step.text


def test_memory_is_what_is_stated(step):
    assert step.memory.temp_size_in_bytes < MAX_TEMPORARIES


def test_nothing_is_sent_inside_the_loops(step):
    sent = [(c.kind, c.size, c.times) for c in step.program.collectives if c.loops]
    assert not sent


def test_gradients_and_features_cross_the_devices_once(step, tiny_config):
    features = 4 * BATCH * tiny_config.projection_dim
    large = [c for c in step.program.collectives if c.size >= features / DEVICES]
    assert sorted((c.kind, c.size) for c in large) == [
        ("all-gather", features),
        ("reduce-scatter", features / DEVICES),
    ]
    # Beside them: the gradient, once, and a few numbers of each pair.
    reduced = sum(c.size for c in step.program.collectives if c.kind == "all-reduce")
    assert step.trained < reduced < step.trained + 5 * 4 * BATCH


def test_a_tower_that_nobody_reads_is_not_gathered(step, tiny_config):
    gathered = sum(c.size for c in step.program.collectives if c.kind == "all-gather")
    numbers = 2 * 4 * BATCH  # of each pair: its own logit, and how it compares with the others
    beside = gathered - 4 * BATCH * tiny_config.projection_dim - numbers
    assert 0.8 * step.trained < beside < step.trained + 0.2 * step.frozen


@pytest.fixture(scope="module")
def small(tiny_config):
    """Function of settings to loss, metrics and gradients of 512 pairs with foils."""
    mesh = sharding.make_mesh(data=4, fsdp=2)
    graphdef, params = clip.split(clip.CLIP(tiny_config, rngs=nnx.Rngs(0)))
    params["logit_scale"] = jnp.float32(3.0)
    batch = random_batch(tiny_config, 512, foils=1)
    rng = np.random.default_rng(1)
    batch["feature"] = rng.normal(size=(512, tiny_config.projection_dim)).astype(np.float32)
    batch = sharding.to_global(mesh, {n: x for n, x in batch.items() if n != "image"})

    def compute(**settings):
        objective = Objective(graphdef, CLIP_MEAN, CLIP_STD, **settings)
        return jax.jit(jax.value_and_grad(objective.loss, has_aux=True))(params, batch)

    return compute, mesh


def test_parts_and_blocks_give_the_plain_loss_and_gradients(small):
    compute, mesh = small
    (plain, plain_metrics), plain_gradients = compute()
    (loss, metrics), gradients = compute(mesh=mesh, microbatches=4, logit_block_mib=16 * 2 / 2**10)
    np.testing.assert_allclose(loss, plain, rtol=1e-6)
    for name, value in plain_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6, err_msg=name)
    largest = max(float(np.abs(g).max()) for g in jax.tree.leaves(plain_gradients))
    assert_close(gradients, plain_gradients, rtol=1e-4, atol=1e-6 * largest)


@pytest.fixture(scope="module", params=[2048, BATCH], ids="{}".format)
def run(request) -> dict:
    """The figures of large_batch_run.py; all pairs in a process of its own: memory, fast code."""
    script = pathlib.Path(__file__).with_name("large_batch_run.py")
    if request.param < BATCH:
        part = BATCH // request.param
        figures = runpy.run_path(str(script))["main"](
            request.param, MICROBATCHES // part, MEBIBYTES / part
        )
        return figures | {"batch": request.param}
    command = [sys.executable, str(script), str(BATCH), str(MICROBATCHES), str(MEBIBYTES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"batch": BATCH}


@pytest.mark.long  # `make test` has the plain loss, whose formula other tests hold to a loop
def test_the_loss_equals_float64(run):
    assert run["loss"] == pytest.approx(run["expected_loss"], rel=1e-6)
    assert run["loss"] < np.log(run["batch"])


@pytest.mark.long
def test_gradients_equal_float64(run):
    assert run["by_image_error"] < 1e-5 * run["by_image"]
    assert run["by_scale"] == pytest.approx(run["expected_by_scale"], rel=1e-5)
    assert run["text_gradient"] > 1e-3


@pytest.mark.long
@pytest.mark.parametrize("run", [BATCH], indirect=True)
def test_eight_devices_in_one_process_stay_small(run):
    assert run["memory"] < 2 * 2**30
