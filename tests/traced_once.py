"""Train steps of equal settings are one function, so that JAX traces and lowers each only once.

A run makes its step of closures, and JAX knows a function by its identity: of a process that trains
a hundred tiny runs, half of the time went into tracing the same few steps again and again.
"""

import functools
import sys
import types
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

# What is traced: where a test has replaced something there, the step is another one.
_TRACED = ("models", "training.step", "training.objectives", "training.patterns")


def of_equal_settings(make: Callable[..., Callable]) -> Callable[..., Callable]:
    """`make`, returning the function that it returned before for arguments that are equal."""
    made: dict[Hashable, tuple] = {}

    @functools.wraps(make)
    def known(*args: Any, **kwargs: Any) -> Callable:
        step, code = make(*args, **kwargs), _code()
        # The objects are kept, so that their numbers stay theirs.
        return made.setdefault((_value(step), *map(id, code)), (step, code))[0]

    return known


def _code() -> list:
    """Everything that the traced modules hold, and what is in their classes and tables."""
    prefixes = tuple(f"negclip_jax.{name}" for name in _TRACED)
    modules = [sys.modules[name] for name in sorted(sys.modules) if name.startswith(prefixes)]
    found = [x for module in modules for x in vars(module).values()]
    for x in found[:]:
        found += vars(x).values() if isinstance(x, type) else x.values() if type(x) is dict else ()
    return found


def _value(x: Any) -> Hashable:
    """What a function does, and an object is, by value."""
    match x:
        case types.FunctionType():
            cells = [cell.cell_contents for cell in x.__closure__ or ()]
            return x.__code__, *map(_value, [cells, x.__defaults__, x.__kwdefaults__])
        case functools.partial():
            return "partial", *map(_value, [x.func, x.args, x.keywords])
        case dict():
            return "dict", *((key, _value(value)) for key, value in x.items())
        case list() | tuple():
            return type(x), *map(_value, x)
        case np.ndarray():
            return x.dtype.str, x.shape, x.tobytes()
    hash(x)  # TypeError, rather than one step for two settings
    return type(x), x
