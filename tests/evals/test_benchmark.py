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


def test_items_are_paired_by_their_id():
    """Two models may have scored other items, in another order."""
    before = Metric("m", np.array([1.0, 0.0, 0.0]), items=np.array(["x", "y", "z"]))
    after = Metric("m", np.array([0.0, 1.0]), items=np.array(["z", "x"]))
    found = after.compare(before)
    assert (found.n, found.gained, found.lost) == (2, 0, 0)
    with pytest.raises(ValueError, match="m: the two models have no item in common"):
        Metric("m", np.ones(1), items=np.array(["w"])).compare(before)
    with pytest.raises(ValueError, match="m: an item occurs twice"):
        Metric("m", np.ones(2), items=np.array(["x", "x"])).compare(before)


def test_weights_and_images_follow_their_items():
    fields = {"items": np.arange(4), "clusters": np.array([0, 0, 1, 1])}
    weights = np.array([1.0, 2.0, 3.0, 4.0])
    before = Metric("m", np.zeros(4), **fields, weights=weights)
    after = Metric("m", np.array([1.0, 0.0]), items=np.array([3, 1]))
    found = after.compare(before)
    assert found.difference == pytest.approx(4 / 6) and found.p_value is None
    assert (
        Metric("m", np.array([0.2, 0.4]), clusters=np.array([0, 1]), unit="prompts")
        .estimate()
        .method
        == "bootstrap over 2 prompts"
    )


def test_no_items_have_no_number():
    with pytest.raises(ValueError, match="m: no items, so there is no number"):
        Metric("m", np.zeros(0)).estimate()


def test_equal_references_are_one_picture():
    assert len({ImageRef("a"), ImageRef("a"), ImageRef("a", (0.0, 0.0, 1.0, 1.0))}) == 2
