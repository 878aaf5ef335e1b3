"""The text tower as Stable Diffusion pipelines hold it: `text_encoder/` and `tokenizer/`.

Stable Diffusion 1.x and the first encoder of SDXL are the text tower of ViT-L/14 (768 wide), the
second encoder of SDXL is that of ViT-bigG/14 (1280 wide, with its projection). The U-Net's
attention is built for that width. All 77 states of the tower are used, padding included, of which
contrastive fine-tuning supervises the one at the end token: look at pictures, not only at scores.
"""

import dataclasses
from pathlib import Path

from negclip_jax.interop import huggingface, writing
from negclip_jax.interop.config import tokenizer_beside, write_tokenizer
from negclip_jax.models.clip import CLIPConfig

ENCODER, TOKENIZER = "text_encoder", "tokenizer"
# CLIPTextModel reads it too, and leaves the projection aside.
ARCHITECTURE = "CLIPTextModelWithProjection"


def fitting_pipelines(config: CLIPConfig) -> str:
    """Which published pipelines take a text tower of this width."""
    width = config.text.width
    if width == 768:
        return "768 wide: fits Stable Diffusion 1.x, and SDXL as its first text encoder"
    if width == 1280:
        return "1280 wide: fits SDXL as its second text encoder"
    return (
        f"{width} wide: fits neither Stable Diffusion 1.x (768) nor SDXL (768 and 1280), whose "
        "U-Net would fail at its first attention"
    )


def usage(config: CLIPConfig) -> str:
    """Code that puts the exported encoder into a pipeline, with `{out}` for the directory."""
    pipeline, encoder, argument = "StableDiffusionPipeline", "CLIPTextModel", "text_encoder"
    repository = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    if config.text.width == 1280:
        pipeline, encoder = "StableDiffusionXLPipeline", "CLIPTextModelWithProjection"
        argument, repository = "text_encoder_2", "stabilityai/stable-diffusion-xl-base-1.0"
    return (
        f"from diffusers import {pipeline}; from transformers import {encoder}\n"
        f'encoder = {encoder}.from_pretrained("{{out}}/{ENCODER}")\n'
        f'pipeline = {pipeline}.from_pretrained("{repository}", {argument}=encoder)'
    )


def write(stage: Path, export: writing.Export) -> None:
    """Writes a directory with `text_encoder/` and, where one is known, `tokenizer/`.

    The weights are float32 by default; a preprocessor is of no use here: pictures are made, not
    read.
    """
    alone = {"architecture": ARCHITECTURE, "base": None, "tokenizer": None}
    (stage / ENCODER).mkdir()
    huggingface.write(stage / ENCODER, dataclasses.replace(export, **alone))
    if source := export.tokenizer or (export.base and tokenizer_beside(export.base)):
        (stage / TOKENIZER).mkdir()
        write_tokenizer(source, stage / TOKENIZER, export.config)


save = writing.saver(write)
