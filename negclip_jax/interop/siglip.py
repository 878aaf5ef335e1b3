"""SigLIP in Hugging Face's layout: its key table and its `config.json`, both ways.

Files are opened, checked and written by `huggingface.py`, as for CLIP. SigLIP 2 of fixed
resolution has the same architecture and the same `model_type`, "siglip"; of its differences, in
tokenizer and resampling, the model knows nothing.
"""

from pathlib import Path
from typing import Any

from negclip_jax.data.images import Preprocessor
from negclip_jax.interop.files import CheckpointError
from negclip_jax.interop.json_fields import fields
from negclip_jax.interop.key_table import CONV, LINEAR, Key, encoder_blocks, linear, norm
from negclip_jax.models.siglip import SigLIPConfig, SigLIPTextConfig, SigLIPVisionConfig

MODEL_TYPE = "siglip"
_ATTENTION = tuple(f"vision/head/attn/{name}" for name in ("query", "key", "value"))
KEYS = (
    # Vectors of one element, where CLIP has a scalar.
    Key("logit_scale", "logit_scale", shape=(1,)),
    Key("logit_bias", "logit_bias", shape=(1,)),
    Key("text_model.embeddings.token_embedding.weight", "text/token_embedding"),
    Key("text_model.embeddings.position_embedding.weight", "text/position_embedding"),
    *encoder_blocks("text_model", "text"),
    *norm("text_model.final_layer_norm", "text/ln_final"),
    *linear("text_model.head", "text_projection"),
    Key("vision_model.embeddings.patch_embedding.weight", "vision/patch_embedding", CONV),
    Key("vision_model.embeddings.patch_embedding.bias", "vision/patch_bias"),
    Key("vision_model.embeddings.position_embedding.weight", "vision/position_embedding"),
    *encoder_blocks("vision_model", "vision"),
    *norm("vision_model.post_layernorm", "vision/ln_post"),
    Key("vision_model.head.probe", "vision/head/probe"),
    Key(
        "vision_model.head.attention.in_proj_weight",
        tuple(f"{path}/kernel" for path in _ATTENTION),
        LINEAR,
    ),
    Key("vision_model.head.attention.in_proj_bias", tuple(f"{path}/bias" for path in _ATTENTION)),
    *linear("vision_model.head.attention.out_proj", "vision/head/attn/out"),
    *norm("vision_model.head.layernorm", "vision/head/ln"),
    *linear("vision_model.head.mlp.fc1", "vision/head/mlp/fc1"),
    *linear("vision_model.head.mlp.fc2", "vision/head/mlp/fc2"),
)

_TOWER_KEYS = {
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp_width",
    "hidden_act": "hidden_act",
    "layer_norm_eps": "layer_norm_eps",
}
_TEXT_KEYS = _TOWER_KEYS | {"vocab_size": "vocab_size", "max_position_embeddings": "context_length"}
_VISION_KEYS = _TOWER_KEYS | {"image_size": "image_size", "patch_size": "patch_size"}


def config_of(path: Path, raw: dict[str, Any]) -> SigLIPConfig:
    """The model that a config.json with `model_type` "siglip" describes.

    Args:
      path: of the file, for messages.
      raw: its content.

    Raises:
      CheckpointError: a value of the wrong type, or one that makes another model.
    """
    sections = [raw.get(name) or {} for name in ("text_config", "vision_config")]
    if not all(isinstance(section, dict) for section in sections):
        raise CheckpointError(f"{path}: text_config and vision_config must be objects")
    text, vision = sections
    if not vision.get("vision_use_head", True) or vision.get("num_channels", 3) != 3:
        raise CheckpointError(
            f"{path}: vision_config must have vision_use_head true and num_channels 3"
        )
    try:
        text_config = SigLIPTextConfig(
            **fields(text, _TEXT_KEYS, "text_config.", SigLIPTextConfig())
        )
        vision_config = SigLIPVisionConfig(
            **fields(vision, _VISION_KEYS, "vision_config.", SigLIPVisionConfig())
        )
        # What older versions of transformers do not write: the text tower's own width.
        projection = text.get("projection_size") or text_config.width
        return SigLIPConfig(text=text_config, vision=vision_config, projection_dim=projection)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def config_dict(config: SigLIPConfig, dtype: str) -> dict[str, Any]:
    """A complete `config.json` for a model that was not made from a checkpoint."""
    text = {theirs: getattr(config.text, ours) for theirs, ours in _TEXT_KEYS.items()}
    vision = {theirs: getattr(config.vision, ours) for theirs, ours in _VISION_KEYS.items()}
    text |= {"model_type": "siglip_text_model", "projection_size": config.projection_dim}
    return {
        "architectures": ["SiglipModel"],
        "model_type": MODEL_TYPE,
        "torch_dtype": dtype,
        "initializer_factor": 1.0,
        "text_config": text,
        "vision_config": {"model_type": "siglip_vision_model"} | vision,
    }


def preprocessor_dict(images: Preprocessor) -> dict[str, Any]:
    """A `preprocessor_config.json` that resizes both sides to one size."""
    return {
        "image_processor_type": "SiglipImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": images.size, "width": images.size},
        "resample": {"bilinear": 2, "bicubic": 3}[images.resample],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(images.mean),
        "image_std": list(images.std),
    }
