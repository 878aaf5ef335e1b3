"""Learning-rate schedules and AdamW with multipliers by parameter name."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from negclip_jax.common.errors import InputError
from negclip_jax.training import patterns
from negclip_jax.training.config import SCHEDULES, StepUnits


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

    Args:
      params: tree of all parameters (or their shapes), so that rules may speak of frozen ones.
      trainable: what `patterns.trainable` says of them; gradients and state have its true leaves.
      schedule: learning rate as a function of the number of updates done.
      weight_decay_rules, lr_rules: `(regex, multiplier)`, see `patterns`.
    """
    decay = patterns.resolve(params, weight_decay_rules, "optim.weight_decay_rules")
    lr_multiplier = patterns.resolve(params, lr_rules, "optim.lr_rules")
    decay, lr_multiplier, mask = (
        patterns.trained_part(tree, trainable) for tree in (decay, lr_multiplier, trainable)
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
