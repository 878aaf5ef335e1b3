"""Gradient cache: the exact gradient of a big contrastive batch in a small batch's memory.

A contrastive loss does not split over the batch, its encoders do. So the encoders run over
micro-batches, the loss over all features, and the backward pass recomputes one micro-batch at a
time (Gao et al., 2021, https://arxiv.org/abs/2101.06983). In JAX this is `lax.map` over
`jax.checkpoint`. Summing the losses of micro-batches, the usual accumulation, is another objective.
"""

from collections.abc import Callable
from typing import TypeVar

import jax

Batch = TypeVar("Batch")
Features = TypeVar("Features")


def map_microbatches(
    encode: Callable[[Batch], Features], batch: Batch, count: int, devices: int = 1
) -> Features:
    """`encode(batch)`, computed in `count` parts and differentiated one part at a time.

    Args:
      encode: function of a tree of arrays `[B, ...]` that treats the parts of the batch
        independently, returning such a tree.
      batch: tree of arrays whose leading axes `devices * count` divides.
      count: number of micro-batches; 1 calls `encode` as it is.
      devices: over which the leading axes are split; each gives a part of its own to every
        micro-batch, so no row moves.
    """
    if count == 1:
        return encode(batch)

    def split(x: jax.Array) -> jax.Array:
        by_device = x.reshape(devices, count, -1, *x.shape[1:]).swapaxes(0, 1)
        return by_device.reshape(count, -1, *x.shape[1:])

    def join(x: jax.Array) -> jax.Array:
        by_device = x.reshape(count, devices, -1, *x.shape[2:]).swapaxes(0, 1)
        return by_device.reshape(-1, *x.shape[2:])

    features = jax.lax.map(jax.checkpoint(encode), jax.tree.map(split, batch))
    return jax.tree.map(join, features)
