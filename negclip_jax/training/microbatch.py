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


def map_microbatches(encode: Callable[[Batch], Features], batch: Batch, count: int) -> Features:
    """`encode(batch)`, computed in `count` parts and differentiated one part at a time.

    Args:
      encode: row-wise function of a tree of arrays `[B, ...]`, returning such a tree.
      batch: tree of arrays `[B, ...]`; `count` must divide B (and B / devices, to stay local).
      count: number of micro-batches; 1 calls `encode` as it is.
    """
    if count == 1:
        return encode(batch)
    # Strided: row b goes to micro-batch b % count, so a device keeps the rows that it holds.
    parts = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch)
    features = jax.lax.map(jax.checkpoint(encode), parts)
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), features)
