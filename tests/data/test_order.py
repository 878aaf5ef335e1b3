"""Orders of more examples than a permutation is kept of: each once, and as random as a shuffle."""

import numpy as np
import pytest

from negclip_jax.data import order

MANY = 2**23  # twice what is kept, and the hardest case: no step is walked


def deviations(n: int, seed: int) -> dict[str, float]:
    """Chi-square statistics of two epochs, in standard deviations from that of a fair shuffle."""
    place = np.arange(n)
    first, second = (order.permuted(place, n, seed, epoch) for epoch in (0, 1))

    def of_table(a: np.ndarray, b: np.ndarray) -> float:
        counts = np.bincount(a * 64 + b, minlength=64 * 64)
        return chi_square(counts, 63 * 63)

    def chi_square(counts: np.ndarray, freedom: int) -> float:
        expected = counts.mean()
        statistic = ((counts - expected) ** 2).sum() / expected
        return (statistic - freedom) / np.sqrt(2 * freedom)

    block, low = place * 64 // n, place % 64
    distance = np.diff(first) % n * 256 // n
    return {
        "block to block": of_table(block, first * 64 // n),
        "low bits to low bits": of_table(low, first % 64),
        "low bits to block": of_table(low, first * 64 // n),
        "epoch to epoch": of_table(first * 64 // n, second * 64 // n),
        "distance of neighbours": chi_square(np.bincount(distance, minlength=256), 255),
    }


@pytest.mark.parametrize(
    "n", [1_000_003, *(pytest.param(n, marks=pytest.mark.long) for n in (5_000_011, MANY))]
)
def test_an_order_is_as_random_as_a_shuffle(n, monkeypatch):
    assert all(abs(z) < 4 for z in deviations(n, seed=3).values()), deviations(n, seed=3)
    monkeypatch.setattr(order, "_ROUNDS", 2)  # the test sees a network that mixes too little
    assert max(deviations(n, seed=3).values()) > 100


@pytest.mark.parametrize("n", [1, 2, 3, 5, 64, 65, 1000, 2**22 + 1])
def test_each_place_is_taken_once(n):
    found = order.permuted(np.arange(n), n, seed=-5)
    assert found.dtype == np.int64 and np.array_equal(np.sort(found), np.arange(n))
    assert np.array_equal(order.permuted(np.array([n - 1]), n, seed=-5), found[-1:])


def test_an_epoch_in_parts_is_the_same(monkeypatch):
    n = 300_000
    monkeypatch.setattr(order, "MOST_KEPT", 1000)
    whole = order.drawn(n, 7, 2, slice(0, n + 24), 0.25, shuffle=True)
    assert [x.dtype for x in whole] == [np.int64, np.bool_, np.uint64]
    assert np.array_equal(np.sort(whole[0][:n]), np.arange(n)) and (whole[0][n:] == -1).all()
    for places in (slice(65_000, 66_100), slice(131_072, 131_080), slice(0, 1)):
        part = order.drawn(n, 7, 2, places, 0.25, shuffle=True)
        for a, b in zip(part, whole, strict=True):
            assert np.array_equal(a, b[places])
    assert abs(whole[1].mean() - 0.25) < 0.005
    assert len(np.unique(whole[2][:n])) == n
    # Choices belong to the pair: another order of the same epoch shows the same.
    pairs, shows, bits = order.drawn(n, 7, 2, slice(0, n), 0.25, shuffle=False)
    assert np.array_equal(pairs, np.arange(n))
    assert np.array_equal(shows[whole[0][:n]], whole[1][:n])
    assert np.array_equal(bits[whole[0][:n]], whole[2][:n])
    others = [order.drawn(n, *x, slice(0, 9), 0.25, shuffle=True) for x in ((7, 3), (8, 2))]
    for other in others:
        assert not np.array_equal(other[0], whole[0][:9])
        assert not set(other[2].tolist()) & set(whole[2].tolist())


@pytest.mark.parametrize("most", [0, 2**22])
def test_as_many_are_held_out_as_are_asked_for(monkeypatch, most):
    monkeypatch.setattr(order, "MOST_KEPT", most)
    chosen = order.held_out(50_000, 10_000, 42)
    assert chosen.sum() == 10_000 and np.array_equal(chosen, order.held_out(50_000, 10_000, 42))
    shared = (chosen & order.held_out(50_000, 10_000, 43)).sum()
    assert abs(shared - 2000) < 200
