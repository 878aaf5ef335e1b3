"""Hugging Face directories of one tower: CLIPTextModel, CLIPTextModelWithProjection, and so on.

    config, params = merge_tower("someones/text_encoder", config, params)
    save_tower("text_encoder", config, params, architecture="CLIPTextModelWithProjection")

A text encoder is what other software takes out of a CLIP: Stable Diffusion holds a CLIPTextModel.
Names always keep the prefix `text_model.`: a CLIPTextModel that transformers 5.6 or later saves
afresh has none, and older versions read such a file as a random encoder without an error. Both
kinds are read.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from negclip_jax.interop import huggingface, writing
from negclip_jax.interop.config import (
    config_dict,
    preprocessor_dict,
    preprocessor_of,
    text_config,
    tokenizer_beside,
    vision_config,
    write_tokenizer,
)
from negclip_jax.interop.files import CheckpointError, StoredTensor, read_json
from negclip_jax.interop.parameters import (
    Key,
    expected_shapes,
    export_tensors,
    read_params,
    require_clip,
)
from negclip_jax.interop.tensors import open_weights
from negclip_jax.models.clip import CLIPConfig, TextConfig, VisionConfig


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


TEXT = Tower("clip_text_model", "text", huggingface.TEXT_KEYS, huggingface.TEXT_PROJECTION)
VISION = Tower(
    "clip_vision_model", "vision", huggingface.VISION_KEYS, huggingface.VISUAL_PROJECTION
)
# Class of transformers: its tower, and whether the projection goes along.
ARCHITECTURES = {
    "CLIPTextModel": (TEXT, False),
    "CLIPTextModelWithProjection": (TEXT, True),
    "CLIPVisionModel": (VISION, False),
    "CLIPVisionModelWithProjection": (VISION, True),
}
_PROJECTED = "WithProjection"
_SMALLEST_TEXT = TextConfig(width=1, layers=1, heads=1, mlp_width=1, vocab_size=1, context_length=1)
_SMALLEST_VISION = VisionConfig(width=1, layers=1, heads=1, mlp_width=1, image_size=1, patch_size=1)
_ADVICE = (
    "The weights must be those of one tower of a transformers CLIP and belong to the config.json "
    "beside them."
)


def is_tower(directory: Path) -> bool:
    """Whether a directory's config.json is that of one tower."""
    return (directory / "config.json").is_file() and _tower_of(directory) is not None


def _tower_of(directory: Path) -> Tower | None:
    kind = read_json(directory / "config.json").get("model_type")
    return next((tower for tower in (TEXT, VISION) if tower.model_type == kind), None)


def merge_tower(
    directory: Path | str, config: CLIPConfig, params: dict[str, Any]
) -> tuple[CLIPConfig, dict[str, Any]]:
    """A model with the tower that `directory` holds in the place of its own.

    Args:
      directory: of a CLIPTextModel or CLIPVisionModel, with its projection or without. Without,
        the model's own projection stays, and the tower must be as wide as the one it replaces.
      config, params: the model.

    Returns:
      Configuration and parameters; `params` itself stays as it was.

    Raises:
      CheckpointError: no tower there, or one whose features do not fit the model.
    """
    directory = Path(directory)
    path = directory / "config.json"
    tower, raw = _tower_of(directory), read_json(path)
    if tower is None:
        raise CheckpointError(f"{path}: model_type is {raw.get('model_type')!r}, not of one tower")
    section = _section(directory, tower, raw)
    merged = dataclasses.replace(config, **{tower.name: section})
    # Names as in a full CLIPModel, whichever version of transformers wrote them.
    prefix, own = f"{tower.name}_model.", (tower.projection.name, *huggingface.BUFFERS)
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
    stored = {name: t for name, t in stored.items() if name not in huggingface.BUFFERS}
    keys = (tower.projection, *tower.keys) if tower.projection.name in stored else tower.keys
    part = read_params(stored, keys, config, where=where, authority="the model", advice=_ADVICE)
    flat = traverse_util.flatten_dict(params) | traverse_util.flatten_dict(part)
    return traverse_util.unflatten_dict(flat)


