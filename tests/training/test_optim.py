"""Schedules at their key steps, and AdamW against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import traverse_util

from negclip_jax.common.errors import InputError
from negclip_jax.training import optim, patterns
from negclip_jax.training.config import StepUnits

UNITS = StepUnits(batch_size=8, steps_per_epoch=10, total_steps=100)
PLAIN = {
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
    "clip_norm": None,
    "weight_decay": 0.01,
    "weight_decay_rules": ((".*", 1.0),),
    "lr_rules": ((".*", 1.0),),
}


def schedule(**changes):
    keys = {"lr": 0.5, "schedule": "constant", "warmup": "0 steps", "end_lr": 0.0}
    return optim.learning_rate(**(keys | changes), units=UNITS)


def test_constant_schedule():
    assert [float(schedule()(step)) for step in (0, 1, 50, 99, 1000)] == [0.5] * 5


def test_warm_up_moves_at_the_first_step_and_arrives_at_the_last():
    rate = schedule(warmup="4 steps")
    np.testing.assert_allclose(
        [rate(s) for s in (0, 1, 2, 3, 4, 50)], [0.125, 0.25, 0.375, 0.5, 0.5, 0.5], rtol=1e-6
    )
    assert float(schedule(warmup="1 steps")(0)) == 0.5


def test_warm_up_is_a_duration():
    np.testing.assert_allclose(schedule(warmup="10 percent")(4), 0.25, rtol=1e-6)
    np.testing.assert_allclose(schedule(warmup="2 epochs")(9), 0.25, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("cosine", lambda x: (1 + np.cos(np.pi * x)) / 2), ("linear", lambda x: 1 - x)],
)
def test_decay_after_warm_up(name, shape):
    rate = schedule(schedule=name, warmup="20 steps", end_lr=0.1)
    for step in (20, 40, 60, 99, 100):
        expected = 0.1 + (0.5 - 0.1) * shape((step - 20) / 80)
        np.testing.assert_allclose(rate(step), expected, rtol=1e-5)
    np.testing.assert_allclose(rate(19), 0.5, rtol=1e-6)


def test_unknown_schedule():
    with pytest.raises(InputError, match=r"optim\.schedule: 'cosin' is none of constant, cosine"):
        schedule(schedule="cosin")


@pytest.fixture
def params() -> dict:
    rng = np.random.default_rng(0)
    shapes = {"logit_scale": (), "head": (4, 3), "blocks": {"kernel": (3, 4, 5), "bias": (3, 5)}}
    return jax.tree.map(
        lambda shape: rng.normal(size=shape).astype(np.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def run_ours(params, gradients, lr, freeze=(), **changes):
    mask = patterns.trainable(params, freeze)
    rate = optax.linear_schedule(lr, 2 * lr, 10)
    tx = optim.adamw(params, mask, rate, **(PLAIN | changes))
    trained, _ = patterns.partition(params, mask)
    opt_state = tx.init(trained)
    update = jax.jit(tx.update)
    for gradient in gradients:
        part = patterns.partition(gradient, mask)[0]
        updates, opt_state = update(part, opt_state, trained)
        trained = optax.apply_updates(trained, updates)
    return jax.tree.map(np.asarray, trained), opt_state


def run_torch(params, gradients, lr, groups, clip_norm=None):
    """PyTorch's AdamW; `groups` maps a name and layer to (lr multiplier, weight decay)."""
    tensors = {
        (path, layer): torch.nn.Parameter(torch.tensor(x if layer is None else x[layer]))
        for path, x in traverse_util.flatten_dict(params).items()
        for layer in (range(len(x)) if "blocks" in path else [None])
    }
    settings = {key: groups("/".join(key[0]), key[1]) for key in tensors}
    optimizer = torch.optim.AdamW(
        [{"params": [t], "lr": lr, "weight_decay": settings[key][1]} for key, t in tensors.items()]
    )
    for step, gradient in enumerate(gradients):
        flat = traverse_util.flatten_dict(gradient)
        for (path, layer), tensor in tensors.items():
            g = flat[path] if layer is None else flat[path][layer]
            tensor.grad = torch.tensor(g)
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(tensors.values(), clip_norm)
        for group, key in zip(optimizer.param_groups, tensors, strict=True):
            group["lr"] = lr * (1 + step / 10) * settings[key][0]
        optimizer.step()
    result = {}
    for path, x in traverse_util.flatten_dict(params).items():
        layers = range(len(x)) if "blocks" in path else [None]
        parts = [tensors[path, layer].detach().numpy() for layer in layers]
        result[path] = parts[0] if layers == [None] else np.stack(parts)
    return traverse_util.unflatten_dict(result)


