"""What features tell about objects in a linear way: probes fitted on photos and asked of others."""

import numpy as np

# Of the largest eigenvalue: less than the least of them only fits noise.
_RIDGES = 10.0 ** np.arange(-4, 1.5, 0.5)


def fit(images: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights `[D, K]` and thresholds `[K]`, float64: other photos show what scores above them.

    The probe is a ridge regression (whose direction is that of Fisher's linear discriminant) with
    its threshold half-way between the two kinds' mean scores, as neither is to be the likelier one.
    The strength of the ridge, one for all objects, minimises the generalised cross-validation of
    the fitted photos (Golub, Heath and Wahba, Technometrics 1979). `images` are features `[N, D]`,
    each row of a photo of its own; `present` is bool `[N, K]`, whether a photo shows an object.
    """
    images = images.astype(np.float64)
    mean, targets = images.mean(0), present - present.mean(0)
    centred = images - mean
    values, vectors = np.linalg.eigh(centred.T @ centred)
    values = np.maximum(values, 0)
    projected = vectors.T @ (centred.T @ targets)

    def generalised_error(ridge: float) -> float:
        # The squared residual of the fit over the square of its degrees of freedom, both from the
        # eigenvalues: no fit is made.
        explained = (values + 2 * ridge) / (values + ridge) ** 2 @ (projected**2).sum(1)
        freedom = len(images) - 1 - (values / (values + ridge)).sum()
        return ((targets**2).sum() - explained) / max(freedom, 1e-9) ** 2

    ridge = min((values[-1] or 1.0) * _RIDGES, key=generalised_error)
    weights = vectors @ (projected / (values + ridge)[:, None])
    # What each photo scores in the fit without it: its own pull on the fit would set the few photos
    # of a rare object far from the threshold.
    leverage = ((centred @ vectors) ** 2 / (values + ridge)).sum(1)
    left_out = centred @ weights - leverage[:, None] * targets
    left_out /= np.maximum(1 - leverage, 1e-9)[:, None]
    shown, lacking = means(left_out, present)
    return weights, mean @ weights + np.diagonal(shown + lacking) / 2


def choice_accuracy(scores: np.ndarray, present: np.ndarray) -> float:
    """How often a photo with an object scores above one without it, over all such choices.

    A tie counts half: the area under the curve of true over false positives (Hanley and McNeil,
    Radiology 1982). `scores` `[N]`; `present` is bool `[N]`, not all alike.
    """
    from scipy import stats  # a second of importing, which training does without

    ranks = stats.rankdata(scores)
    shown = int(present.sum())
    above = ranks[present].sum() - shown * (shown + 1) / 2
    return float(above / (shown * (len(present) - shown)))


def means(images: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean features of the photos with each object and of those without it, float64 `[K, D]`."""
    with np.errstate(invalid="ignore"):
        shown, lacking = (
            kind.T.astype(np.float64) @ images.astype(np.float64) / kind.sum(0)[:, None]
            for kind in (present, ~present)
        )
    return shown, lacking


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length one in float64 `[N, D]`; `models.normalisation` is for the model's float32."""
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
