"""CLIP and SigLIP checkpoints of Hugging Face transformers, both ways.

    directory = resolve("openai/clip-vit-base-patch32")
    config = read_config(directory)
    params = load_params(directory, config)
    save("exported", config, params, base=directory)

`KEYS` (for SigLIP: `siglip.KEYS`) holds transformers' tensor names. They are the same in every
version from 4.30 to 5.x as long as a file holds a full `CLIPModel` with its `text_model.` prefix:
since 5.6 a bare `CLIPTextModel` writes other names, which older versions read as a random encoder.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from negclip_jax.data.images import Preprocessor
from negclip_jax.interop import siglip, writing
from negclip_jax.interop.config import read_config, write_config, write_other_files
from negclip_jax.interop.files import (
    CheckpointError,
    StoredTensor,
    find_weights,
    open_weights,
    resolve,
)
from negclip_jax.interop.key_table import CONV, LINEAR, Key, Slot, encoder_blocks, norm
from negclip_jax.interop.parameters import DTYPES, fits, read_params, require_dtype, taker
from negclip_jax.interop.writing import copy_non_weights
from negclip_jax.models.clip import CLIPConfig
from negclip_jax.models.siglip import SigLIPConfig

__all__ = [
    "CheckpointError",
    "copy_non_weights",
    "load_params",
    "read_config",
    "resolve",
    "save",
    "write_config",
]


TEXT_KEYS = (
    Key("text_model.embeddings.token_embedding.weight", "text/token_embedding"),
    Key("text_model.embeddings.position_embedding.weight", "text/position_embedding"),
    *encoder_blocks("text_model", "text"),
    *norm("text_model.final_layer_norm", "text/ln_final"),
)
VISION_KEYS = (
    Key("vision_model.embeddings.class_embedding", "vision/class_embedding"),
    Key("vision_model.embeddings.patch_embedding.weight", "vision/patch_embedding", CONV),
    Key("vision_model.embeddings.position_embedding.weight", "vision/position_embedding"),
    *norm("vision_model.pre_layrnorm", "vision/ln_pre"),  # sic, in every version
    *encoder_blocks("vision_model", "vision"),
    *norm("vision_model.post_layernorm", "vision/ln_post"),
)
TEXT_PROJECTION = Key("text_projection.weight", "text_projection", LINEAR)
VISUAL_PROJECTION = Key("visual_projection.weight", "visual_projection", LINEAR)
KEYS = (
    Key("logit_scale", "logit_scale"),
    TEXT_PROJECTION,
    VISUAL_PROJECTION,
    *TEXT_KEYS,
    *VISION_KEYS,
)

# Constant buffers that transformers before 4.31 saved.
BUFFERS = frozenset(f"{tower}_model.embeddings.position_ids" for tower in ("text", "vision"))
_LOAD_ADVICE = (
    "The weights must be those of a transformers CLIPModel (of a SiglipModel where model_type is "
    "siglip) and belong to the config.json beside them. Get the checkpoint again, or save it again "
    "with transformers' save_pretrained."
)


def keys_of(config: CLIPConfig) -> tuple[Key, ...]:
    """The table of a model's family."""
    return siglip.KEYS if isinstance(config, SigLIPConfig) else KEYS


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
    return read_params(
        _open(Path(directory)),
        keys_of(config),
        config,
        where=directory,
        authority="config.json",
        advice=_LOAD_ADVICE,
    )


def _open(directory: Path) -> dict[str, StoredTensor]:
    opened = open_weights(directory)
    return {name: tensor for name, tensor in opened.items() if name not in BUFFERS}


def save(
    directory: Path | str,
    config: CLIPConfig,
    params: dict[str, Any],
    *,
    base: Path | str | None = None,
    tokenizer: Path | str | None = None,
    preprocessor: Preprocessor | None = None,
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
      tokenizer: directory with vocab.json and merges.txt, instead of the base's.
      preprocessor: for a model without a base, if it is not CLIP's own.
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
    places, take = taker(params, config, keys_of(config))
    dtypes = _dtypes(places, take, base, dtype)
    sizes = {name: slot.size for name, slot in places.items()}
    with writing.export_directory(out, overwrite=overwrite, keep=base) as stage:
        write_other_files(stage, config, base, tokenizer, _widest(dtypes), preprocessor)
        writing.write_weights(stage, sizes, dtypes, take, shard_bytes=shard_bytes)
    return out


def _dtypes(
    places: dict[str, Slot],
    take: Callable[[str], np.ndarray],
    base: Path | None,
    dtype: str | None,
) -> dict[str, str]:
    """The type to write each tensor in, see `save`."""
    require_dtype(dtype)
    if dtype is None and base is not None and find_weights(base):
        stored = _open(base)
        halves = any(tensor.dtype != "float32" for tensor in stored.values())
        if halves and all(
            _is_untouched(stored.get(name), slot, take) for name, slot in places.items()
        ):
            return {name: stored[name].dtype for name in places}
    return dict.fromkeys(places, dtype or "float32")


def _is_untouched(
    stored: StoredTensor | None, slot: Slot, take: Callable[[str], np.ndarray]
) -> bool:
    if not fits(stored, slot) or stored.dtype not in DTYPES:
        return False
    return np.array_equal(stored.read().reshape(slot.shape), take(slot.name))


def _widest(dtypes: dict[str, str]) -> str:
    kinds = set(dtypes.values())
    return kinds.pop() if len(kinds) == 1 else "float32"
