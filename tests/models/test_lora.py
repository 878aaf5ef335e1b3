"""Adapters merged into the kernels of a tree."""

import jax
import numpy as np
import torch

from negclip_jax.models.lora import fold

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32)


def tree() -> dict:
    """Three stacked layers of 6 x 5 and a single 5 x 7, both adapted, and what is not."""
    stacked = {"kernel": normal(3, 6, 5), "bias": normal(3, 5)}
    return {
        "lora_scale": np.float32(2.5),
        "logit_scale": normal(),
        "blocks": {"q": stacked | {"lora_a": normal(3, 6, 2), "lora_b": normal(3, 2, 5)}},
        "head": {"kernel": normal(5, 7), "lora_a": normal(5, 2), "lora_b": normal(2, 7)},
    }


def test_the_merge_is_the_direct_one_layer_by_layer_to_the_bit():
    params = tree()
    folded = fold(params)
    assert folded.keys() == {"logit_scale", "blocks", "head"}
    assert folded["head"].keys() == {"kernel"} and folded["blocks"]["q"].keys() == {
        "kernel",
        "bias",
    }
    q, head, scale = params["blocks"]["q"], params["head"], np.float32(2.5)
    for layer in range(3):
        direct = q["kernel"][layer] + scale * (q["lora_a"][layer] @ q["lora_b"][layer])
        assert direct.dtype == np.float32
        np.testing.assert_array_equal(folded["blocks"]["q"]["kernel"][layer], direct)
    direct = head["kernel"] + scale * (head["lora_a"] @ head["lora_b"])
    np.testing.assert_array_equal(folded["head"]["kernel"], direct)
    assert folded["blocks"]["q"]["bias"] is q["bias"] and "lora_a" in q


def test_it_is_the_papers_in_the_layout_of_torch():
    """W + (alpha / r) B A with W [out, in]: the same, to the order of a sum of two products."""
    head = tree()["head"]
    weight, a, b = (torch.tensor(head[k].T) for k in ("kernel", "lora_a", "lora_b"))
    expected = (weight + 2.5 * (b @ a)).T.numpy()
    ours = fold({"lora_scale": np.float32(2.5), "head": head})["head"]["kernel"]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


def test_on_devices_and_traced_it_is_the_same():
    params = tree()
    for ours in (fold(jax.device_put(params)), jax.jit(fold)(params)):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6), ours, fold(params))


def test_a_zero_b_changes_no_bit_and_a_tree_without_adapters_stays_itself():
    params = tree()
    params["head"]["lora_b"][:] = 0
    for ours in (fold(params), fold(jax.device_put(params))):
        np.testing.assert_array_equal(ours["head"]["kernel"], params["head"]["kernel"])
    folded = fold(params)
    assert fold(folded) is folded
