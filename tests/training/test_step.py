"""One update: what moves, what does not, and what is reported."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from tiny_runs import adam_moments, assert_equal, random_batch

from negclip_jax.data.images import CLIP_MEAN, CLIP_STD
from negclip_jax.models import clip
from negclip_jax.training import optim, patterns
from negclip_jax.training.step import Objective, TrainState, make_train_step

STEPS = 4
LR = 1e-2
FREEZE = ("vision/.*", "visual_projection", "text/ln_final/.*", "text/blocks/0/mlp/.*")
LOGIT_SCALE_MAX = 2.6  # it starts at 2.66
EMA_DECAY = 0.75


@pytest.fixture(scope="module")
def updates(tiny_config) -> dict:
    """Four updates of a model with one text layer frozen in part, an average and a bound."""
    graphdef, params = clip.split(clip.CLIP(tiny_config, rngs=nnx.Rngs(0)))
    mask = patterns.trainable(params, FREEZE)
    trained, frozen = patterns.partition(params, mask)
    rate = optax.linear_schedule(LR, 2 * LR, STEPS)
    tx = optim.adamw(
        params,
        mask,
        rate,
        beta1=0.9,
        beta2=0.999,
        eps=1e-8,
        clip_norm=None,
        weight_decay=0.1,
        weight_decay_rules=((".*", 1.0),),
        lr_rules=(("text/token_embedding", 0.0), (".*", 1.0)),
    )
    objective = Objective(graphdef, CLIP_MEAN, CLIP_STD)
    step = make_train_step(
        objective, tx, schedule=rate, logit_scale_max=LOGIT_SCALE_MAX, ema_decay=EMA_DECAY
    )
    step = jax.jit(step)
    batch = random_batch(tiny_config, 8, foils=1)
    state = TrainState.create(trained, tx, ema=True)
    states, metrics = [state], []
    for _ in range(STEPS):
        state, numbers = step(state, frozen, batch)
        states.append(state)
        metrics.append(jax.device_get(numbers))
    return {
        "objective": objective,
        "params": params,
        "frozen": frozen,
        "batch": batch,
        "states": jax.device_get(states),
        "metrics": metrics,
        "rate": rate,
    }


def test_the_step_counts(updates):
    assert [int(s.step) for s in updates["states"]] == list(range(STEPS + 1))


def test_frozen_is_absent_and_the_rest_moves(updates):
    before, after = updates["params"], updates["states"][-1].params
    names = [set(flatten_dict(tree)) for tree in (after, updates["frozen"], before)]
    assert names[0] | names[1] == names[2]
    frozen_names = {"/".join(path) for path in flatten_dict(updates["frozen"])}
    assert {n for n in frozen_names if n.startswith("text")} == {
        "text/ln_final/scale",
        "text/ln_final/bias",
    }
    assert "visual_projection" in frozen_names
    for path, value in flatten_dict(after).items():
        old = np.asarray(flatten_dict(before)[path])
        if path == ("text", "token_embedding"):
            np.testing.assert_array_equal(value, old, "its learning rate is 0")
        else:
            assert np.abs(value - old).max() > LR / 2, f"{path} did not move"


def test_a_frozen_layer_of_stacked_blocks_keeps_its_bits(updates):
    before = updates["params"]["text"]["blocks"]
    after = updates["states"][-1].params["text"]["blocks"]
    moments = [m["text"]["blocks"] for m in adam_moments(updates["states"][-1].opt_state)]
    for part in ("fc1", "fc2"):
        for name in ("kernel", "bias"):
            old, new = np.asarray(before["mlp"][part][name]), after["mlp"][part][name]
            np.testing.assert_array_equal(new[0], old[0])
            assert np.abs(new[1] - old[1]).max() > LR / 2
            assert not any(m["mlp"][part][name][0].any() for m in moments)
    assert np.abs(after["attn"]["out"]["kernel"][0] - before["attn"]["out"]["kernel"][0]).max() > 0


def test_no_optimizer_state_for_frozen_parameters(updates):
    state = updates["states"][-1]
    for moments in adam_moments(state.opt_state):
        assert jax.tree.structure(moments) == jax.tree.structure(state.params)
    arrays = [x for x in jax.tree.leaves(state.opt_state) if np.ndim(x)]
    expected = [x for x in jax.tree.leaves(state.params) if np.ndim(x)]
    assert sum(x.size for x in arrays) == 2 * sum(x.size for x in expected)


def test_logit_scale_is_bounded(updates):
    scales = [float(s.params["logit_scale"]) for s in updates["states"]]
    assert scales[0] > LOGIT_SCALE_MAX >= max(scales[1:]) - 1e-6
    assert [float(m["logit_scale"]) for m in updates["metrics"]] == scales[1:]


def test_moving_average_follows_its_recursion(updates):
    states = updates["states"]
    assert_equal(states[0].ema, states[0].params)
    average = jax.tree.map(lambda x: np.asarray(x, np.float64), states[0].params)
    for state in states[1:]:
        average = jax.tree.map(
            lambda a, p: EMA_DECAY * a + (1 - EMA_DECAY) * p, average, state.params
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.ema, average
        )


def test_metrics_say_what_happened(updates):
    states, metrics = updates["states"], updates["metrics"]

    def norm(tree) -> float:
        return np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(tree)))

    for i, numbers in enumerate(metrics):
        assert set(numbers) == {
            "loss",
            "lr",
            "logit_scale",
            "grad_norm",
            "update_norm",
            "param_norm",
            "image_to_text_accuracy",
            "text_to_image_accuracy",
            "foil_accuracy",
        }
        np.testing.assert_allclose(numbers["lr"], updates["rate"](i), rtol=1e-6)
        np.testing.assert_allclose(numbers["param_norm"], norm(states[i + 1].params), rtol=1e-5)
    # Bound and average apart, parameters change by the update.
    moved = jax.tree.map(np.subtract, states[1].params, states[0].params)
    moved["logit_scale"] = np.float32(0)
    np.testing.assert_allclose(metrics[0]["update_norm"], norm(moved), rtol=1e-3)
    # Adam's first moment after one step is a tenth of the gradient, of trained layers only.
    gradient = jax.tree.map(lambda m: m / np.float32(0.1), adam_moments(states[1].opt_state)[0])
    assert norm(gradient) <= float(metrics[0]["grad_norm"]) * (1 + 1e-5)
    assert norm(gradient) > 0.5 * float(metrics[0]["grad_norm"])


def test_the_loss_falls_on_a_batch_seen_again(updates):
    losses = [float(m["loss"]) for m in updates["metrics"]]
    assert losses[-1] < losses[0] - 0.05


def test_a_frozen_logit_scale_is_reported_and_kept(tiny_config):
    graphdef, params = clip.abstract(tiny_config)
    mask = patterns.trainable(params, ["logit_scale", "vision/.*"])
    trained, frozen = patterns.partition(params, mask)
    step = make_train_step(
        Objective(graphdef, CLIP_MEAN, CLIP_STD),
        optax.sgd(0.1),
        schedule=lambda _: jnp.float32(0.1),
        logit_scale_max=4.6,
        ema_decay=None,
    )
    state = jax.eval_shape(lambda p: TrainState.create(p, optax.sgd(0.1), ema=False), trained)
    after, metrics = jax.eval_shape(step, state, frozen, random_batch(tiny_config, 8))
    assert "logit_scale" not in after.params and after.ema is None
    assert metrics["logit_scale"].shape == ()