def random_gradients(params, scale=1.0):
    rng = np.random.default_rng(1)
    return [
        jax.tree.map(lambda x: (scale * rng.normal(size=x.shape)).astype(np.float32), params)
        for _ in range(10)
    ]


def assert_close(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6), ours, theirs)


def test_ten_steps_equal_pytorch(params):
    gradients = random_gradients(params)
    ours, _ = run_ours(params, gradients, 1e-2)
    theirs = run_torch(params, gradients, 1e-2, lambda name, layer: (1.0, 0.01))
    assert_close(ours, theirs)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), ours, params)
    assert min(jax.tree.leaves(moved)) > 0.02, "nothing was compared"


def test_multipliers_by_name_and_layer_equal_pytorch_groups(params):
    gradients = random_gradients(params)
    ours, _ = run_ours(
        params,
        gradients,
        1e-2,
        weight_decay=0.2,
        weight_decay_rules=((r".*/bias|logit_scale", 0.0), ("blocks/1/.*", 0.5), (".*", 1.0)),
        lr_rules=(("blocks/0/.*", 0.25), ("head", 3.0), (".*", 1.0)),
    )

    def groups(name, layer):
        decay = 0.0 if name.endswith("bias") or name == "logit_scale" else 0.2
        decay *= 0.5 if layer == 1 else 1.0
        return {"head": 3.0}.get(name, 0.25 if layer == 0 else 1.0), decay

    assert_close(ours, run_torch(params, gradients, 1e-2, groups))


def test_clipping_by_the_global_norm_equals_pytorch(params):
    # Norms below and above the bound.
    gradients = [
        jax.tree.map(lambda g, i=i: np.float32(0.01 * 2.0**i) * g, gradient)
        for i, gradient in enumerate(random_gradients(params))
    ]
    ours, _ = run_ours(params, gradients, 1e-2, clip_norm=1.0)
    theirs = run_torch(params, gradients, 1e-2, lambda name, layer: (1.0, 0.01), clip_norm=1.0)
    assert_close(ours, theirs)


def test_frozen_parameters_have_no_state_and_frozen_layers_do_not_move(params):
    gradients = random_gradients(params, scale=100.0)
    trained, opt_state = run_ours(params, gradients, 1e-2, freeze=["head", "blocks/[02]/.*"])
    assert set(trained) == {"blocks", "logit_scale"}
    for name, value in trained["blocks"].items():
        np.testing.assert_array_equal(value[[0, 2]], params["blocks"][name][[0, 2]])
        assert np.abs(value[1] - params["blocks"][name][1]).min() > 0
    adam = next(s for s in opt_state if hasattr(s, "mu"))
    for moments in (adam.mu, adam.nu):
        assert jax.tree.structure(moments) == jax.tree.structure(trained)
    sizes = sum(x.size for x in jax.tree.leaves(opt_state) if x.ndim)
    assert sizes == 2 * sum(x.size for x in jax.tree.leaves(trained) if x.ndim)


def test_frozen_layers_do_not_count_in_the_clipped_norm(params):
    gradients = random_gradients(params)
    for gradient in gradients:
        gradient["blocks"]["kernel"][0] = 1e6
    ours, _ = run_ours(params, gradients, 1e-2, freeze=["blocks/0/kernel"], clip_norm=1.0)
    for gradient in gradients:
        gradient["blocks"]["kernel"][0] = 0.0
    clipped = run_torch(params, gradients, 1e-2, lambda name, layer: (1.0, 0.01), clip_norm=1.0)
    assert_close(ours["head"], clipped["head"])


def test_rules_may_speak_of_frozen_parameters(params):
    mask = patterns.trainable(params, ["head"])
    rules = PLAIN | {"lr_rules": (("head", 0.1), (".*", 1.0))}
    optim.adamw(params, mask, lambda step: jnp.float32(1.0), **rules)
    rules["lr_rules"] = (("heda", 0.1), (".*", 1.0))
    with pytest.raises(InputError, match=r"optim\.lr_rules: no parameter matches \['heda'\]"):
        optim.adamw(params, mask, lambda step: jnp.float32(1.0), **rules)


def test_an_unknown_setting_is_a_type_error_that_names_the_function(params):
    with pytest.raises(TypeError, match="adamw"):
        optim.adamw(params, params, lambda step: 1.0, **PLAIN, wieght_decay=0.1)
