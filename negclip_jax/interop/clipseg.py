"""The text tower as CLIPSeg holds it.

CLIPSeg (Lueddecke and Ecker, CVPR 2022, arXiv 2112.10003) is a CLIP whose names all begin with
`clip.`, and a decoder. The decoder is steered by the projected, unnormalised text feature, so the
text projection belongs to the tower that is exchanged; vision tower, visual projection and decoder
stay as they are.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from negclip_jax.interop import huggingface
from negclip_jax.interop.config import errors_of, text_config
from negclip_jax.interop.files import CheckpointError, read_json
from negclip_jax.interop.parameters import export_tensors, require_clip
from negclip_jax.models.clip import CLIPConfig

PREFIX = "clip."
POSITIONS = PREFIX + next(
    key.name for key in huggingface.TEXT_KEYS if key.path == "text/position_embedding"
)
TEXT_PREFIXES = (f"{PREFIX}text_model.", f"{PREFIX}text_projection.")
_KEYS = (huggingface.TEXT_PROJECTION, *huggingface.TEXT_KEYS)
# Fields of a text tower and how messages call them, most telling first. All must be CLIPSeg's.
_SIZES = {
    "width": "wide",
    "projection_dim": "numbers after the projection",
    "layers": "blocks",
    "heads": "attention heads",
    "mlp_width": "wide in the MLP",
    "vocab_size": "tokens",
    "context_length": "positions",
    "hidden_act": "activation",
    "layer_norm_eps": "as epsilon of LayerNorm",
}


def read_config(directory: Path | str) -> CLIPConfig:
    """What a CLIPSeg's config.json says of its text tower; the vision tower is left at defaults.

    Raises CheckpointError for no CLIPSeg there, or values that make no text tower.
    """
    path = Path(directory) / "config.json"
    raw = read_json(path)
    if raw.get("model_type") != "clipseg":
        raise CheckpointError(
            f"{path}: model_type is {raw.get('model_type')!r}, not 'clipseg': give a directory of "
            "transformers' CLIPSegForImageSegmentation, such as CIDAS/clipseg-rd64-refined"
        )
    with errors_of(path):
        text = text_config(raw.get("text_config") or {}, "text_config.")
    return CLIPConfig(text=text, projection_dim=raw.get("projection_dim", 512))


def check_fits(clipseg: CLIPConfig, config: CLIPConfig, label: str) -> None:
    """Raises CheckpointError unless a model's text tower has the shape of CLIPSeg's.

    `label` is what the message calls the model.
    """
    require_clip(config, "CLIPSeg")
    wanted, found = (
        dataclasses.asdict(c.text) | {"projection_dim": c.projection_dim} for c in (clipseg, config)
    )
    wrong = [
        f"{found[key]} {what} where CLIPSeg's has {wanted[key]}"
        for key, what in _SIZES.items()
        if found[key] != wanted[key]
    ]
    if wrong:
        raise CheckpointError(
            f"the text tower of {label} does not fit CLIPSeg: it has {', '.join(wrong)}. The "
            "published CLIPSeg takes the text tower of ViT-B/16 (512 wide, 512 numbers after the "
            "projection)"
        )


def text_tensors(config: CLIPConfig, params: dict[str, Any]) -> dict[str, np.ndarray]:
    """A model's text tower and projection, float32, under CLIPSeg's names.

    Raises CheckpointError for parameters that do not fit the configuration or are not finite.
    """
    places, take = export_tensors(params, config, _KEYS)
    return {PREFIX + name: np.array(take(name), np.float32, order="C") for name in places}


def is_related(positions: np.ndarray, params: dict[str, Any]) -> bool:
    """Whether a model's text tower and CLIPSeg's come from one training.

    By the cosine of their position embeddings, float `[T, width]`, of which `positions` are
    CLIPSeg's: near 1 after fine-tuning, near 0 between two trainings. The decoder reads only the
    space of the tower that it was trained with.
    """
    ours = np.asarray(params["text"]["position_embedding"], np.float64)
    norms = np.linalg.norm(positions) * np.linalg.norm(ours)
    return float((positions.astype(np.float64) * ours).sum()) > 0.9 * norms
