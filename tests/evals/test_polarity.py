"""alpha, beta, gamma of cases worked out by hand; probes by brute force, folds by photo."""

import numpy as np
import pytest

from evals import polarity


def named(count: int) -> list[str]:
    return [f"{i}.jpg" for i in range(count)]


@pytest.mark.parametrize(
    ("alpha", "beta", "gamma"),
    [(0.3, 0.0, 0.0), (0.0, 0.2, 0.0), (0.0, 0.0, 0.1), (0.05, -0.2, 0.4)],
)
def test_the_three_numbers_of_four_similarities(alpha, beta, gamma):
    """Photos (1, +-1) and statements (C + b alpha, beta + b gamma): S is the formula itself."""
    constant = 0.7
    images = np.array([[1, 1], [1, 1], [1, 1], [1, -1]], np.float32)
    present = np.array([[True], [True], [True], [False]])
    affirmed, negated = (np.array([[[constant + b * alpha, beta + b * gamma]]]) for b in (1, -1))
    found = polarity.axes(images, present, affirmed, negated)
    np.testing.assert_allclose(found, [[[alpha, beta, gamma]]], atol=1e-12)


def test_the_numbers_are_those_of_mean_cosines():
    rng = np.random.default_rng(0)
    images, present = rng.normal(size=(40, 6)), rng.random((40, 3)) < 0.4
    affirmed, negated = rng.normal(size=(2, 4, 3, 6))
    found = polarity.axes(images, present, affirmed, negated)
    assert found.shape == (4, 3, 3)
    for f in range(4):
        for k in range(3):
            shown, lacking = images[present[:, k]], images[~present[:, k]]
            s = {
                (a, b): (photos @ text).mean()
                for a, photos in ((1, shown), (-1, lacking))
                for b, text in ((1, affirmed[f, k]), (-1, negated[f, k]))
            }
            signs = ((0, 1), (1, 0), (1, 1))  # of a and b in alpha, beta, gamma
            wanted = [sum(v * a**i * b**j for (a, b), v in s.items()) / 4 for i, j in signs]
            np.testing.assert_allclose(found[f, k], wanted)


def test_an_object_that_every_photo_shows_has_no_numbers():
    images, present = np.eye(3), np.array([[True, True], [True, False], [True, False]])
    texts = np.ones((1, 2, 3))
    assert np.isnan(polarity.axes(images, present, texts, -texts)[0, :, 0]).tolist() == [
        True,
        False,
    ]


def scene(count: int = 300, width: int = 20, noise: float = 0.3, seed: int = 0):
    """Features and labels of four objects, the last of them rare."""
    rng = np.random.default_rng(seed)
    present = rng.random((count, 4)) < (0.5, 0.4, 0.3, 0.04)
    images = present @ rng.normal(size=(4, width)) + noise * rng.normal(size=(count, width))
    return images / np.linalg.norm(images, axis=1, keepdims=True), present


def test_a_probe_finds_what_features_hold_and_nothing_in_noise():
    images, present = scene()
    scores = polarity.probe(images, present, named(300))
    assert (polarity.balanced(scores, present) > 0.95).all()
    for kind in (present[:, 3], ~present[:, 3]):  # the rare object is not always "absent"
        assert (np.sign(scores[kind, 3]) == np.where(present[kind, 3], 1, -1)).mean() > 0.8
    noise = np.random.default_rng(1).normal(size=(300, 40))
    shares = polarity.balanced(polarity.probe(noise, present, named(300)), present)
    assert (abs(shares - 0.5) < 0.2).all() and abs(shares[:3].mean() - 0.5) < 0.08


def test_no_photo_is_among_those_that_its_probe_was_fitted_on():
    """Every photo twice, with a feature of its own and labels by chance: only its twin tells."""
    rng = np.random.default_rng(0)
    labels = rng.random((60, 1)) < 0.5
    images, present = np.tile(np.eye(60), (2, 1)), np.tile(labels, (2, 1))
    apart = polarity.probe(images, present, named(120))  # the twins as two photos
    assert polarity.balanced(apart, present)[0] > 0.75
    together = polarity.probe(images, present, named(60) * 2)
    np.testing.assert_allclose(together[:60], together[60:], atol=1e-12)
    assert polarity.balanced(together, present)[0] < 0.65


def test_folds_hang_on_names_alone():
    images, present = scene(80)
    scores = polarity.probe(images, present, named(80))
    np.testing.assert_array_equal(scores, polarity.probe(images, present, named(80)))
    order = np.random.default_rng(0).permutation(80)
    mixed = polarity.probe(images[order], present[order], [named(80)[i] for i in order])
    np.testing.assert_allclose(mixed, scores[order], atol=1e-9)


def test_a_category_of_too_few_photos_has_no_score():
    images, present = scene(40)
    present[:, 0] = False
    present[7, 0] = True
    scores = polarity.probe(images, present, named(40))
    assert np.isnan(scores[7, 0]) and not np.isnan(scores[:, 1]).any()


def test_balanced_shares():
    present = np.array([[True, True], [True, False], [False, True], [False, True]])
    scores = np.array([[1.0, 1.0], [-1.0, 1.0], [0.0, np.nan], [-1.0, -1.0]])
    assert polarity.balanced(scores, present).tolist() == [(0.5 + 0.75) / 2, (0.5 + 0.0) / 2]
