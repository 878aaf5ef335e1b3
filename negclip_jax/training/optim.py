"""What a run trains and how: adapters, learning-rate schedules, AdamW with multipliers by name."""

import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from negclip_jax.common.errors import InputError
from negclip_jax.models.lora import SCALE, A, B
from negclip_jax.training import patterns
from negclip_jax.training.config import SCHEDULES, StepUnits


def of_section(
    shapes: dict,
    units: StepUnits,
    *,
    freeze: Sequence[str] | None,
    lora_rank: int | None,
    lora_matrices: Sequence[str],
    **others: Any,
) -> tuple[dict, dict, optax.Schedule, optax.GradientTransformation]:
    """All parameters with their adapters, which of them are trained, and how: section `optim`."""
    of_lora = {"lora_rank": lora_rank, "lora_matrices": lora_matrices}
    shapes, trainable = adapted(shapes, freeze, **of_lora)
    rate = {key: others.pop(key) for key in ("lr", "schedule", "warmup", "end_lr")}
    schedule = learning_rate(**rate, units=units)
    return shapes, trainable, schedule, adamw(shapes, trainable, schedule, **others)


def adapted(
    tree: dict, freeze: Sequence[str] | None, *, lora_rank: int | None, lora_matrices: Sequence[str]
) -> tuple[dict, dict]:
    """Shapes of all parameters of a run, adapters included, and which are trained.

    Without a rank that is the tree itself, and what `freeze` leaves. With one, only adapters are
    trained: of the kernels that `lora_matrices` names and `freeze` does not, layer by layer. `tree`
    is of the model's parameters, or their shapes; the rest are keys of the section `optim`.

    Raises InputError for a pattern that matches no parameter or kernel, and where no kernel is
    left or the rank is no less than a side of one.
    """
    mask = patterns.trainable(tree, freeze)
    if lora_rank is None:
        return tree, mask
    flat, is_free = flatten_dict(tree), flatten_dict(mask)
    kernels = {path: leaf for path, leaf in flat.items() if path[-1] == "kernel"}
    rules = [*((pattern, True) for pattern in lora_matrices), (".*", False)]
    wanted = flatten_dict(patterns.resolve(unflatten_dict(kernels), rules, "optim.lora_matrices"))
    added: dict[tuple[str, ...], Any] = {}
    is_trained = dict.fromkeys(flat, False)
    for path, kernel in kernels.items():
        both = np.asarray(np.logical_and(wanted[path], is_free[path]))
        if not both.any():
            continue
        *stack, n_in, n_out = kernel.shape
        if lora_rank >= min(n_in, n_out):
            name = patterns.names(path, kernel)[0]
            raise InputError(f"optim.lora_rank={lora_rank}: {name} is {n_in} x {n_out}, no larger")
        for end, shape in ((A, (n_in, lora_rank)), (B, (lora_rank, n_out))):
            added[*path[:-1], end] = jax.ShapeDtypeStruct((*stack, *shape), np.float32)
            is_trained[*path[:-1], end] = True if both.all() else both
    if not added:
        raise InputError("optim.freeze leaves none of optim.lora_matrices to adapt")
    added[SCALE,], is_trained[SCALE,] = jax.ShapeDtypeStruct((), np.float32), False
    return unflatten_dict(flat | added), unflatten_dict(is_trained)


def begun(params: dict, shapes: dict, seed: int, lora_alpha: float | None) -> dict:
    """Parameters and the adapters that `shapes` has beside them, which change nothing yet.

    `lora_a` starts uniform between +-1 / sqrt(in), as in peft, and `lora_b` at zero. The numbers
    depend on seed and name alone.
    """
    flat, all_shapes = flatten_dict(params), flatten_dict(shapes)
    added = sorted(all_shapes.keys() - flat.keys() - {(SCALE,)})
    for path in added:
        shape = all_shapes[path].shape
        flat[path] = np.zeros(shape, np.float32)
        if path[-1] == A:
            key = [seed, zlib.crc32("/".join(path).encode())]
            drawn = np.random.Generator(np.random.Philox(key=key)).random(shape, np.float32)
            flat[path] = (2 * drawn - 1) * np.float32(shape[-2] ** -0.5)
            rank = shape[-1]
    if added:
        flat[SCALE,] = np.asarray(1 if lora_alpha is None else lora_alpha / rank, np.float32)
    return unflatten_dict(flat)


def learning_rate(
    *, lr: float, schedule: str, warmup: str, end_lr: float, units: StepUnits
) -> optax.Schedule:
    """Linear warm-up from 0 to `lr`, then constant, or cosine or linear decay to `end_lr`."""
    warmup_steps = units.steps(warmup, "optim.warmup")
    decay_steps = max(1, units.total_steps - warmup_steps)
    after = {
        "constant": optax.constant_schedule(lr),
        "cosine": optax.cosine_decay_schedule(lr, decay_steps, alpha=end_lr / lr if lr else 0.0),
        "linear": optax.linear_schedule(lr, end_lr, decay_steps),
    }
    if schedule not in SCHEDULES:
        raise InputError(f"optim.schedule: {schedule!r} is none of {', '.join(SCHEDULES)}")
    if not warmup_steps:
        return after[schedule]
    # Step 0 already moves: the first update uses lr / warmup_steps.
    rise = optax.linear_schedule(lr / warmup_steps, lr, max(1, warmup_steps - 1))
    return optax.join_schedules([rise, after[schedule]], [warmup_steps])


def adamw(
    params: dict,
    trainable: dict,
    schedule: optax.Schedule,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    clip_norm: float | None,
    weight_decay: float,
    weight_decay_rules: Sequence[tuple[str, float]],
    lr_rules: Sequence[tuple[str, float]],
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter, 2019) for the trained part of `params`.

    `params` are all parameters (or their shapes), so that rules may speak of frozen ones. Gradients
    and state have the leaves of which `trainable` is true. Rules are `(regex, multiplier)`, see
    `patterns`.
    """
    decay = patterns.resolve(params, weight_decay_rules, "optim.weight_decay_rules")
    lr_multiplier = patterns.resolve(params, lr_rules, "optim.lr_rules")
    decay, lr_multiplier, mask = (
        patterns.partition(tree, trainable)[0] for tree in (decay, lr_multiplier, trainable)
    )
    decay = jax.tree.map(lambda d, m: weight_decay * d * m, decay, mask)
    return optax.chain(
        _scale_by_tree(mask),  # first, so that frozen layers do not count in the norm
        optax.clip_by_global_norm(clip_norm) if clip_norm is not None else optax.identity(),
        optax.scale_by_adam(b1=beta1, b2=beta2, eps=eps),
        optax.stateless(lambda g, p: jax.tree.map(lambda x, y, d: x + d * y, g, p, decay)),
        _scale_by_tree(lr_multiplier),
        optax.scale_by_learning_rate(schedule),
    )


def _scale_by_tree(factors: dict) -> optax.GradientTransformation:
    """Multiplies each update by a constant; a factor of exactly 1 costs nothing."""

    def scale(update: jax.Array, factor: Any) -> jax.Array:
        if isinstance(factor, bool | int | float) and factor == 1:
            return update
        return update * jnp.asarray(factor, update.dtype)

    return optax.stateless(lambda updates, _: jax.tree.map(scale, updates, factors))
