"""The yardstick."""

import numpy as np

from bench.matmul import matmul_rate


def test_the_matmul_rate_is_of_the_best_product():
    calls = []
    rate = matmul_rate(lambda a, b: calls.append(a.shape), np.asarray)
    assert len(calls) == 6 and calls[0] == (2048, 2048)
    assert rate > 1e12  # nothing was multiplied, which takes no time
