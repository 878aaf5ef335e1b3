"""Shares with their uncertainty."""

import math
from typing import NamedTuple

Z = 1.959964  # 95 % of the standard normal distribution


class Share(NamedTuple):
    """`k` of `n`, and the 95 % Wilson score interval [low, high]; all None if n is 0."""

    k: int
    n: int
    rate: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.rate is None:
            return "none to judge"
        percent = ", ".join(f"{100 * value:.1f}" for value in (self.low, self.high))
        return f"{100 * self.rate:.1f} % [{percent}] ({self.k} of {self.n})"


def wilson(k: int, n: int) -> Share:
    """The share k/n with its 95 % score interval (Wilson, 1927), which holds at 0 and 1, too."""
    if not n:
        return Share(k, n, None, None, None)
    rate, spread = k / n, Z * Z / n
    centre = (rate + spread / 2) / (1 + spread)
    half = Z * math.sqrt(rate * (1 - rate) / n + spread / (4 * n)) / (1 + spread)
    return Share(k, n, rate, min(max(0.0, centre - half), rate), max(min(1.0, centre + half), rate))
