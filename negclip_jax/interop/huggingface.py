"""CLIP and SigLIP checkpoints of Hugging Face transformers, both ways.

    directory = resolve("openai/clip-vit-base-patch32")
    config = read_config(directory)
    params = load_params(directory, config)
    save("exported", config, params, base=directory)

`KEYS` (for SigLIP: `SIGLIP_KEYS`) holds transformers' tensor names. They are the same in every
version from 4.30 to 5.x as long as a file holds a full `CLIPModel` with its `text_model.` prefix:
since 5.6 a bare `CLIPTextModel` writes other names, which older versions read as a random encoder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from negclip_jax.interop import writing
from negclip_jax.interop.config import read_config, write_config
from negclip_jax.interop.files import CheckpointError, StoredTensor, find_weights, resolve
from negclip_jax.interop.parameters import (
    CONV,
    LINEAR,
    Key,
    encoder_blocks,
    export_tensors,
    fits,
    linear,
    norm,
    read_params,
)
from negclip_jax.interop.tensors import open_weights
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

_HEAD = tuple(f"vision/head/attn/{name}" for name in ("query", "key", "value"))
SIGLIP_KEYS = (
    # Vectors of one element, where CLIP has a scalar.
    Key("logit_scale", "logit_scale", shape=(1,)),
    Key("logit_bias", "logit_bias", shape=(1,)),
    *TEXT_KEYS,
    *linear("text_model.head", "text_projection"),
    Key("vision_model.embeddings.patch_embedding.weight", "vision/patch_embedding", CONV),
    Key("vision_model.embeddings.patch_embedding.bias", "vision/patch_bias"),
    Key("vision_model.embeddings.position_embedding.weight", "vision/position_embedding"),
    *encoder_blocks("vision_model", "vision"),
    *norm("vision_model.post_layernorm", "vision/ln_post"),
    Key("vision_model.head.probe", "vision/head/probe"),
    Key(
        "vision_model.head.attention.in_proj_weight",
        tuple(f"{path}/kernel" for path in _HEAD),
        LINEAR,
    ),
    Key("vision_model.head.attention.in_proj_bias", tuple(f"{path}/bias" for path in _HEAD)),
    *linear("vision_model.head.attention.out_proj", "vision/head/attn/out"),
    *norm("vision_model.head.layernorm", "vision/head/ln"),
    *linear("vision_model.head.mlp.fc1", "vision/head/mlp/fc1"),
    *linear("vision_model.head.mlp.fc2", "vision/head/mlp/fc2"),
)

# Constant buffers that transformers before 4.31 saved.
BUFFERS = frozenset(f"{tower}_model.embeddings.position_ids" for tower in ("text", "vision"))
_LOAD_ADVICE = (
    "The weights must be those of a transformers CLIPModel (of a SiglipModel where model_type is "
    "siglip) and belong to the config.json beside them. Get the checkpoint again, or save it again "
    "with transformers' save_pretrained."
)


def load_params(
    directory: Path | str, config: CLIPConfig, stored: Mapping[str, StoredTensor] | None = None
) -> dict[str, Any]:
    """Reads a checkpoint's weights into the tree of `models.clip.abstract(config)`.

    Reads `model.safetensors` or its shards, else `pytorch_model.bin` or its shards, written by
    transformers 4 or 5 in float32, float16 or bfloat16 (widened exactly).

    Args:
      directory: checkpoint directory, see `resolve`.
      config: what `read_config` says about the same directory.
      stored: the tensors, where they are those of another file, which `directory` then names.

    Returns:
      Nested dict of float32 `np.ndarray`; block parameters are stacked, leading axis layer.

    Raises:
      CheckpointError: unreadable files, or tensors that are missing, unknown, of the wrong shape
        or type, or hold NaN or infinity: all of them in one message.
    """
    return read_params(
        _without_buffers(open_weights(Path(directory)) if stored is None else stored),
        SIGLIP_KEYS if isinstance(config, SigLIPConfig) else KEYS,
        config,
        where=directory,
        authority="config.json",
        advice=_LOAD_ADVICE,
    )


def _without_buffers(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    return {name: tensor for name, tensor in stored.items() if name not in BUFFERS}


@writing.layout_writer
def save(stage: Path, export: writing.Export, *, shard_bytes: int = writing.SHARD_BYTES) -> None:
    """Writes a directory that transformers 4.30 to 5.x reads with `CLIPModel.from_pretrained`.

    With a base, every file of it that is not a weight is copied as it is, and config.json with
    three corrections (see `config.corrected`). Weights are float32, with one exception: if the
    base's weights are in float16 or bfloat16 and not one value has changed, each tensor keeps
    its type, and the export is bit-equal. Once anything was trained, rounding it to half would
    lose most of an update at learning rate 1e-6, so the whole file is float32.

    `shard_bytes` is the greatest size of one weight file: above it, shards with an index are
    written. Other arguments and errors are those of `writing.layout_writer`; a base of another
    shape is refused.
    """
    config, base = export.config, export.base
    if base is not None and read_config(base) != config:
        raise CheckpointError(f"{base}/config.json does not describe the model to be saved")
    keys = SIGLIP_KEYS if isinstance(config, SigLIPConfig) else KEYS
    places, take = export_tensors(export.params, config, keys)
    dtypes = dict.fromkeys(places, export.dtype or "float32")
    if export.dtype is None and base is not None and find_weights(base):
        stored = _without_buffers(open_weights(base))
        if any(tensor.dtype != "float32" for tensor in stored.values()) and all(
            fits(tensor := stored.get(name), slot)
            and tensor.dtype in writing.DTYPES
            and np.array_equal(tensor.read().reshape(slot.shape), take(name))
            for name, slot in places.items()
        ):
            dtypes = {name: stored[name].dtype for name in places}
    kinds = set(dtypes.values())
    write_config(stage, export, kinds.pop() if len(kinds) == 1 else "float32")
    sizes = {name: slot.size for name, slot in places.items()}
    writing.write_weights(stage, sizes, dtypes, take, shard_bytes=shard_bytes)
