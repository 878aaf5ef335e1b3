"""Intervals and paired tests against scipy, textbook values, brute force and simulation."""

import time

import numpy as np
import pytest
from scipy.stats import binomtest

from negclip_jax.common import statistics
from negclip_jax.common.statistics import Share, compare, estimate


@pytest.mark.parametrize(("right", "n"), [(0, 5), (3, 10), (254, 440), (440, 440)])
def test_wilson_is_scipys(right, n):
    expected = binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert statistics.wilson(right, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_plain_right_and_wrong_items_have_wilsons_interval():
    found = estimate([1] * 254 + [0] * 186)
    assert found.method == "Wilson" and found.n == 440
    assert (found.low, found.high) == statistics.wilson(254, 440)
    assert found.value == pytest.approx(254 / 440)


def test_a_tie_is_half_a_right_answer():
    assert estimate([0.5, 0.5, 1.0]).value == pytest.approx(2 / 3)


def test_no_items_have_no_number():
    with pytest.raises(ValueError, match="no items"):
        estimate([])


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
    found = estimate(values, weights=weights, clusters=clusters)
    units = clusters if clustered else np.arange(60)
    low, high = brute_force_bootstrap(values, weights, units)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.01)
    assert found.value == pytest.approx(np.average(values, weights=weights))


def test_items_of_one_image_are_drawn_together():
    """Five equal answers about each image say no more than one: the interval must not shrink."""
    answers = np.random.default_rng(0).integers(0, 2, 100)
    once = estimate(answers)
    naive = estimate(np.repeat(answers, 5))
    found = estimate(np.repeat(answers, 5), clusters=np.repeat(np.arange(100), 5))
    assert found.method == "bootstrap over 100 images"
    width = found.high - found.low
    assert width == pytest.approx(once.high - once.low, rel=0.1)
    assert width > 2 * (naive.high - naive.low)


def test_one_item_an_image_is_no_cluster():
    assert estimate([1, 0, 1], clusters=np.arange(3)).method == "Wilson"


def test_all_right_has_an_interval_all_the_same():
    found = estimate(np.ones(50), clusters=np.repeat(np.arange(10), 5))
    assert (found.low, found.high) == statistics.wilson(10, 10)


def test_macro_mean_by_weights():
    weights = np.array([1 / 3, 1 / 3, 1 / 3, 1])
    assert estimate([1, 1, 1, 0], weights=weights).value == pytest.approx(0.5)


def test_intervals_cover_the_truth():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        found = estimate(rng.random(40) < 0.3)
        covered += found.low <= 0.3 <= found.high
    assert 0.92 <= covered / 300 <= 0.98


def test_mcnemar_is_the_exact_binomial():
    # 8 of 10 changed items one way: 2 x (45 + 10 + 1) / 1024
    assert statistics.mcnemar(8, 2) == pytest.approx(112 / 1024)
    assert statistics.mcnemar(0, 0) == 1.0


def test_comparison_counts_flips_each_way():
    before, after = [1, 1, 0, 0, 0, 0.5], [1, 0, 1, 1, 0, 1]
    found = compare(before, after)
    assert (found.gained, found.lost, found.n) == (3, 1, 6)
    assert found.difference == pytest.approx((1 - 1 + 1 + 0.5) / 6)
    assert found.p_value == pytest.approx(statistics.mcnemar(3, 1)) and not found.separable


def test_a_large_gain_is_separable_and_a_coin_flip_is_not():
    rng = np.random.default_rng(0)
    before = rng.integers(0, 2, 440)
    better = np.where(rng.random(440) < 0.3, 1, before)
    same = np.where(rng.random(440) < 0.3, rng.integers(0, 2, 440), before)
    assert compare(before, better).separable
    assert not compare(before, same).separable


def test_pairing_makes_a_small_gain_visible():
    """20 of 1,000 items gained and none lost: far inside both intervals, and yet certain."""
    before = np.random.default_rng(0).integers(0, 2, 1000)
    after = before.copy()
    after[np.flatnonzero(before == 0)[:20]] = 1
    a, b = estimate(before), estimate(after)
    assert b.low < a.value < b.high
    assert compare(before, after).separable


def test_flips_that_come_from_few_images_are_not_separable():
    change = np.zeros(200)
    change[:10] = 1  # all ten gained items show one image
    before, after = np.zeros(200), change
    clusters = np.repeat(np.arange(20), 10)
    assert compare(before, after).separable
    together = compare(before, after, clusters=clusters)
    assert together.p_value < 0.01 and not together.separable


def test_the_same_call_gives_the_same_numbers():
    values = np.random.default_rng(0).random(30)
    assert estimate(values) == estimate(values)
    assert estimate(values, seed=1) != estimate(values)


def test_25_000_captions_take_a_moment():
    hits = np.random.default_rng(0).integers(0, 2, 25_000)
    started = time.process_time()
    estimate(hits, clusters=np.repeat(np.arange(5000), 5))
    assert time.process_time() - started < 1


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 20), (1, 20), (10, 20), (20, 20), (428, 534)])
def test_a_share_lies_in_its_interval(k, n):
    share = Share.of(k, n)
    expected = binomtest(k, n).proportion_ci(method="wilson")
    assert share.rate == k / n
    assert (share.low, share.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert share.low <= share.rate <= share.high


def test_a_share_of_nothing():
    assert Share.of(0, 0)[2:] == (None, None, None)
    assert str(Share.of(0, 0)) == "none to judge"
    assert str(Share.of(1, 20)) == "5.0 % [0.9, 23.6] (1 of 20)"


def test_numbers_as_text():
    found = {"value": 0.873, "low": 0.8409, "high": 0.9}
    assert statistics.interval_text(found) == "87.3 [84.1, 90.0]"
    assert statistics.interval_text(found, " %") == "87.3 % [84.1, 90.0]"
    assert statistics.interval_text(None) == "-"
    change = {"difference": 0.047, "low": -0.002, "high": 0.096, "gained": 1234, "lost": 194}
    assert statistics.change_text(change | {"separable": True}) == "+4.7 (1,234 up, 194 down)"
    assert statistics.change_text(change | {"separable": False}, interval=True) == (
        "+4.7 [-0.2, +9.6] (1,234 up, 194 down, not separable)"
    )
