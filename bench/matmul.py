"""What large matrix products reach on this machine: the yardstick of a step's speed."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np


def matmul_rate(
    multiply: Callable[[Any, Any], Any], make: Callable[[np.ndarray], Any], side: int = 2048
) -> float:
    """FLOP/s of products of square matrices: the best of five, so that a pause does not count.

    Args:
      multiply: blocks until the product exists.
      make: turns float32 `[side, side]` into its operand. The numbers are random, as products of
        constants draw less power and run faster than any model's.
      side: of the matrices; accelerators need larger ones than processors to be busy.
    """
    operand = make(np.random.default_rng(0).standard_normal((side, side), np.float32))
    multiply(operand, operand)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        multiply(operand, operand)
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds)


def side_for(platform: str) -> int:
    """Side of the matrices that keep a device busy, by JAX's name of its platform."""
    return 2048 if platform == "cpu" else 8192
