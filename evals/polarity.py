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

from negclip_jax.common import linear_probe

FOLDS = 5


def axes(
    images: np.ndarray, present: np.ndarray, affirmed: np.ndarray, negated: np.ndarray
) -> np.ndarray:
    """alpha, beta and gamma of each form of words and object, float64 `[F, K, 3]`.

    From unit features: `images` `[N, D]`, `affirmed` and `negated` `[F, K, D]`. `present` is bool
    `[N, K]`; of an object that every photo shows, or none, the numbers are NaN.
    """
    shown, lacking = linear_probe.means(images, present)
    middle, step = (shown + lacking) / 2, (shown - lacking) / 2
    affirmed, negated = affirmed.astype(np.float64), negated.astype(np.float64)
    mention, turn = (affirmed + negated) / 2, (affirmed - negated) / 2
    # S(a, b) is (middle + a step) . (mention + b turn), as means and inner products are linear.
    pairs = ((middle, turn), (step, mention), (step, turn))
    return np.stack([(image * text).sum(-1) for image, text in pairs], axis=-1)


def probe(images: np.ndarray, present: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Scores of a linear probe for each object, fitted on other photos, `[N, K]`.

    Above 0 where the probe says that the object is there; NaN where all photos of the other folds
    show it, or none does. Photos are dealt to folds by a hash of their name, so that rows of one
    photo stay together and the result depends on no order or seed. `images` are features `[N, D]`,
    `present` is bool `[N, K]`.
    """
    digests = (hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest() for name in names)
    fold = np.array([int.from_bytes(digest[:8], "big") % FOLDS for digest in digests])
    scores = np.full(present.shape, np.nan)
    for held in (fold == k for k in range(FOLDS)):
        if held.any() and not held.all():
            weights, offset = linear_probe.fit(images[~held], present[~held])
            scores[held] = images[held].astype(np.float64) @ weights - offset
    return scores


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
