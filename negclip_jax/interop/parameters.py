"""What every weight layout shares: an invertible key table, and the checks in both directions.

A layout is a tuple of `Key`. Reading and writing both walk the slots that it expands to, so a name
or a transposition is stated once and cannot be right in one direction only. Both complain about
everything that does not fit in one message.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from negclip_jax.interop.files import CheckpointError, StoredTensor, problem_report
from negclip_jax.interop.tensors import FLOAT_TYPES
from negclip_jax.models import clip
from negclip_jax.models.siglip import SigLIPConfig

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


def fused(name: str, path: str) -> tuple[Key, Key]:
    """Weight and bias of torch's MultiheadAttention, which makes query, key and value at once."""
    weights, biases = (
        tuple(f"{path}/{part}/{kind}" for part in ("query", "key", "value"))
        for kind in ("kernel", "bias")
    )
    return Key(f"{name}_weight", weights, LINEAR), Key(f"{name}_bias", biases)


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
    return {slot.name: slot for key in keys for slot in expanded(key, shapes)}


def expanded(key: Key, shapes: Mapping[str, tuple[int, ...]]) -> list[Slot]:
    """One slot of a key, or one a layer; `shapes` are those of our parameters by path."""
    paths = (key.path,) if isinstance(key.path, str) else key.path
    layers, ours = [None], shapes[paths[0]]
    if "{layer}" in key.name:
        layers, ours = range(ours[0]), ours[1:]
    shape = ours if key.axes is None else tuple(ours[axis] for axis in np.argsort(key.axes))
    if len(paths) > 1:
        shape = (len(paths) * shape[0], *shape[1:])
    names = [(i, key.name.format(layer=i)) for i in layers]
    return [Slot(name, paths, i, key.shape or shape, key.axes) for i, name in names]


def read_params(
    stored: Mapping[str, StoredTensor],
    keys: tuple[Key, ...],
    config: clip.CLIPConfig,
    *,
    where: Any,
    authority: str,
    advice: str,
) -> dict[str, Any]:
    """Reads tensors into the tree of `models.clip.abstract(config)`, or the part `keys` names.

    Args:
      stored: a file's tensors by name, those that are no parameters left out.
      keys, config: the layout, and what gives the shapes.
      where: the file or directory, for messages.
      authority: what asks for the shapes, e.g. "config.json".
      advice: the last line of a message.

    Returns a nested dict of float32 `np.ndarray`; block parameters are stacked, leading axis layer.
    Raises CheckpointError with all that is missing, unknown, of the wrong shape or type, or not
    finite.
    """
    places = slots(keys, config)
    problems = {
        "missing": [name for name in places if name not in stored],
        "unknown": [name for name in stored if name not in places],
        "wrong shape or type": [
            f"{name} is {stored[name].dtype}{list(stored[name].shape)}, "
            f"{authority} asks for float{list(slot.shape)}"
            for name, slot in places.items()
            if name in stored and not fits(stored[name], slot)
        ],
    }
    fitting = [slot for slot in places.values() if fits(stored.get(slot.name), slot)]
    if 2 * sum(slot.size for slot in fitting) < sum(slot.size for slot in places.values()):
        # A config.json may name any sizes: memory is taken for what the file mostly holds.
        raise CheckpointError(problem_report(where, problems, advice))
    shapes = expected_shapes(config)
    wanted = {path for slot in places.values() for path in slot.paths}
    params = {path: np.empty(shapes[path], np.float32) for path in shapes if path in wanted}
    for slot in fitting:
        slot.put(params, stored[slot.name].read().reshape(slot.shape))
    problems["with NaN or infinity"] = _not_finite(params, fitting)
    if any(problems.values()):
        raise CheckpointError(problem_report(where, problems, advice))
    return traverse_util.unflatten_dict(params, sep="/")


def export_tensors(
    params: dict[str, Any], config: clip.CLIPConfig, keys: tuple[Key, ...]
) -> tuple[dict[str, Slot], Callable[[str], np.ndarray]]:
    """A layout's slots by name, and a function that fetches their tensor by name, float32.

    `params` is the tree of `models.clip.abstract(config)`, of numpy or jax arrays. Raises
    CheckpointError for parameters that are missing, unknown, of the wrong shape or not finite.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    shapes = expected_shapes(config)
    problems = {
        "missing": [path for path in shapes if path not in flat],
        "unknown": [path for path in flat if path not in shapes],
        "wrong shape": [
            f"{path} is {tuple(flat[path].shape)}, not {shape}"
            for path, shape in shapes.items()
            if path in flat and tuple(flat[path].shape) != shape
        ],
    }
    if not any(problems.values()):
        flat = {path: np.asarray(array, np.float32) for path, array in flat.items()}
        places = slots(keys, config)
        problems["with NaN or infinity"] = _not_finite(flat, places.values())
    if any(problems.values()):
        advice = "Nothing was written. Give the tree of models.clip.split for this config."
        raise CheckpointError(problem_report("the parameters", problems, advice))
    return places, lambda name: places[name].take(flat)


def interpolate(base: Any, tuned: Any, alpha: float) -> Any:
    """`(1 - alpha) base + alpha tuned`, leaf by leaf, float32, of two trees of one model.

    Keeps most of what the base could do and most of what fine-tuning taught (Wortsman et al.,
    2022, https://arxiv.org/abs/2109.01903). Exactly the tuned weights at 1, the base's at 0, and
    what both share anywhere, so that a frozen tower stays bit-equal.
    """
    if alpha in (0, 1):
        return tuned if alpha else base
    return jax.tree.map(lambda b, t: np.asarray(b + np.float32(alpha) * (t - b)), base, tuned)


def require_clip(config: clip.CLIPConfig, layout: str) -> None:
    """Raises CheckpointError for what a layout of whole CLIPs, `layout` by name, cannot hold."""
    if config.vision is None:
        raise CheckpointError(
            f"{layout} holds whole models, and the vision tower of this one is another library's, "
            "kept as it stood in its file: write it with --layout=open_clip, or in the layout that "
            "it came in"
        )
    if isinstance(config, SigLIPConfig):
        raise CheckpointError(
            f"{layout} holds CLIPs, and this is a SigLIP: write it with --layout=huggingface"
        )


def fits(tensor: StoredTensor | None, slot: Slot) -> bool:
    """Whether a stored tensor, if there is one, has the shape and a type that the slot takes."""
    if tensor is None:
        return False
    # A logit_scale of shape [1] is in use; transformers 4 took it for a scalar.
    same = tensor.shape == slot.shape or (slot.shape == () and tensor.shape == (1,))
    return same and tensor.dtype in FLOAT_TYPES.values()


def _not_finite(params: dict[str, np.ndarray], places: Iterable[Slot]) -> list[str]:
    with np.errstate(all="ignore"):
        # A sum needs no temporary; only arrays with a suspicious one are looked at closely.
        suspects = {path for path, array in params.items() if not np.isfinite(array.sum())}
    found = []
    for slot in places:
        if not suspects.isdisjoint(slot.paths):
            bad = slot.size - int(np.isfinite(slot.take(params)).sum())
            found += [f"{slot.name} ({bad} of {slot.size} values)"] if bad else []
    return found
