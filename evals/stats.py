"""Intervals for a metric and paired comparison of two models on the same items.

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

import numpy as np
from scipy import stats

from evals.benchmark import Metric

LEVEL = 0.95
RESAMPLES = 10_000
_CHUNK = 4_000_000  # counts drawn at once: 32 MB


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
      value, low, high: in [0, 1].
      n: items.
      method: of the interval, in words.
    """

    value: float
    low: float
    high: float
    n: int
    method: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What changed from model A to model B on the same items.

    Attributes:
      difference: B minus A.
      low, high: interval of the difference.
      gained, lost: items on which B is better, and worse, than A.
      p_value: exact McNemar; None for a weighted metric, which it does not test.
      separable: False where the two cannot be told apart with these items.
      n: items that both answered.
    """

    difference: float
    low: float
    high: float
    gained: int
    lost: int
    p_value: float | None
    separable: bool
    n: int


def estimate(metric: Metric, *, seed: int = 0) -> Estimate:
    """Value and 95 % interval of a metric by the method that its items call for.

    Raises ValueError for a metric without items.
    """
    values, n = np.asarray(metric.values, np.float64), len(metric.values)
    if not n:
        raise ValueError(f"{metric.name}: no items, so there is no number")
    value = metric.mean
    sums, sizes = _grouped(values, metric.weights, metric.clusters)
    if np.allclose(sums, value * sizes) or (_is_plain(metric) and _is_graded(values)):
        # A bootstrap of equal values has no width: as many Wilson trials as there are images.
        low, high = wilson(value * len(sums), len(sums))
        return Estimate(value, low, high, n, "Wilson")
    low, high = np.quantile(_resampled(sums, sizes, seed), _tails())
    over = "items" if metric.clusters is None else f"{len(sums):,} {metric.unit}"
    return Estimate(value, float(low), float(high), n, f"bootstrap over {over}")


def wilson(right: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share; `right` may hold halves from ties."""
    if n <= 0:
        raise ValueError("no items, so there is no share")
    z2 = stats.norm.ppf((1 + LEVEL) / 2) ** 2
    p = right / n
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def compare(a: Metric, b: Metric, *, seed: int = 0) -> Comparison:
    """Model B against model A in one metric, on the items that both have.

    Raises ValueError where they have no item in common, or an item twice.
    """
    rows_a, rows_b = _common(a, b)
    values_a = np.asarray(a.values, np.float64)[rows_a]
    values_b = np.asarray(b.values, np.float64)[rows_b]
    weights, clusters = (x if x is None else x[rows_a] for x in (a.weights, a.clusters))
    change = values_b - values_a
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    difference = float(np.average(change, weights=weights))
    sums, sizes = _grouped(change, weights, clusters)
    low, high = map(float, np.quantile(_resampled(sums, sizes, seed), _tails()))
    p_value = None if weights is not None else mcnemar(gained, lost)
    separable = not low <= 0 <= high and (p_value is None or p_value < 1 - LEVEL)
    return Comparison(difference, low, high, gained, lost, p_value, separable, len(change))


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p-value of McNemar's test (1947) from the items that changed each way."""
    if gained + lost == 0:
        return 1.0
    return float(stats.binomtest(gained, gained + lost, 0.5).pvalue)


def _is_plain(metric: Metric) -> bool:
    shared = metric.clusters is not None and len(np.unique(metric.clusters)) < len(metric.values)
    return metric.weights is None and not shared


def _is_graded(values: np.ndarray) -> bool:
    """Whether every item is wrong, right or a tie."""
    return bool(np.isin(values, (0.0, 0.5, 1.0)).all())


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
    for start in range(0, RESAMPLES, per_chunk):
        size = min(per_chunk, RESAMPLES - start)
        total = rng.multinomial(n, counts / n, size=size) @ kinds
        means.append(total[:, 0] / total[:, 1])
    return np.concatenate(means)


def _common(a: Metric, b: Metric) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the items that both metrics have, in the same order."""
    items_a, items_b = (np.arange(len(m.values)) if m.items is None else m.items for m in (a, b))
    for metric, items in ((a, items_a), (b, items_b)):
        if len(np.unique(items)) < len(items):
            raise ValueError(f"{metric.name}: an item occurs twice, so items cannot be paired")
    common, rows_a, rows_b = np.intersect1d(items_a, items_b, return_indices=True)
    if not len(common):
        raise ValueError(f"{a.name}: the two models have no item in common")
    return rows_a, rows_b


def _tails() -> tuple[float, float]:
    return (1 - LEVEL) / 2, (1 + LEVEL) / 2
