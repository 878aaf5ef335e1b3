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

# How our array is made from theirs, as the axes for `np.transpose`.
LINEAR = (1, 0)  # torch's Linear weight [out, in] to our kernel [in, out]
CONV = (2, 3, 1, 0)  # torch's Conv2d weight [out, in, height, width] to [height, width, in, out]


@dataclasses.dataclass(frozen=True)
class Key:
    """One line of a layout: their tensor name, our path, and the transposition between them.

    `{layer}` in the name means one tensor a block; ours is then their stack, leading axis layer.
    """

    theirs: str
    ours: str
    axes: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Slot:
    """The place of one of their tensors in our parameters."""

    name: str
    path: str
    layer: int | None
    shape: tuple[int, ...]
    axes: tuple[int, ...] | None

    def put(self, params: dict[str, np.ndarray], tensor: np.ndarray) -> None:
        """Copies their tensor (any float type) into our flat, preallocated float32 arrays."""
        ours = tensor if self.axes is None else tensor.transpose(self.axes)
        np.copyto(self._view(params), ours, casting="same_kind")

    def take(self, params: dict[str, np.ndarray]) -> np.ndarray:
        """Their tensor out of our flat arrays: a view, often not contiguous."""
        ours = self._view(params)
        return ours if self.axes is None else ours.transpose(np.argsort(self.axes))

    def _view(self, params: dict[str, np.ndarray]) -> np.ndarray:
        # [...] keeps a 0-d array an array.
        return params[self.path][... if self.layer is None else self.layer]

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
    """Expands a key table for a model's size, keyed by their tensor name, in the table's order."""
    shapes = expected_shapes(config)
    expanded = [slot for key in keys for slot in _expand(key, shapes[key.ours])]
    return {slot.name: slot for slot in expanded}


def _expand(key: Key, shape: tuple[int, ...]) -> list[Slot]:
    if "{layer}" not in key.theirs:
        return [Slot(key.theirs, key.ours, None, _their_shape(shape, key.axes), key.axes)]
    layers, *rest = shape
    theirs = _their_shape(tuple(rest), key.axes)
    names = [key.theirs.format(layer=layer) for layer in range(layers)]
    return [Slot(name, key.ours, i, theirs, key.axes) for i, name in enumerate(names)]


def _their_shape(ours: tuple[int, ...], axes: tuple[int, ...] | None) -> tuple[int, ...]:
    return ours if axes is None else tuple(ours[axis] for axis in np.argsort(axes))
