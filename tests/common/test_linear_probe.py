"""Linear probes against explicit inverses and loops."""

import itertools

import numpy as np

from negclip_jax.common import linear_probe


def test_a_probe_is_a_ridge_regression_with_left_out_thresholds():
    """By explicit inverses: the ridge that cross-validation takes, and a fit without each photo."""
    rng = np.random.default_rng(0)
    present = rng.random((50, 4)) < (0.5, 0.4, 0.3, 0.1)
    images = present @ rng.normal(size=(4, 8)) + 0.3 * rng.normal(size=(50, 8))
    x, y = images - images.mean(0), present - present.mean(0)
    best = None
    for ridge in np.linalg.eigvalsh(x.T @ x)[-1] * 10.0 ** np.arange(-4, 1.5, 0.5):
        hat = x @ np.linalg.inv(x.T @ x + ridge * np.eye(8)) @ x.T
        error = ((y - hat @ y) ** 2).sum() / (50 - 1 - np.trace(hat)) ** 2
        best = min(best or (error, ridge), (error, ridge))
    fit = np.linalg.inv(x.T @ x + best[1] * np.eye(8)) @ x.T @ y
    weights, threshold = linear_probe.fit(images, present)
    np.testing.assert_allclose(weights, fit, atol=1e-9)
    scores = np.empty_like(y)
    for i in range(50):
        rest = np.arange(50) != i
        gram = x[rest].T @ x[rest] + best[1] * np.eye(8)
        scores[i] = x[i] @ np.linalg.inv(gram) @ x[rest].T @ y[rest]
    middle = [(s[p].mean() + s[~p].mean()) / 2 for s, p in zip(scores.T, present.T, strict=True)]
    np.testing.assert_allclose(threshold, images.mean(0) @ fit + middle, atol=1e-9)


def test_choices_between_two_photos():
    rng = np.random.default_rng(0)
    scores, present = rng.integers(0, 5, 40).astype(float), rng.random(40) < 0.3
    points = [
        (a > b) + (a == b) / 2 for a, b in itertools.product(scores[present], scores[~present])
    ]
    assert linear_probe.choice_accuracy(scores, present) == np.mean(points)
    assert linear_probe.choice_accuracy(present.astype(float), present) == 1
