"""Compiled programs are read as they run: loops as often as they turn, messages by their rings."""

import jax
import jax.numpy as jnp
import pytest

from bench.hlo import Collective, Program, _group_size
from negclip_jax.runtime import sharding

LAYERS, WIDTH, ROWS = 5, 16, 32


def compiled(loss, mesh, *, unroll: bool = False):
    """Gradient by stacked layers of `loss(layers, rows)`, on rows that are split over the mesh."""
    tree = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32)
    places = sharding.of_parameters(mesh, tree, "fsdp", min_shard_size=1)
    layers = jax.ShapeDtypeStruct(tree.shape, tree.dtype, sharding=places)
    rows = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32, sharding=sharding.batch(mesh))
    gradient = jax.grad(lambda w, x: loss(w, x, unroll))
    return jax.jit(gradient, out_shardings=places).lower(layers, rows).compile()


def looped(layers, rows, unroll):
    rows, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), rows, layers, unroll=unroll)
    return (rows**2).sum()


@pytest.fixture(scope="module")
def data_parallel():
    mesh = sharding.make_mesh(data=8, fsdp=1)
    return compiled(looped, mesh)


def test_a_gradient_that_is_summed_in_a_loop_counts_once_a_turn(data_parallel):
    program = Program(data_parallel.as_text(), 8)
    (message,) = [c for c in program.collectives if c.size > 4]
    assert message == Collective("all-reduce", 4 * WIDTH**2, devices=8, times=LAYERS, loops=1)
    assert message.sent == LAYERS * 2 * 7 / 8 * 4 * WIDTH**2


def test_products_in_a_loop_count_once_a_turn(data_parallel):
    forward = 2 * ROWS // 8 * WIDTH**2
    expected = LAYERS * forward + LAYERS * 2 * forward  # the first layer's input gradient too
    assert Program(data_parallel.as_text(), 8).matmul_flops == pytest.approx(expected, rel=0.1)


def test_products_are_those_of_xla_where_nothing_loops():
    mesh = sharding.make_mesh(data=8, fsdp=1)
    unrolled, once = compiled(looped, mesh, unroll=True), compiled(looped, mesh)
    program = Program(unrolled.as_text(), 8)
    assert all(c.loops == 0 and c.times == 1 for c in program.collectives)
    counted = unrolled.cost_analysis()["flops"]  # with a few elementwise operations
    assert program.matmul_flops < counted < 1.2 * program.matmul_flops
    assert once.cost_analysis()["flops"] < 0.5 * counted, "XLA counts a loop's body once"


def test_groups_of_devices_are_those_of_the_mesh():
    program = Program(compiled(looped, sharding.make_mesh(data=2, fsdp=4)).as_text(), 8)
    gathers = [c for c in program.collectives if c.kind == "all-gather"]
    assert gathers and {c.devices for c in gathers} == {4}
    assert {c.times for c in gathers} == {LAYERS}
    whole = 4 * WIDTH**2
    assert all(c.size == whole and c.sent == LAYERS * whole * 3 / 4 for c in gathers)


@pytest.mark.parametrize(
    ("attributes", "devices"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", 2),
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups=mesh['axis_0'=8] {'axis_0'}", 8),
        ("replica_groups=mesh['a'=1,'b'=2,'c'=4], device_ids=([4,2]T(1,0)) {'b'}, dims={1}", 2),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", 8),
        ("replica_groups=mesh['a'=8] {'a':(2)4}", 4),
        ("replica_groups={}", 8),
    ],
)
def test_every_way_to_write_groups(attributes, devices):
    assert _group_size(f", channel_id=1, {attributes}, use_global_device_ids=true", 8) == devices


@pytest.mark.parametrize(
    ("kind", "bytes_sent"),
    [
        ("all-reduce", 2 * 3 / 4 * 100),
        ("all-gather", 3 / 4 * 100),
        ("reduce-scatter", 3 * 100),  # the result is a quarter of what was reduced
        ("all-to-all", 3 / 4 * 100),
        ("collective-permute", 100),
    ],
)
def test_bytes_of_rings(kind, bytes_sent):
    assert Collective(kind, 100, devices=4, times=3, loops=1).sent == 3 * bytes_sent


TUPLE = """HloModule m

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %s = f32[] add(%x, %y)
}

ENTRY %main (p: f32[4,8], q: bf16[6]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  %q = bf16[6]{0} parameter(1)
  %r = (f32[4,8]{1,0:T(8,128)}, bf16[6]{0}, pred[]) KIND(%p, %q), replica_groups={}, to_apply=%add
  ROOT %g = f32[4,8]{1,0} get-tuple-element(%r), index=0
}
"""


def test_a_message_of_several_arrays():
    (message,) = Program(TUPLE.replace("KIND", "all-reduce"), 8).collectives
    assert message == Collective("all-reduce", 4 * 32 + 2 * 6 + 1, devices=8, times=1, loops=0)


def test_what_cannot_be_read_is_an_error():
    with pytest.raises(ValueError, match="no entry"):
        Program("HloModule m\n", 8)
    with pytest.raises(ValueError, match="r is asynchronous"):
        _ = Program(TUPLE.replace("KIND", "all-reduce-start"), 8).collectives
    unknown = jax.jit(lambda x: jax.lax.while_loop(lambda y: y < 5, lambda y: y * 2, x))
    program = Program(unknown.lower(jnp.float32(1)).compile().as_text(), 1)
    with pytest.raises(ValueError, match="does not know how often while"):
        _ = program.collectives
