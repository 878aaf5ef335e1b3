"""Gradient cache: the exact gradient of a big contrastive batch in a small batch's memory.

A contrastive loss does not split over the batch, its encoders do. So the encoders run over
micro-batches, the loss over all features, and the backward pass recomputes one micro-batch at a
time (Gao et al., 2021, https://arxiv.org/abs/2101.06983). In JAX this is `lax.map` over
`jax.checkpoint`. Summing the losses of micro-batches, the usual accumulation, is another objective.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh

from negclip_jax.runtime import sharding

Batch = TypeVar("Batch")
Features = TypeVar("Features")


def map_microbatches(
    encode: Callable[[Any, Batch], Features],
    params: Any,
    batch: Batch,
    count: int,
    mesh: Mesh | None = None,
) -> Features:
    """`encode(params, batch)`, computed in `count` parts and differentiated one part at a time.

    Each device cuts its own rows into parts, so no row moves, and adds up the gradient of `params`
    by itself; the devices' gradients are summed once, after the last part.

    Args:
      encode: function of parameters and a tree of arrays `[B, ...]` that treats the parts of the
        batch independently, returning such a tree.
      params: tree of arrays.
      batch: tree of arrays whose leading axes `devices * count` divides.
      count: number of micro-batches; 1 calls `encode` as it is.
      mesh: over which the leading axes are split; None stands for one device.
    """
    if count == 1:
        return encode(params, batch)

    def on_device(params: Any, rows: Batch) -> Features:
        parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), rows)
        features = jax.lax.map(jax.checkpoint(lambda part: encode(params, part)), parts)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), features)

    return sharding.per_device(mesh, on_device)(params, batch)
