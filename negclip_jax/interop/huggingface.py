"""CLIP and SigLIP checkpoints of Hugging Face transformers, whole or of one tower, both ways.

    directory = files.resolve("openai/clip-vit-base-patch32")
    config = read_config(directory)
    params = load_params(directory, config)
    save("exported", config, params, base=directory)
    config, params = merge_tower("someones/text_encoder", config, params)
    save("text_encoder", config, params, architecture="CLIPTextModelWithProjection")

`KEYS` (for SigLIP: `SIGLIP_KEYS`) holds transformers' tensor names. They are the same in every
version from 4.30 to 5.x as long as a file holds a full `CLIPModel` with its `text_model.` prefix. A
text encoder is what other software takes out of a CLIP: Stable Diffusion holds a CLIPTextModel.
One that transformers 5.6 or later saves afresh has no prefix, and older versions read such a file
as a random encoder without an error. Both kinds are read, and written is the prefix.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from negclip_jax.interop import config as configs
from negclip_jax.interop import parameters, writing
from negclip_jax.interop.config import read_config, write_config
from negclip_jax.interop.files import (
    CheckpointError,
    OtherVision,
    StoredTensor,
    find_weights,
    read_json,
)
from negclip_jax.interop.parameters import CONV, LINEAR, Key, encoder_blocks, fused, linear, norm
from negclip_jax.interop.tensors import FLOAT_TYPES, open_weights
from negclip_jax.models.clip import CLIPConfig, TextConfig, VisionConfig
from negclip_jax.models.siglip import SigLIPConfig

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
    *fused("vision_model.head.attention.in_proj", "vision/head/attn"),
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


@dataclasses.dataclass(frozen=True)
class Tower:
    """What a directory of one tower holds.

    Attributes:
      model_type: in its config.json.
      name: of the tower, in our parameters and in tensor names.
      keys: its tensors, without the projection.
      projection: of this tower into the common space.
    """

    model_type: str
    name: str
    keys: tuple[Key, ...]
    projection: Key


TEXT = Tower("clip_text_model", "text", TEXT_KEYS, TEXT_PROJECTION)
VISION = Tower("clip_vision_model", "vision", VISION_KEYS, VISUAL_PROJECTION)
# Class of transformers: its tower, and whether the projection goes along.
ARCHITECTURES = {
    "CLIPTextModel": (TEXT, False),
    "CLIPTextModelWithProjection": (TEXT, True),
    "CLIPVisionModel": (VISION, False),
    "CLIPVisionModelWithProjection": (VISION, True),
}
_SMALLEST = {"width": 1, "layers": 1, "heads": 1, "mlp_width": 1}
_SMALLEST_TOWERS = {
    "text": TextConfig(**_SMALLEST, vocab_size=1, context_length=1),
    "vision": VisionConfig(**_SMALLEST, image_size=1, patch_size=1),
}
_TOWER_ADVICE = (
    "The weights must be those of one tower of a transformers CLIP and belong to the config.json "
    "beside them."
)


def load_params(
    directory: Path | str, config: CLIPConfig, stored: Mapping[str, StoredTensor] | None = None
) -> dict[str, Any]:
    """Reads a checkpoint's weights into the tree of `models.clip.abstract(config)`.

    Reads `model.safetensors` or its shards, else `pytorch_model.bin` or its shards, written by
    transformers 4 or 5 in float32, float16 or bfloat16 (widened exactly). `stored` are the tensors
    where they are those of another file, which `directory` then names.

    Returns a nested dict of float32 `np.ndarray`; block parameters are stacked, leading axis layer.
    Raises CheckpointError, see `parameters.read_params`.
    """
    stored = _without_buffers(open_weights(Path(directory)) if stored is None else stored)
    others = () if config.vision else OtherVision().prefix
    return parameters.read_params(
        {name: tensor for name, tensor in stored.items() if not name.startswith(others)},
        keys_of(config),
        config,
        where=directory,
        authority="config.json",
        advice=_LOAD_ADVICE,
    )


def keys_of(config: CLIPConfig) -> tuple[Key, ...]:
    """The tensors of a whole model, without those of a vision tower that is not read."""
    keys = SIGLIP_KEYS if isinstance(config, SigLIPConfig) else KEYS
    others = () if config.vision else OtherVision().prefix
    return tuple(key for key in keys if not key.name.startswith(others))


def _without_buffers(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    return {name: tensor for name, tensor in stored.items() if name not in BUFFERS}


def tower_of(directory: Path) -> Tower | None:
    """The tower that a directory's config.json describes; None where it describes no single one."""
    path = directory / "config.json"
    kind = read_json(path).get("model_type") if path.is_file() else None
    return next((tower for tower in (TEXT, VISION) if tower.model_type == kind), None)


