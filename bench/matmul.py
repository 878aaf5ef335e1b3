"""What large matrix products reach on this machine: the yardstick of a step's speed."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

_SIDE = 2048  # of the square matrices


def matmul_rate(multiply: Callable[[Any, Any], Any], make: Callable[[np.ndarray], Any]) -> float:
    """FLOP/s of float32 products of square matrices: the best of five, so a pause does not count.

    `multiply` blocks until the product exists; `make` turns a NumPy array into its operand.
    """
    operand = make(np.ones((_SIDE, _SIDE), np.float32))
    multiply(operand, operand)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        multiply(operand, operand)
        seconds.append(time.perf_counter() - start)
    return 2 * _SIDE**3 / min(seconds)
