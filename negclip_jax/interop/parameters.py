"""Between a checkpoint's tensors and our parameters: what every layout checks on the way.

Reading fills our arrays from stored tensors, writing flattens them again; both complain about
everything that does not fit in one message.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from negclip_jax.interop.files import CheckpointError, StoredTensor, problem_report
from negclip_jax.interop.key_table import Key, Slot, expected_shapes, slots
from negclip_jax.interop.tensors import FLOAT_TYPES
from negclip_jax.models.clip import CLIPConfig
from negclip_jax.models.siglip import SigLIPConfig


def read_params(
    stored: Mapping[str, StoredTensor],
    keys: tuple[Key, ...],
    config: CLIPConfig,
    *,
    where: Any,
    authority: str,
    advice: str,
) -> dict[str, Any]:
    """Reads tensors into the tree of `models.clip.abstract(config)`, or the part `keys` names.

    Args:
      stored: a file's tensors by name, those that are no parameters left out.
      keys: the layout.
      config: gives the shapes.
      where: the file or directory, for messages.
      authority: what asks for the shapes, e.g. "config.json".
      advice: the last line of a message.

    Returns:
      Nested dict of float32 `np.ndarray`; block parameters are stacked, leading axis layer.

    Raises:
      CheckpointError: tensors that are missing, unknown, of the wrong shape or type, or hold NaN
        or infinity: all of them in one message.
    """
    places = slots(keys, config)
    problems = _misfits(stored, places, authority)
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


def flat_params(
    params: dict[str, Any], config: CLIPConfig, keys: tuple[Key, ...]
) -> dict[str, np.ndarray]:
    """Our parameters as flat float32 arrays, after a complaint about all that does not fit.

    Args:
      params: tree of `models.clip.abstract(config)`, numpy or jax arrays.
      config: the model.
      keys: the layout to be written, in whose names values that are not finite are reported.

    Raises:
      CheckpointError: parameters that are missing, unknown, of the wrong shape or not finite.
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
        problems["with NaN or infinity"] = _not_finite(flat, slots(keys, config).values())
    if any(problems.values()):
        advice = "Nothing was written. Give the tree of models.clip.split for this config."
        raise CheckpointError(problem_report("the parameters", problems, advice))
    return flat


def export_tensors(
    params: dict[str, Any], config: CLIPConfig, keys: tuple[Key, ...]
) -> tuple[dict[str, Slot], Callable[[str], np.ndarray]]:
    """A layout's slots by name, and a function that fetches their tensor by name.

    Args and errors are those of `flat_params`.
    """
    flat, places = flat_params(params, config, keys), slots(keys, config)
    return places, lambda name: places[name].take(flat)


def interpolate(base: Any, tuned: Any, alpha: float) -> Any:
    """`(1 - alpha) base + alpha tuned`, leaf by leaf, float32.

    Keeps most of what the base could do and most of what fine-tuning taught (Wortsman et al.,
    2022, https://arxiv.org/abs/2109.01903). Exactly the tuned weights at 1, the base's at 0, and
    what both share anywhere, so that a frozen tower stays bit-equal.

    Args:
      base, tuned: trees of one model.
      alpha: between 0 and 1.
    """
    if alpha in (0, 1):
        return tuned if alpha else base
    return jax.tree.map(lambda b, t: np.asarray(b + np.float32(alpha) * (t - b)), base, tuned)


def require_clip(config: CLIPConfig, layout: str) -> None:
    """Raises CheckpointError for a SigLIP in a layout that holds CLIPs; `layout` is its name."""
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


def _misfits(
    stored: Mapping[str, StoredTensor], places: dict[str, Slot], authority: str
) -> dict[str, list[str]]:
    wrong = [
        f"{name} is {_shown(stored[name].dtype, stored[name].shape)}, "
        f"{authority} asks for {_shown('float', slot.shape)}"
        for name, slot in places.items()
        if name in stored and not fits(stored[name], slot)
    ]
    return {
        "missing": [name for name in places if name not in stored],
        "unknown": [name for name in stored if name not in places],
        "wrong shape or type": wrong,
    }


def _shown(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype}[{', '.join(map(str, shape))}]"


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
