"""Wilson's interval against published and independent values."""

import pytest
from scipy.stats import binomtest

from data_gen.intervals import wilson


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 20), (1, 20), (10, 20), (20, 20), (428, 534)])
def test_interval_equals_scipys(k, n):
    share = wilson(k, n)
    expected = binomtest(k, n).proportion_ci(method="wilson")
    assert share.rate == k / n
    assert (share.low, share.high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert share.low <= share.rate <= share.high


def test_nothing_to_judge():
    assert wilson(0, 0)[2:] == (None, None, None)
    assert str(wilson(0, 0)) == "none to judge"
    assert str(wilson(1, 20)) == "5.0 % [0.9, 23.6] (1 of 20)"
