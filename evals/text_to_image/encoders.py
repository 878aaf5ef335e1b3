"""Which text encoder of a pipeline a tower can replace, and the tower as such an encoder."""

import dataclasses
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from negclip_jax.common.errors import InputError
from negclip_jax.interop import huggingface
from negclip_jax.interop.config import text_config
from negclip_jax.interop.files import read_json
from negclip_jax.interop.readers import Checkpoint, CheckpointInfo, read_any
from negclip_jax.models.clip import CLIPConfig, TextConfig
from negclip_jax.models.siglip import SigLIPConfig

_PROJECTED = "CLIPTextModelWithProjection"
# Class of the pipeline: its text encoders, their tokenizers, what the U-Net reads of each.
_PIPELINES = {
    "StableDiffusionPipeline": {
        "text_encoder": ("tokenizer", "states of all positions after the final LayerNorm")
    },
    "StableDiffusionXLPipeline": {
        "text_encoder": ("tokenizer", "states of all positions before the last block"),
        "text_encoder_2": (
            "tokenizer_2",
            "states of all positions before the last block, and the projected end token",
        ),
    },
}
# The end token's rule is the pipeline's, so that it may differ.
_COMPARED = {
    "layers": "{} layers",
    "heads": "{} heads",
    "mlp_width": "MLPs {} wide",
    "vocab_size": "{} tokens",
    "context_length": "{} positions",
    "hidden_act": "the activation {}",
    "layer_norm_eps": "epsilon {:g} in LayerNorm",
}


@dataclasses.dataclass(frozen=True)
class Slot:
    """A text encoder's place in a pipeline."""

    name: str  # "text_encoder" or "text_encoder_2"
    tokenizer: str  # name of the tokenizer that feeds it
    architecture: str  # its class in transformers
    config: TextConfig  # its sizes
    projection_dim: int | None  # of its projected state; None where it has none
    states: str  # what the U-Net reads of it, for messages


def read_slots(directory: Path) -> tuple[str, list[Slot], int]:
    """Class of a pipeline, its text encoders, and the width of the states that its U-Net reads.

    Raises InputError where the directory holds no Stable Diffusion 1.x or SDXL pipeline.
    """
    index = directory / "model_index.json"
    if not index.is_file():
        raise InputError(
            f"{directory} has no model_index.json: --pipeline is the directory of a diffusers "
            "pipeline (Stable Diffusion 1.x or SDXL), as its save_pretrained or a "
            "download writes it"
        )
    raw = read_json(index)
    kind = raw.get("_class_name")
    if kind not in _PIPELINES:
        raise InputError(
            f"{index}: the pipeline is a {kind}; text encoders are replaced in "
            f"{' and '.join(_PIPELINES)}"
        )
    slots = []
    for name, (tokenizer, states) in _PIPELINES[kind].items():
        classes = raw.get(name, [None])
        if name == "text_encoder" and classes[0] is None:
            continue
        architecture = classes[1] if isinstance(classes, list) and len(classes) == 2 else None
        wanted = (_PROJECTED,) if name == "text_encoder_2" else ("CLIPTextModel", _PROJECTED)
        if architecture not in wanted:
            raise InputError(f"{index}: {name} is a {architecture}, not a {wanted[0]}")
        path = directory / name / "config.json"
        own = read_json(path)
        try:
            config = text_config(own)
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error
        projection = own.get("projection_dim", 512) if architecture == _PROJECTED else None
        slots.append(Slot(name, tokenizer, architecture, config, projection, states))
    width = read_json(directory / "unet" / "config.json").get("cross_attention_dim")
    together = sum(slot.config.width for slot in slots)
    if width != together:  # the first attention would fail, with any text encoder
        raise InputError(
            f"{directory}: the U-Net reads states of width {width} (cross_attention_dim in "
            f"unet/config.json), and the pipeline's own text encoders give {together}: its parts "
            "do not belong together"
        )
    return kind, slots, width


def read_tower(model: str, activation: str | None = None) -> Checkpoint:
    """The model whose text tower is used, from whatever `interop.readers.read_any` reads.

    `+ema` behind it asks for a run's moving average; a directory of a CLIPTextModel alone and an
    export with `--layout=diffusers` are read as well. Raises InputError.
    """
    return read_any(
        model.removesuffix("+ema"),
        ema=model.endswith("+ema"),
        activation=activation,
        tower_class="CLIPTextModel",
    )


def fitting_slot(
    slots: list[Slot],
    config: CLIPConfig,
    info: CheckpointInfo,
    *,
    base: str,
    unet_width: int,
    wanted: str = "",
) -> Slot:
    """The encoder that a model's text tower replaces: the first of its architecture.

    `base` names the pipeline in messages, `wanted` is a slot's name or "" for any. Raises
    InputError that says how the tower differs from every encoder.
    """
    if isinstance(config, SigLIPConfig):
        raise InputError(f"{info.label} is a SigLIP; the text encoders of {base} are CLIP's")
    known = [slot.name for slot in slots]
    if wanted and wanted not in known:
        raise InputError(f"--encoder={wanted}: {base} has {' and '.join(known)}")
    candidates = [slot for slot in slots if wanted in ("", slot.name)]
    of_width = [slot for slot in candidates if slot.config.width == config.text.width]
    if not of_width:
        widths = " and ".join(f"{slot.config.width} ({slot.name})" for slot in candidates)
        raise InputError(
            f"the text tower of {info.label} is {config.text.width} wide and does not fit {base}, "
            f"whose U-Net reads states of width {unet_width} from encoders of width {widths}. "
            "Stable Diffusion 1.x takes the tower of ViT-L/14 (768), SDXL that and the one of "
            "ViT-bigG/14 (1280)"
        )
    different = []
    for slot in of_width:
        pairs = [
            (words.format(getattr(slot.config, field)), words.format(getattr(config.text, field)))
            for field, words in _COMPARED.items()
            if getattr(slot.config, field) != getattr(config.text, field)
        ]
        if not pairs and slot.projection_dim not in (None, config.projection_dim):
            pairs = [(f"a projection to {slot.projection_dim}", f"one to {config.projection_dim}")]
        if not pairs:
            return slot
        theirs, ours = pairs[0]
        source = f" ({info.activation_source})" if "activation" in ours else ""
        different.append(f"{slot.name} has {theirs}, the tower {ours}{source}")
    raise InputError(f"the text tower of {info.label} does not fit {base}: {'; '.join(different)}")


def build(
    transformers: ModuleType, slot: Slot, config: CLIPConfig, params: dict[str, Any], dtype: Any
) -> Any:
    """A model's text tower as the slot's class of transformers, in PyTorch's `dtype`."""
    # The end token is found by the pipeline's rule, with the pipeline's tokenizer.
    rule = {"eos_token_id": slot.config.eos_token_id, "pooling": slot.config.pooling}
    text = dataclasses.replace(config.text, **rule)
    config = dataclasses.replace(config, text=text)
    # Through a file: the names of the tensors change from version to version of transformers, and
    # from files alone it reads all of them.
    with tempfile.TemporaryDirectory(prefix="text-encoder-") as folder:
        huggingface.save(folder, config, params, architecture=slot.architecture)
        encoder, loading = getattr(transformers, slot.architecture).from_pretrained(
            folder, dtype=dtype, output_loading_info=True
        )
    if loading["missing_keys"]:
        raise InputError(
            f"this version of transformers does not find {len(loading['missing_keys'])} of the "
            f"text encoder's tensors ({min(loading['missing_keys'])}): install another"
        )
    return encoder.eval()
