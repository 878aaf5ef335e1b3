"""Intervals and paired tests against scipy, textbook values, brute force and simulation."""

import time

import numpy as np
import pytest
from scipy import stats as scipy_stats

from evals import stats
from evals.benchmark import Metric


def metric(values, **fields) -> Metric:
    return Metric("accuracy", np.asarray(values, np.float64), **fields)


@pytest.mark.parametrize(("right", "n"), [(0, 5), (3, 10), (254, 440), (440, 440)])
def test_wilson_is_scipys(right, n):
    expected = scipy_stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert stats.wilson(right, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_plain_right_and_wrong_items_have_wilsons_interval():
    found = stats.estimate(metric([1] * 254 + [0] * 186))
    assert found.method == "Wilson" and found.n == 440
    assert (found.low, found.high) == stats.wilson(254, 440)
    assert found.value == pytest.approx(254 / 440)


def test_a_tie_is_half_a_right_answer():
    assert stats.estimate(metric([0.5, 0.5, 1.0])).value == pytest.approx(2 / 3)


def test_no_items_have_no_number():
    with pytest.raises(ValueError, match="no items"):
        stats.estimate(metric([]))


def brute_force_bootstrap(values, weights, units, resamples=4000):
    rng = np.random.default_rng(1)
    members = [np.flatnonzero(units == u) for u in np.unique(units)]
    means = []
    for _ in range(resamples):
        rows = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        means.append(np.average(values[rows], weights=weights[rows]))
    return np.quantile(means, [0.025, 0.975])


@pytest.mark.parametrize("clustered", [False, True])
def test_the_bootstrap_is_that_of_rows_drawn_one_by_one(clustered):
    rng = np.random.default_rng(0)
    values, weights = rng.random(60), rng.random(60)
    clusters = np.repeat(np.arange(20), 3) if clustered else None
    found = stats.estimate(metric(values, weights=weights, clusters=clusters))
    units = clusters if clustered else np.arange(60)
    low, high = brute_force_bootstrap(values, weights, units)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.01)
    assert found.value == pytest.approx(np.average(values, weights=weights))


def test_items_of_one_image_are_drawn_together():
    """Five equal answers about each image say no more than one: the interval must not shrink."""
    answers = np.random.default_rng(0).integers(0, 2, 100)
    once = stats.estimate(metric(answers))
    naive = stats.estimate(metric(np.repeat(answers, 5)))
    found = stats.estimate(metric(np.repeat(answers, 5), clusters=np.repeat(np.arange(100), 5)))
    assert found.method == "bootstrap over 100 images"
    width = found.high - found.low
    assert width == pytest.approx(once.high - once.low, rel=0.1)
    assert width > 2 * (naive.high - naive.low)


def test_one_item_an_image_is_no_cluster():
    assert stats.estimate(metric([1, 0, 1], clusters=np.arange(3))).method == "Wilson"


def test_all_right_has_an_interval_all_the_same():
    found = stats.estimate(metric(np.ones(50), clusters=np.repeat(np.arange(10), 5)))
    assert (found.low, found.high) == stats.wilson(10, 10)


def test_macro_mean_by_weights():
    values = metric([1, 1, 1, 0], weights=np.array([1 / 3, 1 / 3, 1 / 3, 1]))
    assert stats.estimate(values).value == pytest.approx(0.5)


def test_intervals_cover_the_truth():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        found = stats.estimate(metric(rng.random(40) < 0.3))
        covered += found.low <= 0.3 <= found.high
    assert 0.92 <= covered / 300 <= 0.98


def test_mcnemar_is_the_exact_binomial():
    # 8 of 10 changed items one way: 2 x (45 + 10 + 1) / 1024
    assert stats.mcnemar(8, 2) == pytest.approx(112 / 1024)
    assert stats.mcnemar(0, 0) == 1.0


def test_comparison_counts_flips_each_way():
    before, after = [1, 1, 0, 0, 0, 0.5], [1, 0, 1, 1, 0, 1]
    found = stats.compare(metric(before), metric(after))
    assert (found.gained, found.lost, found.n) == (3, 1, 6)
    assert found.difference == pytest.approx((1 - 1 + 1 + 0.5) / 6)
    assert found.p_value == pytest.approx(stats.mcnemar(3, 1)) and not found.separable


def test_a_large_gain_is_separable_and_a_coin_flip_is_not():
    rng = np.random.default_rng(0)
    before = rng.integers(0, 2, 440)
    better = np.where(rng.random(440) < 0.3, 1, before)
    same = np.where(rng.random(440) < 0.3, rng.integers(0, 2, 440), before)
    assert stats.compare(metric(before), metric(better)).separable
    assert not stats.compare(metric(before), metric(same)).separable


def test_pairing_makes_a_small_gain_visible():
    """20 of 1,000 items gained and none lost: far inside both intervals, and yet certain."""
    before = np.random.default_rng(0).integers(0, 2, 1000)
    after = before.copy()
    after[np.flatnonzero(before == 0)[:20]] = 1
    a, b = stats.estimate(metric(before)), stats.estimate(metric(after))
    assert b.low < a.value < b.high
    assert stats.compare(metric(before), metric(after)).separable


def test_flips_that_come_from_few_images_are_not_separable():
    change = np.zeros(200)
    change[:10] = 1  # all ten gained items show one image
    before, after = np.zeros(200), change
    clusters = np.repeat(np.arange(20), 10)
    assert stats.compare(metric(before), metric(after)).separable
    together = stats.compare(*(metric(v, clusters=clusters) for v in (before, after)))
    assert together.p_value < 0.01 and not together.separable


def test_items_are_paired_by_their_id():
    a = metric([1, 0, 0], items=np.array(["x", "y", "z"]))
    b = metric([0, 1], items=np.array(["z", "x"]))
    found = stats.compare(a, b)
    assert (found.n, found.gained, found.lost) == (2, 0, 0)
    with pytest.raises(ValueError, match="no item in common"):
        stats.compare(a, metric([1], items=np.array(["w"])))
    with pytest.raises(ValueError, match="twice"):
        stats.compare(a, metric([1, 1], items=np.array(["x", "x"])))


def test_the_same_call_gives_the_same_numbers():
    values = np.random.default_rng(0).random(30)
    assert stats.estimate(metric(values)) == stats.estimate(metric(values))
    assert stats.estimate(metric(values), seed=1) != stats.estimate(metric(values))


def test_25_000_captions_take_a_moment():
    hits = np.random.default_rng(0).integers(0, 2, 25_000)
    started = time.perf_counter()
    stats.estimate(metric(hits, clusters=np.repeat(np.arange(5000), 5)))
    assert time.perf_counter() - started < 1
