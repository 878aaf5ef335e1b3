"""Stable Diffusion pipelines of a few thousand random weights, as diffusers saves them."""

from pathlib import Path

import diffusers
import torch
import transformers

VAE_SCALE = 8
WIDTHS = {"text_encoder": 32, "text_encoder_2": 48}


def write_pipeline(out: Path, vocabulary: Path, *, xl: bool = False) -> Path:
    """Writes a Stable Diffusion 1.x or, with `xl`, an SDXL pipeline into `out`.

    The first text encoder has the sizes of conftest's `tiny_config`, the second is wider, uses gelu
    and has a projection.
    """
    tokenizer = transformers.CLIPTokenizer.from_pretrained(vocabulary, model_max_length=24)
    parts = {
        "vae": _vae(),
        "unet": _unet(xl),
        "scheduler": diffusers.DDIMScheduler(
            beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
        "tokenizer": tokenizer,
        "text_encoder": text_encoder(),
    }
    if xl:
        parts |= {"tokenizer_2": tokenizer, "text_encoder_2": text_encoder_2()}
        pipeline = diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False)
    else:
        pipeline = diffusers.StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipeline.save_pretrained(out)
    return out


def text_encoder(seed: int = 0, **changes) -> transformers.CLIPTextModel:
    config = _text_config(32, 2, "quick_gelu", 512, changes)
    return _shaken(transformers.CLIPTextModel(config), seed)


def text_encoder_2(seed: int = 1, **changes) -> transformers.CLIPTextModelWithProjection:
    config = _text_config(48, 3, "gelu", 28, changes)
    return _shaken(transformers.CLIPTextModelWithProjection(config), seed)


def _shaken(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights large enough for different prompts to give different pictures."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        torch.nn.init.normal_(parameter, centre, 0.2)
    return model.eval()


def _text_config(
    width: int, heads: int, activation: str, projection: int, changes: dict
) -> transformers.CLIPTextConfig:
    sizes = {
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_hidden_layers": 2,
        "intermediate_size": 2 * width,
        "vocab_size": 600,
        "max_position_embeddings": 24,
        "hidden_act": activation,
        "projection_dim": projection,
        "bos_token_id": 598,
        "eos_token_id": 599,
        "pad_token_id": 599,
    }
    return transformers.CLIPTextConfig(**sizes | changes)


def _unet(xl: bool) -> diffusers.UNet2DConditionModel:
    torch.manual_seed(2)
    sizes = {
        "sample_size": 4,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "cross_attention_dim": WIDTHS["text_encoder"],
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    if xl:
        sizes |= {
            "cross_attention_dim": sum(WIDTHS.values()),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 28,
        }
    return diffusers.UNet2DConditionModel(**sizes).eval()


def _vae() -> diffusers.AutoencoderKL:
    torch.manual_seed(3)
    return diffusers.AutoencoderKL(
        block_out_channels=(4,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
        latent_channels=4,
        sample_size=32,
    ).eval()
