"""The key table and reading part of a layout; the rest is tested through the layouts."""

import numpy as np
import pytest
from interop import tiny

from negclip_jax.interop import huggingface, openai, parameters
from negclip_jax.interop.files import CheckpointError, StoredTensor


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return tiny.load(tiny.saved(tmp_path_factory.mktemp("hf")))


def stored(places, take):
    return {
        name: StoredTensor(slot.shape, "float32", lambda name=name: take(name))
        for name, slot in places.items()
    }


def read(tensors, config, keys):
    return parameters.read_params(
        tensors, keys, config, where="here", authority="the model", advice="Look again."
    )


def test_a_part_of_a_layout_is_read_as_a_part_of_the_tree(loaded):
    config, params = loaded
    tensors = stored(*parameters.export_tensors(params, config, openai.KEYS))
    part = {key.name.split(".")[0] for key in openai.TEXT_KEYS}
    text = {name: t for name, t in tensors.items() if name.split(".")[0] in part}
    result = read(text, config, openai.TEXT_KEYS)
    assert set(result) == {"text", "text_projection"}
    tiny.assert_equal_params(result["text"], params["text"])
    tiny.assert_equal_params(read(tensors, config, openai.KEYS), params)


def test_values_of_a_fused_tensor_that_are_not_finite(loaded):
    config, params = loaded
    places, take = parameters.export_tensors(params, config, openai.KEYS)
    name = "transformer.resblocks.1.attn.in_proj_bias"
    bad = np.array(take(name))
    bad[[0, 40, 95]] = np.nan  # one of the query, one of the key, one of the value
    tensors = stored(places, take) | {name: StoredTensor(bad.shape, "float32", lambda: bad)}
    with pytest.raises(CheckpointError) as caught:
        read(tensors, config, openai.KEYS)
    assert f"with NaN or infinity (1): {name} (3 of 96 values)" in str(caught.value)
    assert str(caught.value).endswith("Look again.")


@pytest.fixture(scope="module")
def slots(tiny_config):
    return parameters.slots(huggingface.KEYS, tiny_config)


def test_table_covers_every_parameter_once(tiny_config, slots):
    """Number of elements and of tensors: 14 and 16 a block (research/weights.md, section 1)."""
    shapes = parameters.expected_shapes(tiny_config)
    assert {path for slot in slots.values() for path in slot.paths} == set(shapes)
    assert sum(s.size for s in slots.values()) == sum(np.prod(s) for s in shapes.values())
    assert len(slots) == 14 + 16 * (tiny_config.text.layers + tiny_config.vision.layers)


def test_put_and_take_are_inverse(tiny_config, slots):
    rng = np.random.default_rng(0)
    theirs = {name: rng.standard_normal(s.shape).astype(np.float32) for name, s in slots.items()}
    params = {
        path: np.full(shape, np.nan, np.float32)
        for path, shape in parameters.expected_shapes(tiny_config).items()
    }
    for name, slot in slots.items():
        slot.put(params, theirs[name])
    assert not any(np.isnan(array).any() for array in params.values())
    for name, slot in slots.items():
        np.testing.assert_array_equal(slot.take(params), theirs[name])


def test_axes():
    conv = parameters.Key("conv", "conv", parameters.CONV)
    (slot,) = parameters.expanded(conv, {"conv": (8, 6, 3, 48)})
    assert slot.shape == (48, 3, 8, 6)
    stacked = parameters.Key("layers.{layer}.weight", "kernel", parameters.LINEAR)
    slots = parameters.expanded(stacked, {"kernel": (2, 5, 7)})
    assert [(s.name, s.layer, s.shape) for s in slots] == [
        ("layers.0.weight", 0, (7, 5)),
        ("layers.1.weight", 1, (7, 5)),
    ]


def test_fused_tensors_come_apart_in_order():
    key = parameters.Key("layers.{layer}.qkv", ("q", "k", "v"), parameters.LINEAR)
    _, slot = parameters.expanded(key, dict.fromkeys("qkv", (2, 5, 7)))
    assert slot.shape == (21, 5)
    params = {name: np.zeros((2, 5, 7), np.float32) for name in "qkv"}
    fused = np.arange(105, dtype=np.float32).reshape(21, 5)
    slot.put(params, fused)
    np.testing.assert_array_equal(params["k"][1], fused[7:14].T)
    assert not params["k"][0].any()
    np.testing.assert_array_equal(slot.take(params), fused)
