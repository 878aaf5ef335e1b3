"""What calls are checked against while tests run: the shapes and dtypes of annotations."""

import functools
import itertools
import operator
import types
from collections.abc import Callable
from typing import Any, TypeVar, get_args, get_origin

import beartype
import jax
import jaxtyping
from jaxtyping import AbstractArray

# Modules whose functions are checked. The import hook reaches what is imported after it.
MODULES = (
    "evals.scoring",
    "negclip_jax.data",
    "negclip_jax.embeddings",
    "negclip_jax.models",
    "negclip_jax.pretrained",
    "negclip_jax.training.objectives",
)

# Of each function and process so many calls are checked: a loop over rows has seen enough by then.
MOST_CALLS = 200


def has_shape(hint: Any) -> bool:
    """Whether an annotation says the shape of an array somewhere."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    inner = hint.__constraints__ if isinstance(hint, TypeVar) else get_args(hint)
    return get_origin(hint) is not Callable and any(map(has_shape, inner))


def of_any_library(hint: Any) -> Any:
    """The annotation with whatever has a shape and a dtype where it names JAX's arrays.

    Like JAX's own functions ours take NumPy arrays too, and those of sizes alone abstract ones.
    """
    if hint is jax.Array:
        return Any
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return hint.dtype[Any, hint.dim_str] if hint.array_type is jax.Array else hint
    inner = hint.__constraints__ if isinstance(hint, TypeVar) else get_args(hint)
    inner = tuple(map(of_any_library, inner))
    if isinstance(hint, TypeVar | types.UnionType) and inner:
        return functools.reduce(operator.or_, inner)
    return get_origin(hint)[inner] if has_shape(hint) else hint


def check(function: Callable) -> Callable:
    """For `jaxtyping.jaxtyped`: beartype's check of the annotations with shapes."""
    hints = function.__annotations__
    hints = {name: of_any_library(hint) for name, hint in hints.items() if has_shape(hint)}
    function.__annotations__ = hints
    return beartype.beartype(function) if hints else function


def install() -> None:
    """Checks what is imported from now on of `MODULES`, where a function or a class has shapes.

    jaxtyping's hook wraps every function, at ten microseconds a call, which loops over a million
    names or rows would take for nothing.
    """
    wrap = jaxtyping.jaxtyped

    def jaxtyped(*args: Any, **options: Any) -> Any:
        decorate = wrap(*args, **options)
        if args:
            return decorate

        def decorated(x: Any) -> Any:
            hints = vars(x).get("__annotations__", {}) if isinstance(x, type) else x.__annotations__
            if not any(map(has_shape, hints.values())):
                return x
            checked, calls = decorate(x), itertools.count()
            if isinstance(x, type):
                return checked

            @functools.wraps(x)
            def first_ones(*args: Any, **kwargs: Any) -> Any:
                return (checked if next(calls) < MOST_CALLS else x)(*args, **kwargs)

            return first_ones

        return decorated

    jaxtyping.jaxtyped = jaxtyped
    jaxtyping.install_import_hook(MODULES, "shapes.check")
