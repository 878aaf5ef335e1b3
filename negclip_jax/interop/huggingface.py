"""CLIP checkpoints of Hugging Face transformers, both ways.

    directory = resolve("openai/clip-vit-base-patch32")
    config = read_config(directory)
    params = load_params(directory, config)
    save("exported", config, params, base=directory)

`KEYS` is the only place that knows transformers' tensor names. They are the same in every version
from 4.30 to 5.x as long as a file holds a full `CLIPModel` with its `text_model.` prefix: since
5.6 a bare `CLIPTextModel` writes other names, which older versions read as a random encoder.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors import SafetensorError

from negclip_jax.interop import writing
from negclip_jax.interop.config import read_config, write_config, write_other_files
from negclip_jax.interop.files import (
    FLOAT_TYPES,
    CheckpointError,
    StoredTensor,
    find_weights,
    open_weights,
    problem_report,
    resolve,
)
from negclip_jax.interop.layout import CONV, LINEAR, Key, Slot, expected_shapes, slots
from negclip_jax.interop.writing import copy_non_weights
from negclip_jax.models.clip import CLIPConfig

__all__ = [
    "CheckpointError",
    "copy_non_weights",
    "load_params",
    "read_config",
    "resolve",
    "save",
    "write_config",
]


def _linear(theirs: str, ours: str) -> tuple[Key, Key]:
    return Key(f"{theirs}.weight", f"{ours}/kernel", LINEAR), Key(f"{theirs}.bias", f"{ours}/bias")


def _norm(theirs: str, ours: str) -> tuple[Key, Key]:
    return Key(f"{theirs}.weight", f"{ours}/scale"), Key(f"{theirs}.bias", f"{ours}/bias")


def _blocks(theirs: str, ours: str) -> tuple[Key, ...]:
    theirs, ours = f"{theirs}.encoder.layers.{{layer}}", f"{ours}/blocks"
    return (
        *_norm(f"{theirs}.layer_norm1", f"{ours}/ln_1"),
        *_linear(f"{theirs}.self_attn.q_proj", f"{ours}/attn/query"),
        *_linear(f"{theirs}.self_attn.k_proj", f"{ours}/attn/key"),
        *_linear(f"{theirs}.self_attn.v_proj", f"{ours}/attn/value"),
        *_linear(f"{theirs}.self_attn.out_proj", f"{ours}/attn/out"),
        *_norm(f"{theirs}.layer_norm2", f"{ours}/ln_2"),
        *_linear(f"{theirs}.mlp.fc1", f"{ours}/mlp/fc1"),
        *_linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/fc2"),
    )


KEYS = (
    Key("logit_scale", "logit_scale"),
    Key("text_projection.weight", "text_projection", LINEAR),
    Key("visual_projection.weight", "visual_projection", LINEAR),
    Key("text_model.embeddings.token_embedding.weight", "text/token_embedding"),
    Key("text_model.embeddings.position_embedding.weight", "text/position_embedding"),
    *_blocks("text_model", "text"),
    *_norm("text_model.final_layer_norm", "text/ln_final"),
    Key("vision_model.embeddings.class_embedding", "vision/class_embedding"),
    Key("vision_model.embeddings.patch_embedding.weight", "vision/patch_embedding", CONV),
    Key("vision_model.embeddings.position_embedding.weight", "vision/position_embedding"),
    *_norm("vision_model.pre_layrnorm", "vision/ln_pre"),  # sic, in every version
    *_blocks("vision_model", "vision"),
    *_norm("vision_model.post_layernorm", "vision/ln_post"),
)

# Constant buffers that transformers before 4.31 saved.
_BUFFERS = frozenset(f"{tower}_model.embeddings.position_ids" for tower in ("text", "vision"))
_WRITTEN = ("float32", "float16", "bfloat16")
_LOAD_ADVICE = (
    "The weights must be those of a transformers CLIPModel and belong to the config.json beside "
    "them. Get the checkpoint again, or save it again with transformers' save_pretrained."
)


def load_params(directory: Path | str, config: CLIPConfig) -> dict[str, Any]:
    """Reads a checkpoint's weights into the tree of `models.clip.abstract(config)`.

    Reads `model.safetensors` or its shards, else `pytorch_model.bin` or its shards, written by
    transformers 4 or 5 in float32, float16 or bfloat16 (widened exactly).

    Args:
      directory: checkpoint directory, see `resolve`.
      config: what `read_config` says about the same directory.

    Returns:
      Nested dict of float32 `np.ndarray`; block parameters are stacked, leading axis layer.

    Raises:
      CheckpointError: unreadable files, or tensors that are missing, unknown, of the wrong shape
        or type, or hold NaN or infinity: all of them in one message.
    """
    directory = Path(directory)
    stored = _open(directory)
    places = slots(KEYS, config)
    problems = _misfits(stored, places)
    params = {path: np.empty(shape, np.float32) for path, shape in expected_shapes(config).items()}
    fitting = [slot for slot in places.values() if _fits(stored.get(slot.name), slot)]
    for slot in fitting:
        slot.put(params, stored[slot.name].read().reshape(slot.shape))
    problems["with NaN or infinity"] = _not_finite(params, fitting)
    if any(problems.values()):
        raise CheckpointError(problem_report(directory, problems, _LOAD_ADVICE))
    return traverse_util.unflatten_dict(params, sep="/")


def _open(directory: Path) -> dict[str, StoredTensor]:
    opened = open_weights(directory)
    return {name: tensor for name, tensor in opened.items() if name not in _BUFFERS}


def _fits(tensor: StoredTensor | None, slot: Slot) -> bool:
    if tensor is None:
        return False
    # A logit_scale of shape [1] is in use; transformers 4 took it for a scalar.
    same = tensor.shape == slot.shape or (slot.shape == () and tensor.shape == (1,))
    return same and tensor.dtype in FLOAT_TYPES.values()


def _misfits(stored: dict[str, StoredTensor], places: dict[str, Slot]) -> dict[str, list[str]]:
    wrong = [
        f"{name} is {_shown(stored[name].dtype, stored[name].shape)}, "
        f"config.json asks for {_shown('float', slot.shape)}"
        for name, slot in places.items()
        if name in stored and not _fits(stored[name], slot)
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
        if slot.path in suspects:
            bad = slot.size - int(np.isfinite(slot.take(params)).sum())
            found += [f"{slot.name} ({bad} of {slot.size} values)"] if bad else []
    return found


def save(
    directory: Path | str,
    config: CLIPConfig,
    params: dict[str, Any],
    *,
    base: Path | str | None = None,
    tokenizer: Path | str | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    shard_bytes: int = writing.SHARD_BYTES,
) -> Path:
    """Writes a directory that transformers 4.30 to 5.x reads with `CLIPModel.from_pretrained`.

    With a base, every file of it that is not a weight is copied as it is, and config.json with
    three corrections (see `config.corrected`). Weights are float32, with one exception: if the
    base's weights are in float16 or bfloat16 and not one value has changed, each tensor keeps
    its type, and the export is bit-equal. Once anything was trained, rounding it to half would
    lose most of an update at learning rate 1e-6, so the whole file is float32.

    Args:
      directory: destination; written whole or not at all.
      config: the model; must be the base's.
      params: tree of `models.clip.abstract(config)`, numpy or jax arrays.
      base: directory that the model was made from; its weights may be absent.
      tokenizer: directory with vocab.json and merges.txt, for a model without a base.
      dtype: `"float32"`, `"float16"` or `"bfloat16"` instead of the rule above.
      overwrite: replace an earlier export.
      shard_bytes: greatest size of one weight file; above it, shards with an index are written.

    Returns:
      The directory.

    Raises:
      CheckpointError: params that do not fit or are not finite, an occupied destination, a base
        of another shape, a disk that is full or cannot be written.
    """
    out, base = Path(directory), None if base is None else Path(base)
    if base is not None and read_config(base) != config:
        raise CheckpointError(f"{base}/config.json does not describe the model to be saved")
    flat = _checked(params, config)
    places = slots(KEYS, config)
    dtypes = _dtypes(places, flat, base, dtype)
    sizes = {name: slot.size for name, slot in places.items()}
    try:
        with writing.staged_directory(out, overwrite=overwrite, keep=base) as stage:
            write_other_files(stage, config, base, tokenizer, _widest(dtypes))
            writing.write_weights(
                stage, sizes, dtypes, lambda n: places[n].take(flat), shard_bytes=shard_bytes
            )
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{out} was not written and is as it was: {error}") from error
    return out


def _checked(params: dict[str, Any], config: CLIPConfig) -> dict[str, np.ndarray]:
    """Our parameters as flat float32 arrays, after a complaint about all that does not fit."""
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
        problems["with NaN or infinity"] = _not_finite(flat, slots(KEYS, config).values())
    if any(problems.values()):
        advice = "Nothing was written. Give the tree of models.clip.split for this config."
        raise CheckpointError(problem_report("the parameters", problems, advice))
    return flat


def _dtypes(
    places: dict[str, Slot], flat: dict[str, np.ndarray], base: Path | None, dtype: str | None
) -> dict[str, str]:
    """The type to write each tensor in, see `save`."""
    if dtype is not None and dtype not in _WRITTEN:
        raise CheckpointError(f"dtype {dtype!r} is not one of {', '.join(_WRITTEN)}")
    if dtype is None and base is not None and find_weights(base):
        stored = _open(base)
        halves = any(tensor.dtype != "float32" for tensor in stored.values())
        if halves and all(
            _is_untouched(stored.get(name), slot, flat) for name, slot in places.items()
        ):
            return {name: stored[name].dtype for name in places}
    return dict.fromkeys(places, dtype or "float32")


def _is_untouched(stored: StoredTensor | None, slot: Slot, flat: dict[str, np.ndarray]) -> bool:
    if not _fits(stored, slot) or stored.dtype not in _WRITTEN:
        return False
    return np.array_equal(stored.read().reshape(slot.shape), slot.take(flat))


def _widest(dtypes: dict[str, str]) -> str:
    kinds = set(dtypes.values())
    return kinds.pop() if len(kinds) == 1 else "float32"
