"""Tiny transformers CLIPs with random weights: the reference that interop is tested against."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import torch
import transformers
from flax import nnx
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, SiglipModel

from negclip_jax.interop import huggingface
from negclip_jax.models import clip

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 99,
    "max_position_embeddings": 12,
    "bos_token_id": 96,
    "eos_token_id": 97,
}
VISION = {
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "image_size": 16,
    "patch_size": 4,
}

# What OpenAI's code can run: heads of 64, a fourfold MLP, the end token is the largest id.
OPENAI_TEXT = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 1}
OPENAI_TEXT |= {"vocab_size": 98}
OPENAI_VISION = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 2}


def torch_clip(text=(), vision=(), *, std=0.2, projection_dim=24) -> CLIPModel:
    """A CLIPModel whose weights are normal with `std`, biases and LayerNorms included."""
    config = transformers.CLIPConfig(
        text_config=TEXT | {"projection_dim": projection_dim} | dict(text),
        vision_config=VISION | {"projection_dim": projection_dim} | dict(vision),
        projection_dim=projection_dim,
    )
    torch.manual_seed(0)
    model = CLIPModel(config).eval()
    for name, parameter in model.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        if parameter.ndim:
            torch.nn.init.normal_(parameter, centre, std)
    return model


SIGLIP_TEXT = {name: value for name, value in TEXT.items() if not name.endswith("_token_id")}
SIGLIP_TEXT |= {"projection_size": 40}


def torch_siglip(text=(), vision=()) -> SiglipModel:
    """A SiglipModel whose weights are normal, biases and LayerNorms included."""
    config = transformers.SiglipConfig(
        text_config=SIGLIP_TEXT | dict(text), vision_config=VISION | dict(vision)
    )
    torch.manual_seed(0)
    model = SiglipModel(config).eval()
    for name, parameter in model.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        torch.nn.init.normal_(parameter, centre, 0.2)
    return model


def saved(path: Path, model: CLIPModel | None = None, **kwargs) -> Path:
    """Saves `model` (default: `torch_clip()`) as transformers does, and returns the directory."""
    (model or torch_clip()).save_pretrained(path, **kwargs)
    return path


def edit_config(directory: Path, **changes) -> None:
    """Sets top-level values of config.json."""
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(directory: Path, edit) -> None:
    """Applies `edit(dict of tensors)`, which changes it in place, to model.safetensors."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def inputs(config: clip.CLIPConfig, *, length: int | None = None, rows: int = 5):
    """Pixels and ids with end tokens at several places; the last row has two of them."""
    rng = np.random.default_rng(0)
    length, size = length or config.text.context_length, config.vision.image_size
    ids = rng.integers(3, 96, (rows, length))
    ends = np.linspace(1, length - 1, rows).astype(int)
    ids[np.arange(rows), ends] = 97
    ids[-1, length // 2] = 97
    return rng.standard_normal((rows, size, size, 3)).astype(np.float32), ids


def torch_features(model: CLIPModel, pixels, ids) -> tuple[np.ndarray, np.ndarray]:
    """Projected features of transformers, which returns tensors in 4.x and outputs in 5.x."""
    with torch.no_grad():
        image = model.get_image_features(torch.tensor(pixels).permute(0, 3, 1, 2))
        text = model.get_text_features(torch.tensor(ids))
    return tuple(getattr(x, "pooler_output", x).float().numpy() for x in (image, text))


def our_features(config: clip.CLIPConfig, params, pixels, ids) -> tuple[np.ndarray, np.ndarray]:
    """The same of our model."""
    return our_images(config, params, pixels), our_texts(config, params, ids)


def our_images(config: clip.CLIPConfig, params, pixels) -> np.ndarray:
    """Projected image features."""
    text = type(config.text)(width=8, heads=1, mlp_width=8, layers=1, projection="linear")
    return _features(dataclasses.replace(config, text=text), "encode_image", params, pixels)


def our_texts(config: clip.CLIPConfig, params, ids) -> np.ndarray:
    """Projected text features."""
    return _features(dataclasses.replace(config, vision=None), "encode_text", params, ids)


def _features(config: clip.CLIPConfig, method: str, params, x) -> np.ndarray:
    """Of one tower, because compiling is what takes time here.

    The other one in `config` is always the same, so that models that differ in it alone share a
    program. It is not run, and its parameters are zeros.
    """
    graphdef, shapes = clip.abstract(dataclasses.replace(config, logit_scale_init=0.0))
    own = (
        ("text", "text_projection") if method == "encode_text" else ("vision", "visual_projection")
    )
    params = {
        name: params[name]
        if name in own
        else jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shape)
        for name, shape in shapes.items()
    }
    return np.asarray(_encode(graphdef, method, params, x))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(graphdef, method, params, x):
    return getattr(nnx.merge(graphdef, params), method)(x)


def load(directory: Path):
    """`(config, params)` of a directory."""
    config = huggingface.read_config(directory)
    return config, huggingface.load_params(directory, config)


def difference(ours, theirs) -> float:
    """Greatest difference between two arrays, or over both towers."""
    if isinstance(ours, tuple):
        return max(difference(a, b) for a, b in zip(ours, theirs, strict=True))
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max())


def torch_logits(model: CLIPModel, pixels, ids) -> np.ndarray:
    """transformers' logits, float32 `[images, texts]`."""
    with torch.no_grad():
        images = torch.tensor(pixels).permute(0, 3, 1, 2)
        return model(input_ids=torch.tensor(ids), pixel_values=images).logits_per_image.numpy()


def assert_equal_params(ours, expected) -> None:
    """Two parameter trees are bit-equal."""
    jax.tree.map(np.testing.assert_array_equal, ours, expected)
