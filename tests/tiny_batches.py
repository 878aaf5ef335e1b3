"""What tests of the loader share."""

import numpy as np

BATCH = 12  # 80 pairs: 6 full batches an epoch and 8 pairs left over


def batches(loader, start, stop, rows=None) -> list[dict]:
    return list(loader.batches(start, stop, rows))


def assert_same(a: list[dict], b: list[dict]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            assert x[name].dtype == y[name].dtype
            np.testing.assert_array_equal(x[name], y[name], err_msg=name)