def merge_tower(
    directory: Path | str, config: CLIPConfig, params: dict[str, Any]
) -> tuple[CLIPConfig, dict[str, Any]]:
    """A model with the tower that `directory` holds in the place of its own; `params` stays.

    The directory is that of a CLIPTextModel or CLIPVisionModel, with its projection or without.
    Without, the model's own projection stays, and the tower must be as wide as the one it replaces.
    Raises CheckpointError for no tower there, or one whose features do not fit the model.
    """
    directory = Path(directory)
    path = directory / "config.json"
    tower, raw = tower_of(directory), read_json(path)
    if tower is None:
        raise CheckpointError(f"{path}: model_type is {raw.get('model_type')!r}, not of one tower")
    with configs.errors_of(path):
        section = _section(tower, raw)
    merged = dataclasses.replace(config, **{tower.name: section})
    # Names as in a full CLIPModel, whichever version of transformers wrote them.
    prefix, own = f"{tower.name}_model.", (tower.projection.name, *BUFFERS)
    stored = open_weights(directory)
    if not any(name.startswith(prefix) for name in stored):
        stored = {n if n in own else prefix + n: tensor for n, tensor in stored.items()}
    own_width = getattr(config, tower.name).width
    if tower.projection.name not in stored and section.width != own_width:
        raise CheckpointError(
            f"{directory} has no {tower.projection.name}, and its {tower.name} tower is "
            f"{section.width} wide where the model's projection takes {own_width}: give a "
            "directory saved WithProjection"
        )
    return merged, merge_stored(directory, tower, stored, merged, params)


def merge_stored(
    where: Path,
    tower: Tower,
    stored: Mapping[str, StoredTensor],
    config: CLIPConfig,
    params: dict[str, Any],
) -> dict[str, Any]:
    """Parameters with the tensors of one tower, of the shape that `config` says, in their place."""
    stored = _without_buffers(stored)
    keys = (tower.projection, *tower.keys) if tower.projection.name in stored else tower.keys
    part = parameters.read_params(
        stored, keys, config, where=where, authority="the model", advice=_TOWER_ADVICE
    )
    flat = traverse_util.flatten_dict(params) | traverse_util.flatten_dict(part)
    return traverse_util.unflatten_dict(flat)


def load_alone(directory: Path | str, architecture: str = "") -> tuple[CLIPConfig, dict[str, Any]]:
    """A tower's directory as a model whose other half is zeros of the smallest size.

    A projection that the directory lacks is zeros as well, unless a class (a key of
    `ARCHITECTURES`) is asked for that holds it. Raises CheckpointError as `merge_tower` does, and
    where the directory lacks what the class is made of.
    """
    directory = Path(directory)
    raw, tower = read_json(directory / "config.json"), tower_of(directory)
    wanted, projected = ARCHITECTURES.get(architecture, (tower, False))
    if tower is not wanted:
        held = tower.name if tower else "no"
        raise CheckpointError(
            f"{directory} holds a {held} tower, and a {architecture} is a {wanted.name} tower"
        )
    if projected and tower.projection.name not in open_weights(directory):
        raise CheckpointError(
            f"{directory} has no {tower.projection.name}, which a {architecture} holds: give the "
            "model that it comes from (base=, or --base), or take a "
            f"{architecture.removesuffix('WithProjection')}"
        )
    with configs.errors_of(directory / "config.json"):
        sections = dict(_SMALLEST_TOWERS)
        if tower is not None:
            # Of the other tower nothing matters but that both have one activation.
            own = _section(tower, raw)
            for name, section in sections.items():
                sections[name] = dataclasses.replace(section, hidden_act=own.hidden_act)
            sections[tower.name] = own
        config = CLIPConfig(**sections, projection_dim=raw.get("projection_dim", 512))
    shapes = parameters.expected_shapes(config)
    zeros = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
    return merge_tower(directory, config, traverse_util.unflatten_dict(zeros, sep="/"))


def _section(tower: Tower, raw: dict[str, Any]) -> TextConfig | VisionConfig:
    return configs.text_config(raw) if tower is TEXT else configs.vision_config(raw)


