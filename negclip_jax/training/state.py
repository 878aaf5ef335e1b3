"""The train state: everything that changes from step to step, and nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from negclip_jax.runtime import sharding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What one update turns into the next.

    Attributes:
      step: int32 scalar: updates done = index of the next batch = name of the checkpoint.
      params: trained parameters, float32. Frozen ones are an argument of the step, not state.
      opt_state: optimizer state of `params`.
      ema: running average of `params`, or None.
    """

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    ema: dict | None


def create(params: dict, tx: optax.GradientTransformation, *, ema: bool) -> TrainState:
    """The state before the first update; `params` may be shapes under `jax.eval_shape`."""
    average = jax.tree.map(jnp.copy, params) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), average)


def shardings(
    params: dict,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    rules: dict,
    *,
    ema: bool,
    min_shard_size: int,
) -> TrainState:
    """Placement of each array of the state; optimizer moments lie where their parameter lies.

    Args:
      params: trained parameters or their shapes.
      rules: tree of "fsdp" or "replicate", one per parameter.
    """
    replicated = sharding.replicated(mesh)
    of_params = sharding.of_parameters(mesh, params, rules, min_shard_size=min_shard_size)
    abstract = jax.eval_shape(lambda p: create(p, tx, ema=ema), params)
    of_moments = optax.tree_map_params(
        tx,
        lambda _, placement: placement,
        abstract.opt_state,
        of_params,
        transform_non_params=lambda _: replicated,
    )
    return TrainState(replicated, of_params, of_moments, of_params if ema else None)