def load_alone(directory: Path | str, architecture: str = "") -> tuple[CLIPConfig, dict[str, Any]]:
    """A tower's directory as a model whose other half is zeros of the smallest size.

    A projection that the directory lacks is zeros as well, unless a class (a key of
    `ARCHITECTURES`) is asked for that holds it.

    Raises:
      CheckpointError: see `merge_tower`; or the directory lacks what the class is made of.
    """
    directory = Path(directory)
    raw, tower = read_json(directory / "config.json"), _tower_of(directory)
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
            f"{architecture.removesuffix(_PROJECTED)}"
        )
    sections = {"text": _SMALLEST_TEXT, "vision": _SMALLEST_VISION}
    if tower is not None:
        # Only the width matters, which an absent projection must fit.
        own = _section(directory, tower, raw)
        sections = {
            name: dataclasses.replace(section, hidden_act=own.hidden_act)
            for name, section in sections.items()
        }
        sections[tower.name] = own
    try:
        config = CLIPConfig(**sections, projection_dim=raw.get("projection_dim", 512))
    except ValueError as error:
        raise CheckpointError(f"{directory / 'config.json'}: {error}") from error
    zeros = {path: np.zeros(shape, np.float32) for path, shape in expected_shapes(config).items()}
    return merge_tower(directory, config, traverse_util.unflatten_dict(zeros, sep="/"))


def _section(directory: Path, tower: Tower, raw: dict[str, Any]) -> TextConfig | VisionConfig:
    try:
        return text_config(raw) if tower is TEXT else vision_config(raw)
    except ValueError as error:
        raise CheckpointError(f"{directory / 'config.json'}: {error}") from error


@writing.layout_writer
def save_tower(
    stage: Path,
    export: writing.Export,
    *,
    architecture: str,
    shard_bytes: int = writing.SHARD_BYTES,
) -> None:
    """Writes a directory for `from_pretrained` of one of `ARCHITECTURES`.

    Beside the weights, float32 by default, stand config.json and the tokenizer of a text tower, or
    the preprocessor of a vision tower, taken from the base.

    `shard_bytes` is the greatest size of one weight file. Other arguments and errors are those of
    `writing.layout_writer`; an unknown architecture is refused.
    """
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise CheckpointError(f"architecture {architecture!r} is not one of {known}")
    config, base = export.config, export.base
    write_tower(stage, export, architecture, shard_bytes)
    if ARCHITECTURES[architecture][0] is VISION:
        images = preprocessor_dict(config, export.preprocessor or preprocessor_of(base, config))
        writing.write_json(stage / "preprocessor_config.json", images)
    elif source := export.tokenizer or (base and tokenizer_beside(base)):
        write_tokenizer(source, stage, config)


def write_tower(
    directory: Path,
    export: writing.Export,
    architecture: str,
    shard_bytes: int = writing.SHARD_BYTES,
) -> None:
    """Writes config.json and weights of one tower into a directory that exists.

    Raises:
      CheckpointError: parameters that do not fit or are not finite.
    """
    config, dtype = export.config, export.dtype or "float32"
    require_clip(config, architecture)
    tower, projected = ARCHITECTURES[architecture]
    keys = (tower.projection, *tower.keys) if projected else tower.keys
    places, take = export_tensors(export.params, config, keys)
    section = config_dict(config, dtype)[f"{tower.name}_config"]
    if section["model_type"] != tower.model_type and tower is TEXT:
        raise CheckpointError(
            f"a {architecture} reads an end token of 2 as the largest token id, and this model "
            "ends its texts with token 2: export the whole model"
        )
    described = {"architectures": [architecture], "torch_dtype": dtype}
    described |= section | {"model_type": tower.model_type}
    writing.write_json(directory / "config.json", described)
    sizes = {name: slot.size for name, slot in places.items()}
    dtypes = dict.fromkeys(places, dtype)
    writing.write_weights(directory, sizes, dtypes, take, shard_bytes=shard_bytes)
