"""Which kernels a run adapts instead of training parameters themselves, and how adapters begin."""

import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from negclip_jax.common.errors import InputError
from negclip_jax.models.lora import SCALE, A, B
from negclip_jax.training import patterns


def adapted(
    tree: dict, freeze: Sequence[str], *, lora_rank: int | None, lora_matrices: Sequence[str]
) -> tuple[dict, dict]:
    """Shapes of all parameters of a run, adapters included, and which are trained.

    Without a rank that is the tree itself, and what `freeze` leaves. With one, only adapters are
    trained: of the kernels that `lora_matrices` names and `freeze` does not, layer by layer.

    Args:
      tree: of the model's parameters, or their shapes.
      freeze, lora_rank, lora_matrices: keys of the section `optim`.

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
