"""Intervals for a share or a mean, and paired comparison of two models on the same items.

- Right/wrong items of distinct images: Wilson's interval (Wilson, 1927), which unlike the normal
  one stays inside [0, 1] and has width at 0 % and 100 %.
- Items that share images, weighted items, values between 0 and 1: percentile bootstrap (Efron,
  1979), over images where items share them, because their answers are not independent.
- Two models: exact McNemar test (binomial on the items that changed) and the bootstrap of the
  paired difference. Both have to agree before a difference is called separable.

The bootstrap draws counts instead of rows: rows with equal sum and weight are one category of a
multinomial, which is the same distribution. Ten thousand right/wrong items cost as much as three.
"""

import dataclasses
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from negclip_jax.common.progress import told

LEVEL = 0.95
RESAMPLES = 10_000
_CHUNK = 4_000_000  # counts drawn at once: 32 MB


class Share(NamedTuple):
    """`k` of `n`, and the 95 % Wilson score interval [low, high]; all None if n is 0."""

    k: int
    n: int
    rate: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, k: int, n: int) -> "Share":
        """k/n with its interval."""
        if not n:
            return cls(k, n, None, None, None)
        low, high = wilson(k, n)
        return cls(k, n, k / n, min(low, k / n), max(high, k / n))

    def __str__(self) -> str:
        if self.rate is None or self.low is None or self.high is None:
            return "none to judge"
        low, high = percent(self.low), percent(self.high)
        return f"{percent(self.rate)} % [{low}, {high}] ({self.k} of {self.n})"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval."""

    value: float
    low: float  # of the interval, in [0, 1] as is the value
    high: float
    n: int  # items
    method: str  # of the interval: "Wilson", "bootstrap over 120 images"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What changed from model A to model B on the same items."""

    difference: float  # B minus A
    low: float  # of its 95 % interval
    high: float
    gained: int  # items on which B is better than A
    lost: int  # and worse
    p_value: float | None  # exact McNemar; None for a weighted metric, which it does not test
    separable: bool  # False where the two cannot be told apart with these items
    n: int  # items that both answered


def wilson(right: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of right/n; `right` may hold halves from ties.

    `scipy.stats.binomtest(...).proportion_ci` is the same formula for whole numbers only.
    """
    if n <= 0:
        raise ValueError("no items, so there is no share")
    z2 = NormalDist().inv_cdf((1 + LEVEL) / 2) ** 2
    p = right / n
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def estimate(
    values: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    clusters: np.ndarray | None = None,
    unit: str = "images",
    seed: int = 0,
) -> Estimate:
    """(Weighted) mean and 95 % interval by the method that the items call for.

    Args:
      values: float `[N]` in [0, 1], 0.5 for a tie; ValueError where there are none.
      weights: float `[N]`; None: all equal.
      clusters: `[N]`, the image of each item; None where no two items share one.
      unit: what clusters are, for `Estimate.method`.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        raise ValueError("no items, so there is no number")
    value = float(np.average(values, weights=weights))
    sums, sizes = _grouped(values, weights, clusters)
    is_graded = bool(np.isin(values, (0.0, 0.5, 1.0)).all())  # wrong, right or a tie
    is_plain = weights is None and len(sums) == len(values)
    if np.allclose(sums, value * sizes) or (is_plain and is_graded):
        # A bootstrap of equal values has no width: as many Wilson trials as there are images.
        low, high = wilson(value * len(sums), len(sums))
        return Estimate(value, low, high, len(values), "Wilson")
    low, high = percentile_interval(_resampled(sums, sizes, seed))
    over = "items" if clusters is None else f"{len(sums):,} {unit}"
    return Estimate(value, low, high, len(values), f"bootstrap over {over}")


def compare(
    before: np.ndarray,
    after: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    clusters: np.ndarray | None = None,
    seed: int = 0,
) -> Comparison:
    """Model B (`after`) against A (`before`) on the same items, `[N]` in [0, 1]; see `estimate`."""
    change = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    difference = float(np.average(change, weights=weights))
    low, high = percentile_interval(_resampled(*_grouped(change, weights, clusters), seed))
    p_value = None if weights is not None else mcnemar(gained, lost)
    separable = not low <= 0 <= high and (p_value is None or p_value < 1 - LEVEL)
    return Comparison(difference, low, high, gained, lost, p_value, separable, len(change))


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p-value of McNemar's test (1947) from the items that changed each way."""
    from scipy import stats  # a second of importing, which --help does without

    if gained + lost == 0:
        return 1.0
    return float(stats.binomtest(gained, gained + lost, 0.5).pvalue)


def percentile_interval(draws: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of bootstrapped numbers, `[resamples]`."""
    low, high = np.quantile(draws, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)


def percent(share: float) -> str:
    """0.123 as "12.3"."""
    return f"{100 * share:.1f}"


def interval_text(estimate: Mapping[str, Any] | None, unit: str = "") -> str:
    """An `Estimate`, as JSON keeps it, in percent: "87.3 [84.1, 90.0]"; "-" for none."""
    if estimate is None:
        return "-"
    value, low, high = (percent(estimate[key]) for key in ("value", "low", "high"))
    return f"{value}{unit} [{low}, {high}]"


def ties_text(estimate: Mapping[str, Any] | None) -> str:
    """The ties in a number of `results.json`: "298 of 298 items tie; strict 25.0"; "" for none."""
    if not estimate or not estimate.get("ties"):
        return ""
    strict = estimate.get("strict")
    shared = "" if strict is None else f"; strict {percent(strict)}"
    return f"{estimate['ties']:,} of {estimate['n']:,} items tie{shared}"


def change_text(comparison: Mapping[str, Any], *, interval: bool = False) -> str:
    """A `Comparison`, as JSON keeps it, in percent: "+3.2 (40 up, 26 down, not separable)".

    With `interval`: "+4.7 [+0.2, +9.6] (234 up, 194 down)".
    """
    value, low, high = (f"{100 * comparison[key]:+.1f}" for key in ("difference", "low", "high"))
    flips = f"{comparison['gained']:,} up, {comparison['lost']:,} down"
    verdict = "" if comparison["separable"] else ", not separable"
    return f"{value}{f' [{low}, {high}]' if interval else ''} ({flips}{verdict})"


def _grouped(
    values: np.ndarray, weights: np.ndarray | None, clusters: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted sum and weight of each unit that is drawn: an item, or all items of an image."""
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    if clusters is None:
        return weights * values, weights
    _, unit = np.unique(clusters, return_inverse=True)
    return np.bincount(unit, weights * values), np.bincount(unit, weights)


def _resampled(sums: np.ndarray, sizes: np.ndarray, seed: int) -> np.ndarray:
    """Means of `RESAMPLES` draws of as many units as there are, float64 `[RESAMPLES]`."""
    kinds, counts = np.unique(np.stack([sums, sizes], axis=1), axis=0, return_counts=True)
    n, rng = len(sums), np.random.default_rng(seed)
    per_chunk = max(1, _CHUNK // len(kinds))
    means = []
    for start in told(range(0, RESAMPLES, per_chunk), "parts of a bootstrap"):
        size = min(per_chunk, RESAMPLES - start)
        total = rng.multinomial(n, counts / n, size=size) @ kinds
        means.append(total[:, 0] / total[:, 1])
    return np.concatenate(means)
