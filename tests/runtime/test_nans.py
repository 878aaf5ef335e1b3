"""The operation that made a NaN is named with its line, wherever it stands."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from negclip_jax.runtime import nans

ONE = jnp.ones((3,))


def line_of(function, text: str) -> str:
    """ "FILE:LINE in NAME" of a line of a function of this file."""
    lines, first = inspect.getsourcelines(function)
    number = next(i for i, line in enumerate(lines) if text in line)
    return f"test_nans.py:{first + number} in {function.__name__}"


def straight(x):
    y = x - 2
    return jnp.log(y) * 3


def called(x):
    return jax.jit(straight)(x) + 1


def looped(x):
    def turn(carry, row):
        return carry - jnp.sqrt(row), carry  # of the third row

    return jax.lax.scan(turn, 0.0, jnp.stack([x[0], x[1], -x[2]]))[0]


def backwards(x):
    return jax.grad(lambda v: jnp.where(v > 0, jnp.sqrt(v), 0).sum())(x - 1)


def recomputed(x):
    block = jax.checkpoint(lambda v: jnp.sin(jnp.arccos(v * 2)))
    return jax.grad(lambda v: block(v).sum())(x)


def branched(x):
    return jax.lax.cond(x.sum() > 0, lambda v: jnp.log(-v), lambda v: v, x)


@jax.custom_vjp
def own_gradient(x):
    return jnp.arcsin(x + 1)


own_gradient.defvjp(lambda x: (own_gradient(x), None), lambda kept, g: (g,))


def overflow(x):
    return x / jnp.exp(x * 1000) * jnp.exp(x * 1000)


@pytest.mark.parametrize(
    ("function", "primitive", "place", "text"),
    [
        (straight, "log of float32[3] (-1 to -1)", straight, "jnp.log"),
        (called, "log of float32[3] (-1 to -1)", straight, "jnp.log"),
        (looped, "sqrt of float32[] (-1 to -1)", None, "in looped.<locals>.turn"),
        (backwards, "mul of float32[3] (0 to 0), float32[3] (inf to inf)", None, "backwards.<loc"),
        (branched, "log of float32[3] (-1 to -1)", None, "in branched.<locals>.<lambda>"),
        (own_gradient, "asin of float32[3] (2 to 2)", None, "in own_gradient"),
        (overflow, "mul of float32[3] (0 to 0), float32[3] (inf to inf)", overflow, "return"),
    ],
)
def test_it_is_named_with_operands_and_line(function, primitive, place, text):
    assert not np.isfinite(function(ONE)).all()
    found = nans.origin(function, ONE)
    assert primitive in found
    assert (line_of(place, text) if place else text) in found


def test_the_backward_pass_is_said_and_blocks_that_are_recomputed_are_entered():
    assert nans.origin(backwards, ONE).endswith(", backward pass")
    assert "acos of float32[3] (2 to 2)" in nans.origin(recomputed, ONE)


def test_what_is_masked_or_leads_elsewhere_does_not_count():
    """`jax_debug_nans` would stop at the first of these three."""

    def result(x):
        unread = jnp.log(x - 2)
        masked = jnp.where(x > 5, jnp.log(x - 3), 0)
        return (masked + jnp.sqrt(-x)).sum(), unread

    found = nans.origin(lambda x: result(x)[0], ONE)
    assert "sqrt of float32[3] (-1 to -1)" in found
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="log"):
        result(ONE)


def test_infinities_count_where_nothing_is_nan():
    assert "exp of float32[3] (1000 to 1000)" in nans.origin(lambda x: jnp.exp(x * 1000), ONE)


def test_an_argument_that_holds_one_is_named():
    arguments = {"params": {"kernel": ONE * jnp.nan}}
    found = nans.origin(lambda state, x: state["params"]["kernel"] @ x, arguments, ONE)
    assert found == "argument 0.params.kernel of the step"


def test_finite_results_have_none():
    assert nans.origin(lambda x: jnp.exp(x), ONE) is None
