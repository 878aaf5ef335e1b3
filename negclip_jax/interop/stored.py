"""A tensor in somebody's file, and the error about files that cannot be used."""

import dataclasses
from collections.abc import Callable

import numpy as np

from negclip_jax.common.errors import InputError


class CheckpointError(InputError):
    """A checkpoint that cannot be read or written; the message lists every problem found."""


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: `read()` fetches it; dtype is numpy's name, or the file's own word."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]
