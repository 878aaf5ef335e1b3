"""The step is compiled once for each shape of batch, and says what it costs."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from traced_once import of_equal_settings

from negclip_jax.runtime import sharding
from negclip_jax.training import step as step_module
from negclip_jax.training.step import CompiledStep, TrainState

TX = optax.sgd(1.0)
RGB = (0.5, 0.5, 0.5), (0.3, 0.3, 0.3)


def step(state, frozen, batch):
    """Adds up the ids of the text, whatever their shape."""
    text = batch["text"]
    total = (text["ids"] if isinstance(text, dict) else text).sum()
    params = {"w": state.params["w"] + frozen["v"] + total}
    return TrainState(state.step + 1, params, state.opt_state, None), {"total": total}


def padded(rows: int, length: int) -> dict:
    return {"text": jnp.ones((rows, length), jnp.int32)}


@pytest.fixture
def setting(caplog):
    caplog.set_level(logging.INFO)
    mesh = sharding.make_mesh(data=-1, fsdp=1, devices=jax.devices()[:1])
    placed = jax.device_put({"w": jnp.zeros(3)}, sharding.replicated(mesh))
    create = jax.jit(lambda p: TrainState.create(p, TX, ema=False))
    state, frozen = create(placed), {"v": jnp.float32(1.0)}
    return CompiledStep(step, state, frozen, mesh), state, frozen


def compilations(caplog) -> list[str]:
    messages = [record.getMessage() for record in caplog.records]
    return [m for m in messages if m.startswith("compiled the training step for text ")]


def test_one_program_for_each_shape(setting, caplog):
    compiled, state, frozen = setting
    for batch in (padded(4, 8), padded(4, 8), padded(6, 8), padded(4, 8), padded(6, 8)):
        state, metrics = compiled(state, frozen, batch)
        assert int(metrics["total"]) == batch["text"].size
    np.testing.assert_array_equal(state.params["w"], np.full(3, 3 * 32 + 2 * 48 + 5))
    assert int(state.step) == 5
    first, second = compilations(caplog)
    assert "text 4 x 8 (padded) in " in first and "text 6 x 8 (padded) in " in second
    assert "MiB arguments and" in first


def test_compiling_ahead_is_not_repeated(setting, caplog):
    compiled, state, frozen = setting
    batch = {"text": {"ids": jnp.ones((5, 16), jnp.int32), "ends": jnp.zeros((5, 2), jnp.int32)}}
    compiled.compiled_for(state, frozen, batch)
    (message,) = compilations(caplog)
    assert "text 5 x 16 (packed)" in message
    compiled(state, frozen, batch)
    assert len(compilations(caplog)) == 1


def test_the_state_is_given_away(setting):
    compiled, state, frozen = setting
    compiled(state, frozen, padded(4, 8))
    assert state.params["w"].is_deleted() and not frozen["v"].is_deleted()


@pytest.mark.parametrize(
    ("unroll", "on_gpu", "expected"),
    [
        (True, True, {"xla_gpu_enable_while_loop_unrolling": "WHILE_LOOP_UNROLLING_FULL_UNROLL"}),
        (True, False, None),
        (False, True, None),
    ],
)
def test_the_compiler_unrolls_where_it_is_asked_to_on_a_gpu(
    setting, monkeypatch, unroll, on_gpu, expected
):
    """XLA refuses an option or a value that it does not know, also where it has no effect."""
    _, state, frozen = setting
    mesh, given, compile = state.params["w"].sharding.mesh, [], jax.stages.Lowered.compile
    monkeypatch.setattr(sharding, "is_gpu", lambda mesh: on_gpu)
    monkeypatch.setattr(
        jax.stages.Lowered, "compile", lambda self, x=None: given.append(x) or compile(self, x)
    )
    CompiledStep(step, state, frozen, mesh, unroll=unroll).compiled_for(state, frozen, padded(4, 8))
    assert given == [expected]
    if expected:
        monkeypatch.setattr(step_module, "_UNROLL", {next(iter(expected)): "FULL"})
        wrong = CompiledStep(step, state, frozen, mesh, unroll=True)
        with pytest.raises(jax.errors.JaxRuntimeError, match="'FULL' is not a valid enum value"):
            wrong.compiled_for(state, frozen, padded(4, 8))


def test_equal_settings_are_traced_once(monkeypatch):
    """What makes the tests of runs quick; other settings, and other code, are other steps."""
    made = of_equal_settings(step_module.make_train_step)

    def steps_of(rate: float, decay: float | None = None):
        objective = step_module.Objective(nnx.graphdef(nnx.Linear(1, 1, rngs=nnx.Rngs(0))), *RGB)
        schedule = optax.linear_schedule(rate, 0.0, 10)
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
        kinds = {"schedule": schedule, "logit_scale_max": 4.6, "ema_decay": decay}
        return made(objective, optimizer, **kinds)

    first = steps_of(1e-3)
    assert steps_of(1e-3) is first
    assert steps_of(1e-4) is not first and steps_of(1e-3, 0.9) is not first
    monkeypatch.setitem(step_module.OBJECTIVES, "contrastive", None)
    assert steps_of(1e-3) is not first
    monkeypatch.undo()
    monkeypatch.setattr(step_module.Objective, "features", None)
    assert steps_of(1e-3) is not first
    monkeypatch.undo()
    assert steps_of(1e-3) is first
