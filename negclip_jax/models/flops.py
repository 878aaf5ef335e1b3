"""Floating-point operations of CLIP, counted from its sizes: matrix products only.

A multiplication and an addition are two operations. Counted is what the model is defined to do on
real tokens (Chowdhery et al., 2022, https://arxiv.org/abs/2204.02311, appendix B): padding, and
work that a program does twice, are no use to anyone and count nothing. A backward pass takes twice
the products of the forward pass, one for the inputs and one for the weights.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float64, Int

from negclip_jax.models.clip import CLIPConfig, TextConfig, TowerConfig

BACKWARD = 2


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """Counts the operations of training steps, for the speed that is reported."""

    config: CLIPConfig
    trains_text: bool  # whether anything of the tower is, which costs its backward pass
    trains_vision: bool

    @classmethod
    def of(cls, config: CLIPConfig, trainable: Mapping[str, Any]) -> "StepFlops":
        """`trainable` is a tree of booleans (one an array's layer) over the parameters."""

        def any_of(*names: str) -> bool:
            leaves = jax.tree.leaves([trainable[name] for name in names if name in trainable])
            return any(bool(np.any(leaf)) for leaf in leaves)

        return cls(config, any_of("text", "text_projection"), any_of("vision", "visual_projection"))

    def __call__(self, batch: Mapping[str, Any]) -> float:
        """FLOPs of a batch of the loader's, in host memory; cached image features cost nothing."""
        config, text = self.config, batch["text"]
        if isinstance(text, dict):  # packed: positions restart in each caption
            rows, captions = np.nonzero(text["ends"])
            lengths = text["positions"][rows, text["ends"][rows, captions]] + 1
        else:  # padded: zeros follow the end token, which is never 0
            lengths = text.shape[1] - np.argmax(text[:, ::-1] != 0, axis=1)
        forward = text_forward(config.text, config.projection_dim, lengths)
        total = forward * (1 + BACKWARD * self.trains_text)
        if "image" in batch:
            images = len(batch["image"]) * vision_forward(config)
            total += images * (1 + BACKWARD * self.trains_vision)
        return total


def text_forward(config: TextConfig, projection: int, lengths: Int[np.ndarray, " N"]) -> float:
    """One forward pass of N captions with these numbers of tokens."""
    n = lengths.astype(np.float64)
    attended = _attended(config, n)
    return config.layers * (
        _dense(config) * n.sum() + 4 * config.width * attended
    ) + 2 * config.width * projection * len(n)


def text_forward_read(config: TextConfig, projection: int, lengths: Int[np.ndarray, " N"]) -> float:
    """The same less what is never read: queries and MLP of the last block before the end token."""
    n = lengths.astype(np.float64)
    width = config.width
    without_last = text_forward(config, projection, lengths) - (
        _dense(config) * n.sum() + 4 * width * _attended(config, n)
    )
    keys_and_values = 4 * width**2 * n.sum()
    at_ends = (_dense(config) - 4 * width**2) * len(n) + 4 * width * n.sum()
    return without_last + keys_and_values + at_ends


def _attended(config: TextConfig, n: Float64[np.ndarray, " N"]) -> float:
    """Pairs of tokens of which one attends to the other: of a causal model, those before it."""
    return float((n * (n + 1) / 2 if config.causal else n**2).sum())


def vision_forward(config: CLIPConfig) -> float:
    """One forward pass of one image."""
    vision = config.vision
    n = vision.positions
    patches = 2 * (n - 1) * 3 * vision.patch_size**2 * vision.width
    blocks = vision.layers * (_dense(vision) * n + 4 * vision.width * n**2)
    return patches + blocks + 2 * vision.width * config.projection_dim


def contrastive_forward(batch: int, dim: int) -> float:
    """The logits of a batch."""
    return 2.0 * batch**2 * dim


def _dense(config: TowerConfig) -> float:
    """Of one block and token: query, key, value and output projection, and the MLP."""
    return 8 * config.width**2 + 4 * config.width * config.mlp_width
