"""What every weight layout shares: an invertible key table and the slots that it expands to.

A layout is a tuple of `Key`. Reading and writing both walk the same slots, so a name or a
transposition is stated once and cannot be right in one direction only.
"""

import dataclasses
import functools
import math

import numpy as np
from flax import traverse_util

from negclip_jax.models import clip

# How our array is made from the stored tensor, as the axes for `np.transpose`.
LINEAR = (1, 0)  # torch's Linear weight [out, in] to our kernel [in, out]
CONV = (2, 3, 1, 0)  # torch's Conv2d weight [out, in, height, width] to [height, width, in, out]


@dataclasses.dataclass(frozen=True)
class Key:
    """One line of a layout: a tensor's name, our path, and the transposition between them.

    `{layer}` in the name means one tensor a block; our array is then their stack, leading axis
    layer. Several paths mean that the tensor is made of our arrays, one after the other along its
    first axis. `shape`, where given, is the tensor's, with our array's elements in the same order.
    """

    name: str
    path: str | tuple[str, ...]
    axes: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None


def linear(name: str, path: str) -> tuple[Key, Key]:
    """Weight and bias of torch's Linear."""
    return Key(f"{name}.weight", f"{path}/kernel", LINEAR), Key(f"{name}.bias", f"{path}/bias")


def norm(name: str, path: str) -> tuple[Key, Key]:
    """Weight and bias of torch's LayerNorm."""
    return Key(f"{name}.weight", f"{path}/scale"), Key(f"{name}.bias", f"{path}/bias")


def encoder_blocks(name: str, path: str) -> tuple[Key, ...]:
    """Blocks of transformers' encoders, which CLIP and SigLIP name alike."""
    name, path = f"{name}.encoder.layers.{{layer}}", f"{path}/blocks"
    return (
        *norm(f"{name}.layer_norm1", f"{path}/ln_1"),
        *linear(f"{name}.self_attn.q_proj", f"{path}/attn/query"),
        *linear(f"{name}.self_attn.k_proj", f"{path}/attn/key"),
        *linear(f"{name}.self_attn.v_proj", f"{path}/attn/value"),
        *linear(f"{name}.self_attn.out_proj", f"{path}/attn/out"),
        *norm(f"{name}.layer_norm2", f"{path}/ln_2"),
        *linear(f"{name}.mlp.fc1", f"{path}/mlp/fc1"),
        *linear(f"{name}.mlp.fc2", f"{path}/mlp/fc2"),
    )


@dataclasses.dataclass(frozen=True)
class Slot:
    """The place of one of a file's tensors in our parameters."""

    name: str
    paths: tuple[str, ...]
    layer: int | None
    shape: tuple[int, ...]
    axes: tuple[int, ...] | None

    def put(self, params: dict[str, np.ndarray], tensor: np.ndarray) -> None:
        """Copies a file's tensor (any float type) into our flat, preallocated float32 arrays."""
        parts = [tensor] if len(self.paths) == 1 else np.split(tensor, len(self.paths))
        for path, part in zip(self.paths, parts, strict=True):
            ours = part if self.axes is None else part.transpose(self.axes)
            view = self._view(params, path)
            np.copyto(view, ours.reshape(view.shape), casting="same_kind")

    def take(self, params: dict[str, np.ndarray]) -> np.ndarray:
        """The file's tensor out of our flat arrays: mostly a view, often not contiguous."""
        parts = [self._view(params, path) for path in self.paths]
        if self.axes is not None:
            parts = [part.transpose(np.argsort(self.axes)) for part in parts]
        return parts[0].reshape(self.shape) if len(parts) == 1 else np.concatenate(parts)

    def _view(self, params: dict[str, np.ndarray], path: str) -> np.ndarray:
        # [...] keeps a 0-d array an array.
        return params[path][... if self.layer is None else self.layer]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@functools.lru_cache(4)
def expected_shapes(config: clip.CLIPConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each of our parameters, keyed by its path (`text/blocks/attn/query/kernel`)."""
    _, tree = clip.abstract(config)
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(tree, sep="/").items()}


def slots(keys: tuple[Key, ...], config: clip.CLIPConfig) -> dict[str, Slot]:
    """Expands a key table for a model's size, keyed by the tensor's name, in the table's order."""
    shapes = expected_shapes(config)
    expanded = [slot for key in keys for slot in _expand(key, shapes)]
    return {slot.name: slot for slot in expanded}


def _expand(key: Key, shapes: dict[str, tuple[int, ...]]) -> list[Slot]:
    paths = (key.path,) if isinstance(key.path, str) else key.path
    shape = shapes[paths[0]]
    if "{layer}" not in key.name:
        tensor_shape = key.shape or _tensor_shape(shape, key.axes, len(paths))
        return [Slot(key.name, paths, None, tensor_shape, key.axes)]
    layers, *rest = shape
    tensor_shape = _tensor_shape(tuple(rest), key.axes, len(paths))
    names = [key.name.format(layer=layer) for layer in range(layers)]
    return [Slot(name, paths, i, tensor_shape, key.axes) for i, name in enumerate(names)]


def _tensor_shape(
    ours: tuple[int, ...], axes: tuple[int, ...] | None, parts: int
) -> tuple[int, ...]:
    shape = ours if axes is None else tuple(ours[axis] for axis in np.argsort(axes))
    return shape if parts == 1 else (parts * shape[0], *shape[1:])
