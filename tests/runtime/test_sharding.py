"""Meshes, placement of parameters and rows of the batch, and the start over several processes."""

import types

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from negclip_jax.common.errors import InputError, device_errors
from negclip_jax.runtime import sharding


@pytest.mark.parametrize(
    ("data", "fsdp", "shape"),
    [(-1, 1, (8, 1)), (-1, 4, (2, 4)), (4, 2, (4, 2)), (8, 1, (8, 1)), (1, 8, (1, 8))],
)
def test_mesh_over_all_devices(data, fsdp, shape):
    mesh = sharding.make_mesh(data=data, fsdp=fsdp)
    assert mesh.devices.shape == shape
    assert set(mesh.devices.flat) == set(jax.devices())


def test_a_tpu_that_another_process_has_is_not_passed_over(monkeypatch):
    """JAX alone goes on with the CPU (issue 22070 there), a thousand times slower."""
    devices = jax.devices

    def without_the_tpu(platform=None):
        if platform == "tpu":
            raise RuntimeError(
                "Backend 'tpu' failed to initialize: ABORTED: The TPU is already in use by process "
                "with pid 176028. Not attempting to load libtpu.so in this process.. Available "
                "backends are ['cpu']"
            )
        return devices(platform)

    assert sharding.all_devices() == devices()  # here there is none: nothing is said
    monkeypatch.setattr(jax, "devices", without_the_tpu)
    with (
        pytest.raises(InputError, match=r"used by another process \(Backend 'tpu' .* pid 176028"),
        device_errors(),
    ):
        sharding.make_mesh(data=-1, fsdp=1)
    assert sharding.make_mesh(data=-1, fsdp=1, devices=devices()).size == 8


@pytest.mark.parametrize(
    ("platform", "version", "dtype"),
    [
        ("cpu", None, "float32"),
        ("tpu", None, "bfloat16"),
        ("gpu", "9.0", "bfloat16"),
        ("gpu", "12.0", "bfloat16"),
        ("gpu", "8.0", "bfloat16"),
        ("gpu", "7.5", "float32"),
        ("gpu", "gfx90a", "float32"),
    ],
)
def test_bfloat16_where_devices_are_made_for_it(platform, version, dtype):
    device = types.SimpleNamespace(platform=platform)
    if version is not None:
        device.compute_capability = version
    old = types.SimpleNamespace(platform="gpu", compute_capability="7.0")
    for devices, expected in (([device] * 4, dtype), ([device, old], "float32")):
        mesh = types.SimpleNamespace(devices=np.array(devices).reshape(-1, 2))
        assert sharding.fast_dtype(mesh) == expected


def test_one_device_needs_no_setting():
    assert sharding.make_mesh(data=-1, fsdp=1, devices=jax.devices()[:1]).size == 1


