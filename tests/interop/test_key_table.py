import numpy as np
import pytest

from negclip_jax.interop import huggingface, key_table


@pytest.fixture(scope="module")
def slots(tiny_config):
    return key_table.slots(huggingface.KEYS, tiny_config)


def test_table_covers_every_parameter_once(tiny_config, slots):
    """Number of elements and of tensors: 14 and 16 a block (research/weights.md, section 1)."""
    shapes = key_table.expected_shapes(tiny_config)
    assert {path for slot in slots.values() for path in slot.paths} == set(shapes)
    assert sum(s.size for s in slots.values()) == sum(np.prod(s) for s in shapes.values())
    assert len(slots) == 14 + 16 * (tiny_config.text.layers + tiny_config.vision.layers)


def test_put_and_take_are_inverse(tiny_config, slots):
    rng = np.random.default_rng(0)
    theirs = {name: rng.standard_normal(s.shape).astype(np.float32) for name, s in slots.items()}
    params = {
        path: np.full(shape, np.nan, np.float32)
        for path, shape in key_table.expected_shapes(tiny_config).items()
    }
    for name, slot in slots.items():
        slot.put(params, theirs[name])
    assert not any(np.isnan(array).any() for array in params.values())
    for name, slot in slots.items():
        np.testing.assert_array_equal(slot.take(params), theirs[name])


def test_axes():
    conv = key_table.Key("conv", "conv", key_table.CONV)
    (slot,) = key_table._expand(conv, {"conv": (8, 6, 3, 48)})
    assert slot.shape == (48, 3, 8, 6)
    stacked = key_table.Key("layers.{layer}.weight", "kernel", key_table.LINEAR)
    slots = key_table._expand(stacked, {"kernel": (2, 5, 7)})
    assert [(s.name, s.layer, s.shape) for s in slots] == [
        ("layers.0.weight", 0, (7, 5)),
        ("layers.1.weight", 1, (7, 5)),
    ]


def test_fused_tensors_come_apart_in_order():
    key = key_table.Key("layers.{layer}.qkv", ("q", "k", "v"), key_table.LINEAR)
    _, slot = key_table._expand(key, dict.fromkeys("qkv", (2, 5, 7)))
    assert slot.shape == (21, 5)
    params = {name: np.zeros((2, 5, 7), np.float32) for name in "qkv"}
    fused = np.arange(105, dtype=np.float32).reshape(21, 5)
    slot.put(params, fused)
    np.testing.assert_array_equal(params["k"][1], fused[7:14].T)
    assert not params["k"][0].any()
    np.testing.assert_array_equal(slot.take(params), fused)
