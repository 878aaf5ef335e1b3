"""What stands before and behind a tower: pixels to its input, features to unit vectors."""

from collections.abc import Sequence
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float32, UInt8

Rows = TypeVar("Rows", Float[np.ndarray, "*B D"], Float[Array, "*B D"])


def normalise_pixels(
    pixels: UInt8[Array, "*B 3"], mean: Sequence[float], std: Sequence[float]
) -> Float32[Array, "*B 3"]:
    """Bytes to the model's input, `(pixels / 255 - mean) / std`.

    Called under `jax.jit`, so that bytes travel to the device, a quarter of what floats take.
    """
    scaled = pixels.astype(jnp.float32) / 255
    return (scaled - jnp.asarray(mean)) / jnp.asarray(std)


def l2_normalise(features: Rows) -> Rows:
    """Unit vectors along the last axis, float32, of a NumPy array or JAX's.

    Not defined at zero, as in every CLIP.
    """
    xp = features.__array_namespace__()
    features = features.astype(xp.float32)
    return features / xp.linalg.norm(features, axis=-1, keepdims=True)
