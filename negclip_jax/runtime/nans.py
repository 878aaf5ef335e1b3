"""Which operation made the first NaN: a program is evaluated again, one operation at a time.

`jax_debug_nans` stops at the first NaN in any result of a compiled program, also where it is meant
(the metric of what a batch has nothing of) or masked later, and needs the program's arguments,
which a training step gives away. Here only what leads to the given results counts.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

_PACKAGE = Path(__file__).resolve().parents[1]
_JAX = Path(jax.__file__).parent
# Parameters of primitives that call one function with their own arguments.
_CALLED = ("jaxpr", "call_jaxpr", "fun_jaxpr")
IsBad = Callable[[jax.Array], jax.Array]
# Compiled, and both at once: one program for each shape, not eight.
_BAD = jax.jit(lambda x: (jnp.isnan(x).any(), ~jnp.isfinite(x).all()))


def origin(function: Callable, *arguments: Any) -> str | None:
    """The operation behind the first result that is not finite: name, operands, line of code.

    The arguments, trees of arrays, give a result that is not finite. Where one is NaN, infinite
    ones are passed over.

    Returns None where operations that run one by one give finite results, as may be where the
    compiler has fused them.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    flat = jax.tree_util.tree_flatten_with_path(arguments)[0]
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in flat]
    for is_bad in (lambda x: _BAD(x)[0], lambda x: _BAD(x)[1]):
        found = _origin(closed.jaxpr, closed.consts, [x for _, x in flat], is_bad, names)
        if found is not None:
            return found
    return None


def _origin(
    jaxpr: Any, consts: Sequence, inputs: Sequence, is_bad: IsBad, names: Sequence[str] = ()
) -> str | None:
    """What made the first bad result of a program on these inputs; None where none is bad.

    `names`: of the inputs, which may be bad themselves.
    """
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))
    # Of each bad value what made it: it hands that on to what is computed from it.
    made_by = {
        variable: f"argument {name} of the step"
        for variable, name in zip(jaxpr.invars, names, strict=False)
        if _has_bad(values[variable], is_bad)
    }
    last_use = {v: i for i, eqn in enumerate(jaxpr.eqns) for v in eqn.invars if _is_variable(v)}
    for result in filter(_is_variable, jaxpr.outvars):
        last_use[result] = len(jaxpr.eqns)
    for number, eqn in enumerate(jaxpr.eqns):
        operands = [values[v] if _is_variable(v) else v.val for v in eqn.invars]
        read = {v: values[v] for v in eqn.invars if _is_variable(v)}
        alone = jaxpr.replace(constvars=[], invars=[*read], outvars=eqn.outvars, eqns=[eqn])
        results = core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))(*read.values())
        pairs = zip(eqn.outvars, results, strict=True)
        if bad := [variable for variable, x in pairs if _has_bad(x, is_bad)]:
            before = (made_by[v] for v in filter(_is_variable, eqn.invars) if v in made_by)
            made = next(before, None) or _inside(eqn, operands, is_bad)
            made_by |= dict.fromkeys(bad, made or _described(eqn, operands))
        values |= zip(eqn.outvars, results, strict=True)
        for variable in {*filter(_is_variable, eqn.invars), *eqn.outvars}:
            if last_use.get(variable, number) == number:
                del values[variable]  # memory is what a step of a large model lacks
    return next((made_by[v] for v in filter(_is_variable, jaxpr.outvars) if v in made_by), None)


def _inside(eqn: Any, operands: Sequence, is_bad: IsBad) -> str | None:
    """What made the bad result in the function that this operation calls or repeats."""
    if eqn.primitive.name == "scan":
        return _inside_loop(eqn, operands, is_bad)
    if eqn.primitive.name == "cond":
        called = eqn.params["branches"][int(operands[0])]
        return _origin(called.jaxpr, called.consts, operands[1:], is_bad)
    called = next((eqn.params[key] for key in _CALLED if key in eqn.params), None)
    if called is None or eqn.primitive.name == "shard_map":  # inside only a part of the arrays is
        return None
    closed = called if isinstance(called, core.ClosedJaxpr) else core.ClosedJaxpr(called, ())
    return _origin(closed.jaxpr, closed.consts, operands, is_bad)


def _inside_loop(eqn: Any, operands: Sequence, is_bad: IsBad) -> str | None:
    parameters, body = eqn.params, eqn.params["jaxpr"]
    # Operands are constants, what is carried, and rows; versions of JAX count them differently, but
    # what a turn takes or returns of rows has one axis less.
    pairs = list(zip(eqn.invars, body.jaxpr.invars, strict=True))
    rows = sum(v.aval.ndim > inner.aval.ndim for v, inner in pairs)
    results = zip(eqn.outvars, body.jaxpr.outvars, strict=True)
    carried = sum(v.aval.ndim == inner.aval.ndim for v, inner in results)
    cut = len(operands) - rows - carried
    consts, carry, rows = operands[:cut], operands[cut : cut + carried], operands[cut + carried :]
    turn = jax.jit(core.jaxpr_as_fun(body))
    turns = range(parameters["length"])
    for number in reversed(turns) if parameters["reverse"] else turns:
        inputs = [*consts, *carry, *(x[number] for x in rows)]
        results = turn(*inputs)
        if any(_has_bad(x, is_bad) for x in results):
            return _origin(body.jaxpr, body.consts, inputs, is_bad)
        carry = results[:carried]
    return None


def _described(eqn: Any, operands: Sequence) -> str:
    pairs = zip(eqn.invars, operands, strict=True)
    shown = ", ".join(f"{v.aval.str_short()}{_span(x)}" for v, x in pairs)
    is_backward = "transpose(" in str(eqn.source_info.name_stack)
    where = _line(eqn.source_info.traceback)
    return f"{eqn.primitive.name} of {shown}{where}{', backward pass' if is_backward else ''}"


def _span(x: Any) -> str:
    is_number = jnp.issubdtype(jnp.result_type(x), jnp.floating) and jnp.size(x)
    return f" ({float(jnp.min(x)):.4g} to {float(jnp.max(x)):.4g})" if is_number else ""


def _line(traceback: Any) -> str:
    """The innermost line of this package, else the innermost that is not JAX's."""
    frames = [] if traceback is None else traceback.frames
    ours = [f for f in frames if Path(f.file_name).is_relative_to(_PACKAGE)]
    others = [f for f in frames if not Path(f.file_name).is_relative_to(_JAX)]
    for frame in (ours or others)[:1]:
        path = Path(frame.file_name)
        shown = path.relative_to(_PACKAGE.parent) if ours else path.name
        return f" at {shown}:{frame.line_num} in {frame.function_name}"
    return ""


def _has_bad(x: Any, is_bad: IsBad) -> bool:
    is_inexact = jnp.issubdtype(jnp.result_type(x), jnp.inexact)
    return bool(is_inexact and jnp.size(x) and is_bad(x))


def _is_variable(v: Any) -> bool:
    return not isinstance(v, core.Literal)
