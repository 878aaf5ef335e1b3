"""The floating-point operations of training steps, for the speed that is reported."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from negclip_jax.models import flops
from negclip_jax.models.clip import CLIPConfig


@dataclasses.dataclass(frozen=True)
class StepWork:
    """Counts a batch's operations on real tokens, see `models.flops`.

    Attributes:
      config: sizes of the model.
      trains_text, trains_vision: whether anything of a tower is trained, which costs its backward
        pass.
    """

    config: CLIPConfig
    trains_text: bool
    trains_vision: bool

    @classmethod
    def of(cls, config: CLIPConfig, trainable: Mapping[str, Any]) -> "StepWork":
        """`trainable` is a tree of booleans (one an array's layer) over the parameters."""

        def any_of(*names: str) -> bool:
            leaves = jax.tree.leaves([trainable[name] for name in names if name in trainable])
            return any(bool(np.any(leaf)) for leaf in leaves)

        return cls(config, any_of("text", "text_projection"), any_of("vision", "visual_projection"))

    def __call__(self, batch: Mapping[str, Any]) -> float:
        """FLOPs of a batch of the loader's, in host memory; cached image features cost nothing."""
        config = self.config
        text = flops.text_forward(config.text, config.projection_dim, self._lengths(batch["text"]))
        total = text * (1 + flops.BACKWARD * self.trains_text)
        if "image" in batch:
            images = len(batch["image"]) * flops.vision_forward(config)
            total += images * (1 + flops.BACKWARD * self.trains_vision)
        return total

    def _lengths(self, text: Any) -> np.ndarray:
        """Tokens of each caption, int64 `[N]`."""
        if isinstance(text, dict):  # positions restart in each caption, and 0 fills what is left
            rows, slots = np.nonzero(text["ends"])
            return text["positions"][rows, text["ends"][rows, slots]] + 1
        filled = text[:, ::-1] != 0  # zeros follow the end token, which is never 0
        return text.shape[1] - np.argmax(filled, axis=1)
