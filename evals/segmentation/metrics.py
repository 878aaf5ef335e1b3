"""Metrics of masks over phrases, as CLIPSeg's evaluation defines them, with intervals.

Source: timojl/clipseg, `metrics.py`, `FixedIntervalMetrics`. A pixel is foreground where its
probability is above the threshold; thresholds are 0.02, 0.04, ..., 0.98. With tp, fp and fn the
pixels of one phrase, and TP, FP and FN their sums over all phrases:

    miou@t   mean over phrases of tp / (1 + tp + fp + fn), the 1 being in the published code
    fgiou@t  TP / (1 + TP + FP + FN): large objects weigh more
    ap       Simpson's rule over the curve of precision TP / (1 + TP + FP) against recall
             TP / (1 + TP + FN), equal points once, thresholds that find nothing left out
    miou_best, fgiou_best   the largest over the thresholds, chosen on these very phrases

Not published, and free of the 1: `iou@t`, the mean over phrases of tp / (tp + fp + fn), which is 1
where there is nothing to find and nothing found.

Intervals are percentiles of a bootstrap over images, because phrases share them; one image has
none. Two models are compared in the same draws; a difference counts as separable where its interval
leaves out 0 and there are six images at least (of fewer, not even a sign test reaches 5 %).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from negclip_jax.common.statistics import percentile_interval

THRESHOLDS = np.linspace(0, 1, 51)[1:-1]
SHOWN = (0.3, 0.5)
RESAMPLES = 2_000
_CHUNK = 200  # draws at once
MOVED = 0.01  # by which the IoU of a phrase has to change to count as better or worse
_FEWEST = 6  # images that tell two models apart


@dataclasses.dataclass(frozen=True)
class Counts:
    """Pixels of N phrases at T thresholds."""

    tp: np.ndarray  # int64 `[N, T]`
    fp: np.ndarray  # the same
    positives: np.ndarray  # pixels of the true mask, int64 `[N]`

    @property
    def fn(self) -> np.ndarray:
        """Pixels that were missed, int64 `[N, T]`."""
        return self.positives[:, None] - self.tp

    def ious(self, extra: int = 0) -> np.ndarray:
        """tp / (extra + tp + fp + fn), float64 `[N, T]`; 1 for 0 / 0."""
        union = extra + self.positives[:, None] + self.fp
        return np.divide(self.tp, union, out=np.ones(union.shape), where=union > 0)


def count(probabilities: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """tp and fp of a mask at every threshold, int64 `[T]` each; float32 and bool of one shape."""
    # float32, as torch compares a float32 tensor with a number; above j thresholds: reaches j.
    reached = np.searchsorted(THRESHOLDS.astype(np.float32), probabilities.ravel(), side="left")
    bins = len(THRESHOLDS) + 1
    true = np.bincount(reached[truth.ravel()], minlength=bins)
    every = np.bincount(reached, minlength=bins)
    above = [np.cumsum(x[::-1])[::-1][1:] for x in (true, every - true)]
    return above[0], above[1]


def column(threshold: float) -> int:
    """Place of a threshold in `THRESHOLDS`."""
    return int(np.argmin(np.abs(THRESHOLDS - threshold)))


def measure(
    models: Mapping[str, Counts],
    images: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """All metrics of several models on the same N phrases, compared with those of the first.

    Phrases of one image are drawn together.

    Returns:
      `rows`: `{model: {metric: {value, low, high, n, method}}}`; for `*_best` also `threshold`.
      `comparisons`: `{"A -> B": {"before", "after", "metrics": {metric: {difference, low, high,
      gained, lost, separable, n}}}}`, gained and lost being phrases whose IoU at the metric's
      threshold (0.5 where it has none) rose or fell by more than a hundredth.
      `curves`: `{model: {"miou", "fgiou", "precision", "recall"}}`, a value a threshold.
    """
    photos, unit = np.unique(np.asarray(images), return_inverse=True)
    sums = {}
    for name, counts in models.items():
        # Of each image: phrases, then the parts at each threshold; exact, being below 2^53.
        parts = (counts.ious(extra=1), counts.ious(), counts.tp, counts.fp, counts.fn)
        sums[name] = np.zeros((len(photos), 1 + 5 * len(THRESHOLDS)))
        np.add.at(sums[name], unit, np.concatenate([np.ones((len(unit), 1)), *parts], axis=1))
    # Rows of sums: of all images, then of each draw, the same images for every model.
    drawn = {name: [s.sum(axis=0, keepdims=True)] for name, s in sums.items()}
    rng, shares = np.random.default_rng(seed), np.full(len(photos), 1 / len(photos))
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        times = rng.multinomial(len(photos), shares, size=size).astype(np.float64)
        for name, s in sums.items():
            drawn[name].append(times @ s)
    by_threshold = {name: _by_threshold(np.concatenate(parts)) for name, parts in drawn.items()}
    kinds = ("miou", "fgiou", "precision", "recall")
    curves = {
        n: {kind: curve[kind][0].tolist() for kind in kinds} for n, curve in by_threshold.items()
    }
    values = {name: _metrics(curve) for name, curve in by_threshold.items()}
    single, method = len(photos) == 1, f"bootstrap over {len(photos):,} images"
    if single:
        method = "no interval: all phrases are of one image"
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for name, found in values.items():
        row = rows[name] = {}
        for metric, (value, *draws) in found.items():
            low, high = (0.0, 1.0) if single else percentile_interval(draws)
            row[metric] = {"value": float(value), "low": low, "high": high}
            row[metric] |= {"n": len(images), "method": method}
        for metric in ("miou", "fgiou"):
            best = THRESHOLDS[int(np.argmax(curves[name][metric]))]
            row[f"{metric}_best"]["threshold"] = round(float(best), 2)
    first, *others = models
    comparisons = {}
    for name in others:
        changes = {}
        for metric, after in values[name].items():
            difference, *draws = after - values[first][metric]
            low, high = (-1.0, 1.0) if single else percentile_interval(draws)
            at = column(float(metric.partition("@")[2] or 0.5))
            rise = models[name].ious()[:, at] - models[first].ious()[:, at]
            changes[metric] = {
                "difference": float(difference),
                "low": low,
                "high": high,
                "separable": len(photos) >= _FEWEST and not low <= 0 <= high,
                "gained": int((rise > MOVED).sum()),
                "lost": int((rise < -MOVED).sum()),
                "n": len(rise),
            }
        comparisons[f"{first} -> {name}"] = {"before": first, "after": name, "metrics": changes}
    return {"rows": rows, "comparisons": comparisons, "curves": curves}


def average_precision(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> float:
    """`ap` from the sums over phrases at each threshold, `[T]` each; 0 where nothing is found."""
    found = tp + fp > 0
    precision, recall = (tp / (1 + tp + other) for other in (fp, fn))
    points = np.unique(np.stack([recall, precision], axis=1)[found], axis=0)
    return simpson(points[:, 1], points[:, 0])


def simpson(y: np.ndarray, x: np.ndarray) -> float:
    """Simpson's rule for points at any distance, as `scipy.integrate.simps` had it in 2022.

    An even number of points leaves one interval over: the mean of taking the last and the first one
    by the trapezoidal rule (SciPy 1.11 replaced that). Points with equal x add nothing.
    """
    from scipy import integrate  # a second of importing, which --help does without

    if len(x) < 2:
        return 0.0
    if len(x) % 2:
        return float(integrate.simpson(y, x=x))
    ends = np.diff(x)[[0, -1]] * [y[0] + y[1], y[-2] + y[-1]] / 2
    inner = integrate.simpson(y[1:], x=x[1:]) + integrate.simpson(y[:-1], x=x[:-1])
    return float((inner + ends.sum()) / 2)


def _by_threshold(sums: np.ndarray) -> dict[str, np.ndarray]:
    """What R rows of sums come to at every threshold, float64 `[R, T]` each."""
    n = sums[:, :1]
    official, plain, tp, fp, fn = np.split(sums[:, 1:], 5, axis=1)
    return {
        "miou": official / n,
        "iou": plain / n,
        "fgiou": tp / (1 + tp + fp + fn),
        "precision": tp / (1 + tp + fp),
        "recall": tp / (1 + tp + fn),
        "counts": np.stack([tp, fp, fn], axis=1),
    }


def _metrics(curve: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every metric of R rows of `_by_threshold`, float64 `[R]` each, headline ones first."""

    def shown(kind: str) -> dict[str, np.ndarray]:
        return {f"{kind}@{t:g}": curve[kind][:, column(t)] for t in SHOWN}

    return {
        **shown("miou"),
        **shown("fgiou"),
        "ap": np.array([average_precision(*row) for row in curve["counts"]]),
        **shown("iou"),
        "miou_best": curve["miou"].max(axis=1),
        "fgiou_best": curve["fgiou"].max(axis=1),
    }