@pytest.mark.parametrize(
    ("data", "fsdp", "message"),
    [
        (-1, 3, r"mesh\.fsdp=3 does not divide 8 devices"),
        (-1, 0, r"mesh\.fsdp=0 does not divide 8 devices"),
        (3, 2, r"mesh\.data=3 x mesh\.fsdp=2 is not the number of devices, 8"),
        (0, 1, r"mesh\.data=0 x mesh\.fsdp=1 is not the number of devices, 8"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices(data, fsdp, message):
    with pytest.raises(InputError, match=message):
        sharding.make_mesh(data=data, fsdp=fsdp)


@pytest.fixture
def mesh():
    return sharding.make_mesh(data=2, fsdp=4)


def test_fsdp_splits_the_longest_axis_that_divides(mesh):
    shapes = {
        "wide": (16, 64),
        "tall": (64, 16),
        "odd": (7, 9),
        "partly": (90, 16),  # 90 is longer, but 4 does not divide it
        "stacked": (12, 16, 64),
        "small": (4, 4),
        "scalar": (),
    }
    tree = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    rules = dict.fromkeys(shapes, "fsdp")
    placed = sharding.of_parameters(mesh, tree, rules, min_shard_size=20)
    assert {name: p.spec for name, p in placed.items()} == {
        "wide": P(None, "fsdp"),
        "tall": P("fsdp"),
        "odd": P(),
        "partly": P(None, "fsdp"),
        "stacked": P(None, None, "fsdp"),
        "small": P(),
        "scalar": P(),
    }


def test_a_rule_can_keep_a_parameter_whole(mesh):
    tree = {"a": np.zeros((64, 64)), "b": np.zeros((64, 64))}
    rules = {"a": "replicate", "b": "fsdp"}
    placed = sharding.of_parameters(mesh, tree, rules, min_shard_size=1)
    assert placed["a"].spec == P() and placed["b"].spec == P("fsdp")
    with pytest.raises(InputError, match=r"mesh\.rules: 'shard' is neither 'fsdp' nor"):
        sharding.of_parameters(mesh, tree, rules | {"b": "shard"}, min_shard_size=1)


def test_without_fsdp_devices_everything_is_replicated():
    mesh = sharding.make_mesh(data=8, fsdp=1)
    placed = sharding.of_parameters(
        mesh, {"a": np.zeros((64, 64))}, {"a": "fsdp"}, min_shard_size=1
    )
    assert placed["a"].spec == P()


@pytest.mark.parametrize(
    ("batch_size", "microbatches", "message"),
    [
        (12, 1, r"train\.batch_size=12 is not divisible by 8 devices"),
        (0, 1, r"train\.batch_size=0 is not divisible by 8 devices"),
        (16, 4, r"train\.microbatches=4 does not divide the 2 pairs that each device holds"),
        (16, 0, r"train\.microbatches=0 does not divide"),
    ],
)
def test_a_batch_that_does_not_split(mesh, batch_size, microbatches, message):
    with pytest.raises(InputError, match=message):
        sharding.check_batch(mesh, batch_size, microbatches, "train.batch_size")


def test_a_batch_that_splits(mesh):
    sharding.check_batch(mesh, 32, 4, "train.batch_size")


def test_one_process_feeds_all_rows_and_each_device_gets_its_block(mesh):
    np.testing.assert_array_equal(sharding.local_rows(mesh, 16), np.arange(16))
    batch = sharding.to_global(mesh, {"x": np.arange(32).reshape(16, 2)})
    assert batch["x"].shape == (16, 2)
    blocks = {shard.device.id: np.asarray(shard.data) for shard in batch["x"].addressable_shards}
    assert {block.shape for block in blocks.values()} == {(2, 2)}
    assert sorted(int(block[0, 0]) for block in blocks.values()) == list(range(0, 32, 4))


def test_put_places_host_arrays(mesh):
    tree = {"w": np.arange(64.0, dtype=np.float32).reshape(8, 8), "s": np.float32(2.0)}
    rules = {"w": "fsdp", "s": "fsdp"}
    places = sharding.of_parameters(mesh, tree, rules, min_shard_size=1)
    placed = sharding.put(tree, places)
    np.testing.assert_array_equal(placed["w"], tree["w"])
    assert {s.data.shape for s in placed["w"].addressable_shards} == {(2, 8)}
    assert placed["s"].shape == () and placed["s"].dtype == np.float32


def test_arrays_of_all_processes_are_stacked():
    array = np.arange(6, dtype=np.uint8).reshape(3, 2)
    np.testing.assert_array_equal(sharding.from_all(array), array[None])
    assert sharding.process_place() == (0, 1)


def test_each_device_works_on_its_own_rows_and_sees_those_of_all(mesh):
    def function(shared, rows):
        everything = sharding.gather_rows({"x": rows})["x"]
        first = sharding.first_row(rows)
        return {"own": everything[first + np.arange(2)] * shared, "sum": everything.sum()[None]}

    rows = sharding.to_global(mesh, np.arange(16.0, dtype=np.float32))
    result = jax.jit(sharding.per_device(mesh, function))(np.float32(3), rows)
    np.testing.assert_array_equal(result["own"], 3 * np.arange(16))
    np.testing.assert_array_equal(result["sum"], np.full(8, 120))


@pytest.mark.parametrize("devices", [8, None])
def test_what_is_shared_gets_the_gradient_of_all_rows(mesh, devices):
    def loss(shared, rows):
        squares = sharding.per_device(mesh if devices else None, lambda w, x: (w * x) ** 2)
        return squares(shared, rows).sum()

    rows = np.arange(16.0, dtype=np.float32)
    rows = sharding.to_global(mesh, rows) if devices else rows
    gradient = jax.jit(jax.grad(loss))(np.float32(2), rows)
    assert gradient == 2 * 2 * sum(i**2 for i in range(16))


def test_split_parameters_are_whole_where_they_are_used(mesh):
    tree = {"w": np.arange(64.0, dtype=np.float32).reshape(16, 4)}
    placed = sharding.put(tree, sharding.of_parameters(mesh, tree, {"w": "fsdp"}, min_shard_size=1))
    assert {shard.data.shape for shard in placed["w"].addressable_shards} == {(4, 4)}
    whole = jax.jit(lambda params: sharding.whole(mesh, params))(placed)
    assert whole["w"].sharding.is_fully_replicated
    np.testing.assert_array_equal(whole["w"], tree["w"])
    assert sharding.whole(None, tree) is tree
