"""negclip_jax: teach CLIP the word "no", in JAX, from and to Hugging Face weights.

    from negclip_jax import CLIP
    model = CLIP.from_pretrained("openai/clip-vit-base-patch32")
    scores = model.similarity(images, ["a street with no cars"])

Names are imported on first use, so that tools which need no JAX (data generation, `--help`)
do not pay for it.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from negclip_jax.models.clip import CLIPConfig
    from negclip_jax.pretrained import CLIP

_HOMES = {"CLIP": "negclip_jax.pretrained", "CLIPConfig": "negclip_jax.models.clip"}
__all__ = ["CLIP", "CLIPConfig"]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
