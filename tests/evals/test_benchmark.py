"""The shapes that benchmarks are made of."""

import numpy as np
import pytest

from evals.benchmark import Metric
from evals.images import ImageRef


def test_a_metric_is_the_mean_of_its_values():
    assert Metric("m", np.array([1.0, 0.0, 0.5])).mean == 0.5
    assert Metric("m", np.array([1.0, 0.0]), weights=np.array([3.0, 1.0])).mean == 0.75


@pytest.mark.parametrize("field", ["items", "clusters", "weights"])
def test_columns_of_a_metric_are_of_one_length(field):
    with pytest.raises(ValueError, match=f"m: 2 {field}, 3 values"):
        Metric("m", np.zeros(3), **{field: np.ones(2)})


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan])
def test_values_are_shares(value):
    with pytest.raises(ValueError, match=r"m: values must be in \[0, 1\]"):
        Metric("m", np.array([0.5, value]))


def test_equal_references_are_one_picture():
    assert len({ImageRef("a"), ImageRef("a"), ImageRef("a", (0.0, 0.0, 1.0, 1.0))}) == 2