def write(stage: Path, export: writing.Export) -> None:
    """Writes a directory for `from_pretrained` of transformers 4.30 to 5.x.

    With a base, every file of it that is not a weight is copied as it is, and config.json with
    three corrections (see `config.corrected`). Weights are float32, with one exception: if the
    base's weights are in float16 or bfloat16 and not one value has changed, each tensor keeps
    its type, and the export is bit-equal. Once anything was trained, rounding it to half would
    lose most of an update at learning rate 1e-6, so the whole file is float32.

    Of one tower, where `export.architecture` is one of `ARCHITECTURES`, config.json stands beside
    float32 weights, and the tokenizer of a text tower, or the preprocessor of a vision tower, taken
    from the base.

    A vision tower that is not read (SigLIP 2 NaFlex) is written as it was, in its own type.

    Above `export.shard_bytes`, shards with an index are written. Refused are a base of another
    shape and an unknown architecture; see `writing.saver`.
    """
    if export.architecture not in ("", "CLIPModel", *ARCHITECTURES):
        known = ", ".join(ARCHITECTURES)
        raise CheckpointError(f"architecture {export.architecture!r} is not one of {known}")
    beside = _beside_tower if export.architecture in ARCHITECTURES else _beside_whole
    places, take, dtypes = beside(stage, export)
    sizes, other = {name: slot.size for name, slot in places.items()}, export.other_vision
    kept = {} if other is None or other.described is not None else other.tensors
    for name, tensor in kept.items():
        sizes[name] = math.prod(tensor.shape)
        is_float = tensor.dtype in FLOAT_TYPES.values()
        dtypes[name] = tensor.dtype if is_float else str(tensor.read().dtype)

    def fetch(name: str) -> np.ndarray:
        return kept[name].read() if name in kept else take(name)

    writing.write_weights(stage, sizes, dtypes, fetch, export.shard_bytes)


save = writing.saver(write)


def _beside_whole(stage: Path, export: writing.Export) -> tuple[dict, Callable, dict[str, str]]:
    """Writes what stands beside a whole model's weights; they as slots, getter and types."""
    config, base, other = export.config, export.base, export.other_vision
    is_kept = other is not None and other.described is None  # whose words are those of the base
    if base is None or not is_kept:
        configs.require_words(config)
    if base is not None and read_config(base) != config:
        raise CheckpointError(f"{base}/config.json does not describe the model to be saved")
    places, take = parameters.export_tensors(export.params, config, keys_of(config))
    dtypes = dict.fromkeys(places, export.dtype or "float32")
    if export.dtype is None and base is not None and find_weights(base):
        stored = _without_buffers(open_weights(base))
        if any(tensor.dtype != "float32" for tensor in stored.values()) and all(
            parameters.fits(tensor := stored.get(name), slot)
            and tensor.dtype in writing.DTYPES
            and np.array_equal(tensor.read().reshape(slot.shape), take(name))
            for name, slot in places.items()
        ):
            dtypes = {name: stored[name].dtype for name in places}
    kinds = set(dtypes.values())
    write_config(stage, export, kinds.pop() if len(kinds) == 1 else "float32")
    return places, take, dtypes


def _beside_tower(stage: Path, export: writing.Export) -> tuple[dict, Callable, dict[str, str]]:
    """The same of one tower."""
    config, base, dtype = export.config, export.base, export.dtype or "float32"
    tower, projected = ARCHITECTURES[export.architecture]
    described = config  # by a text tower alone the vision tower need not be known
    if tower is TEXT and config.vision is None and not isinstance(config, SigLIPConfig):
        described = dataclasses.replace(config, vision=VisionConfig())
    parameters.require_clip(described, export.architecture)
    section = configs.config_dict(described, dtype)[f"{tower.name}_config"]
    keys = (tower.projection, *tower.keys) if projected else tower.keys
    places, take = parameters.export_tensors(export.params, config, keys)
    if section["model_type"] != tower.model_type and tower is TEXT:
        raise CheckpointError(
            f"a {export.architecture} reads an end token of 2 as the largest token id, and this "
            "model ends its texts with token 2: export the whole model"
        )
    described = {"architectures": [export.architecture], "torch_dtype": dtype}
    described |= section | {"model_type": tower.model_type}
    writing.write_json(stage / "config.json", described)
    if tower is VISION:
        preprocessor = export.preprocessor or configs.preprocessor_of(base, config)
        images = configs.preprocessor_dict(config, preprocessor)
        writing.write_json(stage / "preprocessor_config.json", images)
    elif source := export.tokenizer or (base and configs.tokenizer_beside(base)):
        configs.write_tokenizer(source, stage, config)
    return places, take, dict.fromkeys(places, dtype)
