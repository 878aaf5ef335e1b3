"""Low-rank adapters in a tree of parameters (Hu et al., 2021, https://arxiv.org/abs/2106.09685).

Beside a kernel W float32 `[in, out]` lie `lora_a` `[in, rank]` and `lora_b` `[rank, out]`, stacked
over layers where the kernel is; `lora_scale`, alpha / rank, lies at the root of the tree. A model
computes with W + lora_scale * lora_a @ lora_b: the paper's W + (alpha / r) B A, transposed, as
kernels are here.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

A, B, SCALE = "lora_a", "lora_b", "lora_scale"


def fold(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters with their adapters merged into the kernels: the tree of the model.

    Of NumPy arrays it is the merge in float32 that an export holds; of JAX arrays, traced ones
    too, every device adds its part. A tree without adapters is returned as it is.
    """
    if SCALE not in params:
        return params
    flat = flatten_dict(params)
    scale = flat.pop((SCALE,))
    for path in [path for path in flat if path[-1] == A]:
        a, b, kernel = flat.pop(path), flat.pop((*path[:-1], B)), (*path[:-1], "kernel")
        is_host = isinstance(a, np.ndarray)
        product = np.matmul(a, b) if is_host else jnp.matmul(a, b, precision="highest")
        flat[kernel] = flat[kernel] + scale * product
    return unflatten_dict(flat)
