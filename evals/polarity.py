"""Which axis of negation fails, and what the image side allows: alpha, beta, gamma, linear probes.

For an object, cosines of photos with (a = +1) and without it (a = -1) to a statement that it is
there (b = +1) or not (b = -1) have four means, which are four numbers:

    S(a, b) = C + a beta + b alpha + a b gamma

alpha is a liking for affirmation, whatever the photo; beta what a mention of the object is drawn to
photos of it, denied or not; gamma is the negation that is understood. On photos without the object
"there is no x" wins over "there is an x" where gamma > alpha, and it finds such photos where
gamma > beta; both answers about every photo need gamma > |alpha|.

"There is an x" against "there is no x" is a linear question to a photo's features. A linear probe,
fitted on other photos, is therefore a reference for what any text tower can reach on them.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

FOLDS = 5
# Of the largest eigenvalue: less than the least of them only fits noise.
_RIDGES = 10.0 ** np.arange(-4, 1.5, 0.5)


def axes(
    images: np.ndarray, present: np.ndarray, affirmed: np.ndarray, negated: np.ndarray
) -> np.ndarray:
    """alpha, beta and gamma of each form of words and object, float64 `[F, K, 3]`.

    Args:
      images: unit features `[N, D]`.
      present: bool `[N, K]`, whether a photo shows an object; each object is in some photo and
        lacks in some, else its numbers are NaN.
      affirmed, negated: unit features of statements that the object is and is not there,
        `[F, K, D]`.
    """
    shown, lacking = _means(images, present)
    middle, step = (shown + lacking) / 2, (shown - lacking) / 2
    affirmed, negated = affirmed.astype(np.float64), negated.astype(np.float64)
    mention, turn = (affirmed + negated) / 2, (affirmed - negated) / 2
    # S(a, b) is (middle + a step) . (mention + b turn), as means and inner products are linear.
    pairs = ((middle, turn), (step, mention), (step, turn))
    return np.stack([(image * text).sum(-1) for image, text in pairs], axis=-1)


def probe(
    images: np.ndarray, present: np.ndarray, names: Sequence[str], *, folds: int = FOLDS
) -> np.ndarray:
    """Scores of a linear probe for each object, fitted on other photos (`fit_probe`), `[N, K]`.

    Above 0 where the probe says that the object is there. Photos are dealt to folds by a hash of
    their name, so that rows of one photo stay together and the result depends on no order or seed.

    Args:
      images: features `[N, D]`.
      present: bool `[N, K]`, whether a photo shows an object.
      names: of the photos.
      folds: into how many parts photos are dealt.

    NaN where all photos of the other folds show the object, or none does.
    """
    digests = (hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest() for name in names)
    fold = np.array([int.from_bytes(digest[:8], "big") % folds for digest in digests])
    scores = np.full(present.shape, np.nan)
    for held in (fold == k for k in range(folds)):
        if held.any() and not held.all():
            weights, offset = fit_probe(images[~held], present[~held])
            scores[held] = images[held].astype(np.float64) @ weights - offset
    return scores


def fit_probe(images: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights `[D, K]` and thresholds `[K]`, float64: other photos show what scores above them.

    The probe is a ridge regression (whose direction is that of Fisher's linear discriminant) with
    its threshold half-way between the two kinds' mean scores, as neither is to be the likelier one.
    The strength of the ridge, one for all objects, minimises the generalised cross-validation of
    the fitted photos (Golub, Heath and Wahba, Technometrics 1979).

    Args:
      images: features `[N, D]`, each row of a photo of its own.
      present: bool `[N, K]`, whether a photo shows an object.
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
    shown, lacking = _means(left_out, present)
    return weights, mean @ weights + np.diagonal(shown + lacking) / 2


def balanced(scores: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Mean of the shares of photos with and without each object that scores tell right, `[K]`.

    `scores` float `[N, K]` are above 0 where they say that the object is there; 0 is half right,
    NaN is left out. NaN for an object without photos of one kind.
    """
    right = (np.sign(scores) * np.where(present, 1, -1) + 1) / 2
    known = ~np.isnan(scores)
    kinds = [present & known, ~present & known]
    with np.errstate(invalid="ignore"):
        shares = [np.where(kind, right, 0).sum(0) / kind.sum(0) for kind in kinds]
    return (shares[0] + shares[1]) / 2


def _means(images: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean features of the photos with each object and of those without it, float64 `[K, D]`."""
    with np.errstate(invalid="ignore"):
        shown, lacking = (
            kind.T.astype(np.float64) @ images.astype(np.float64) / kind.sum(0)[:, None]
            for kind in (present, ~present)
        )
    return shown, lacking
