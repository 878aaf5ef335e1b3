"""The published formulas, written out a second time by loops, against the ones that are used."""

import numpy as np
import pytest
from scipy import integrate

from evals.segmentation import metrics
from evals.segmentation.metrics import THRESHOLDS, Counts


@pytest.fixture(scope="module")
def phrases():
    """Probabilities float32 [12, 15, 15] of two models, true masks, and photos of each phrase."""
    rng = np.random.default_rng(0)
    truth = rng.random((12, 15, 15)) < rng.random((12, 1, 1))
    truth[3] = False
    noise = rng.random((2, 12, 15, 15))
    drawn = (0.3 * truth + 0.7 * noise).astype(np.float32)
    drawn[0, 3] = 0.0  # nothing to find and nothing found
    return drawn, truth, [f"{i // 2}.jpg" for i in range(12)]


def counts(drawn: np.ndarray, truth: np.ndarray) -> Counts:
    pairs = [metrics.count(p, t) for p, t in zip(drawn, truth, strict=True)]
    return Counts(*(np.stack(x) for x in zip(*pairs, strict=True)), truth.sum(axis=(1, 2)))


def published(drawn: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """`FixedIntervalMetrics` of timojl/clipseg by loops over thresholds and phrases."""
    mious, fgious, points = [], [], set()
    for t in THRESHOLDS.astype(np.float32):
        above = drawn > t
        tp = [int((a & g).sum()) for a, g in zip(above, truth, strict=True)]
        fp = [int((a & ~g).sum()) for a, g in zip(above, truth, strict=True)]
        fn = [int((~a & g).sum()) for a, g in zip(above, truth, strict=True)]
        mious.append(np.mean([a / (1 + a + b + c) for a, b, c in zip(tp, fp, fn, strict=True)]))
        tp, fp, fn = sum(tp), sum(fp), sum(fn)
        fgious.append(tp / (1 + tp + fp + fn))
        if tp + fp:
            points.add((tp / (1 + tp + fn), tp / (1 + tp + fp)))
    recall, precision = zip(*sorted(points), strict=True)
    return {
        "miou@0.3": mious[14],
        "miou@0.5": mious[24],
        "fgiou@0.3": fgious[14],
        "fgiou@0.5": fgious[24],
        "ap": metrics.simpson(np.array(precision), np.array(recall)),
        "miou_best": max(mious),
        "fgiou_best": max(fgious),
    }


def test_counting_is_comparing_at_every_threshold(phrases):
    drawn, truth, _ = phrases
    edge = np.float32(THRESHOLDS).reshape(7, 7)  # exactly at a threshold is not above it
    for p, t in ((drawn[0, 0], truth[0]), (edge, edge > 0.4), (np.zeros((2, 2), np.float32),) * 2):
        tp, fp = metrics.count(p, t.astype(bool))
        assert tp.tolist() == [int((p > x)[t.astype(bool)].sum()) for x in np.float32(THRESHOLDS)]
        assert (tp + fp).tolist() == [int((p > x).sum()) for x in np.float32(THRESHOLDS)]


def test_values_are_those_of_the_published_code(phrases):
    drawn, truth, images = phrases
    found = metrics.measure({"a": counts(drawn[0], truth)}, images, resamples=50)["rows"]["a"]
    wanted = published(drawn[0], truth)
    assert {name: found[name]["value"] for name in wanted} == pytest.approx(wanted, abs=1e-12)
    assert found["miou@0.3"]["n"] == 12
    assert found["miou@0.3"]["method"] == "bootstrap over 6 images"
    assert found["miou@0.3"]["low"] <= found["miou@0.3"]["value"] <= found["miou@0.3"]["high"]


def test_the_plain_iou_has_no_one_and_rewards_finding_nothing_where_nothing_is(phrases):
    drawn, truth, images = phrases
    both = counts(drawn[0], truth)
    above = drawn[0] > np.float32(0.3)
    union = (above | truth).sum(axis=(1, 2))
    wanted = [
        1.0 if u == 0 else (a & t).sum() / u for a, t, u in zip(above, truth, union, strict=True)
    ]
    assert union[3] == 0
    np.testing.assert_allclose(both.ious()[:, 14], wanted)
    found = metrics.measure({"a": both}, images, resamples=2)["rows"]["a"]
    assert found["iou@0.3"]["value"] == pytest.approx(np.mean(wanted))
    assert found["iou@0.3"]["value"] > found["miou@0.3"]["value"]


def test_the_best_threshold_is_named(phrases):
    drawn, truth, images = phrases
    found = metrics.measure({"a": counts(drawn[0], truth)}, images, resamples=2)
    best = found["rows"]["a"]["miou_best"]["threshold"]
    curve = found["curves"]["a"]["miou"]
    assert curve[metrics.column(best)] == max(curve) == found["rows"]["a"]["miou_best"]["value"]


def test_draws_are_of_images_and_the_same_for_both_models(phrases):
    drawn, truth, images = phrases
    models = {"a": counts(drawn[0], truth), "b": counts(drawn[1], truth)}
    found = metrics.measure(models, images, resamples=300, seed=3)
    assert found == metrics.measure(models, images, resamples=300, seed=3)
    change = found["comparisons"]["a -> b"]["metrics"]["miou@0.5"]

    rng, groups = np.random.default_rng(3), np.arange(12).reshape(6, 2)
    values = {name: c.ious(extra=1)[:, 24] for name, c in models.items()}
    weights = np.concatenate([rng.multinomial(6, np.full(6, 1 / 6), size=n) for n in (200, 100)])
    mean = {
        n: weights @ v[groups].sum(axis=1) / (2 * weights.sum(axis=1)) for n, v in values.items()
    }
    wanted = np.quantile(mean["b"] - mean["a"], (0.025, 0.975))
    np.testing.assert_allclose((change["low"], change["high"]), wanted)
    assert change["difference"] == pytest.approx((values["b"] - values["a"]).mean())
    rise = models["b"].ious()[:, 24] - models["a"].ious()[:, 24]
    assert (change["gained"], change["lost"]) == ((rise > 0.01).sum(), (rise < -0.01).sum())
    assert change["separable"] == (not change["low"] <= 0 <= change["high"])


def test_a_model_is_not_separable_from_itself_and_is_from_the_truth(phrases):
    drawn, truth, images = phrases
    one, perfect = counts(drawn[0], truth), counts(truth.astype(np.float32), truth)
    found = metrics.measure({"a": one, "same": one, "perfect": perfect}, images, resamples=100)
    same = found["comparisons"]["a -> same"]["metrics"]["miou@0.3"]
    assert same["difference"] == same["low"] == same["high"] == 0 and not same["separable"]
    best = found["comparisons"]["a -> perfect"]["metrics"]["miou@0.3"]
    assert best["separable"] and best["difference"] > 0.2 and best["lost"] == 0


def test_few_images_tell_no_models_apart(phrases):
    drawn, truth, _ = phrases
    models = {"a": counts(drawn[0], truth), "perfect": counts(truth.astype(np.float32), truth)}
    five = metrics.measure(models, [f"{i % 5}" for i in range(12)], resamples=100)
    change = five["comparisons"]["a -> perfect"]["metrics"]["miou@0.3"]
    assert change["low"] > 0 and not change["separable"]
    one = metrics.measure(models, ["0"] * 12, resamples=10)
    row = one["rows"]["a"]["miou@0.3"]
    assert (row["low"], row["high"]) == (0, 1) and row["method"].startswith("no interval")
    change = one["comparisons"]["a -> perfect"]["metrics"]["miou@0.3"]
    assert (change["low"], change["high"]) == (-1, 1)


@pytest.mark.parametrize("points", [3, 5, 49])
def test_simpsons_rule_for_an_odd_number_of_points_is_scipys(points):
    rng = np.random.default_rng(points)
    x, y = np.sort(rng.random(points)), rng.random(points)
    assert metrics.simpson(y, x) == pytest.approx(integrate.simpson(y, x=x), abs=1e-12)


def test_simpsons_rule_for_an_even_number_is_the_mean_of_both_ways():
    x, y = np.array([0.0, 0.1, 0.4, 0.5]), np.array([1.0, 0.8, 0.9, 0.2])
    first = integrate.simpson(y[:3], x=x[:3]) + 0.1 * (0.9 + 0.2) / 2
    last = 0.1 * (1.0 + 0.8) / 2 + integrate.simpson(y[1:], x=x[1:])
    assert metrics.simpson(y, x) == pytest.approx((first + last) / 2)
    assert metrics.simpson(y[:2], x[:2]) == pytest.approx(0.1 * 1.8 / 2)
    assert metrics.simpson(y[:1], x[:1]) == 0


def test_average_precision_without_any_prediction_is_zero():
    nothing = np.zeros(49)
    assert metrics.average_precision(nothing, nothing, nothing + 5) == 0
