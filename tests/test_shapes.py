"""Shapes in annotations: checked in tests, complete, in agreement with names, and without cost."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shapes
from jaxtyping import Float, Int, TypeCheckError, jaxtyped
from test_architecture import SOURCES, imports, is_inside, module_name, parse

from evals import scoring
from negclip_jax.data.packing import Ragged
from negclip_jax.embeddings.store import first_of_equals
from negclip_jax.models.transformer import take
from negclip_jax.training.objectives import contrastive_loss

SHAPED = [path for path in SOURCES if is_inside(module_name(path), shapes.MODULES)]
KINDS = re.compile(r"(Shaped|Bool|Float|Int|UInt|Integer|Num)\d*")
SUFFIX = re.compile(r"_([A-Z0-9]\w*?(?:x[A-Z0-9]\w*?)*)$")


@pytest.fixture(autouse=True)
def every_call_is_checked(monkeypatch):
    monkeypatch.setattr(shapes, "MOST_CALLS", float("inf"))


@pytest.fixture
def ragged() -> Ragged:
    return Ragged(np.arange(5, dtype=np.int32), np.array([0, 2, 5]))


def test_the_right_shapes_and_dtypes_pass(ragged):
    scale, image, text = jnp.float32(1), jnp.ones((4, 8)), jnp.ones((4, 2, 8))
    truth = jnp.array([[1, -1]] * 4, jnp.int8)
    assert contrastive_loss(image, text, scale, truth_BxM=truth)[0].shape == ()
    assert ragged.padded(np.array([1, 0]), 4).shape == (2, 4)


WRONG = {
    "D differs": lambda: contrastive_loss(jnp.ones((4, 8)), jnp.ones((4, 6)), jnp.float32(1)),
    "B differs, under jit": lambda: jax.jit(contrastive_loss)(
        jnp.ones((4, 8)), jnp.ones((3, 8)), jnp.float32(1)
    ),
    "a scale of one axis": lambda: contrastive_loss(
        jnp.ones((4, 8)), jnp.ones((4, 8)), jnp.ones(1)
    ),
    "a mask of floats": lambda: contrastive_loss(
        jnp.ones((4, 8)), jnp.ones((4, 8)), jnp.float32(1), mask_B=jnp.ones(4)
    ),
    "rows of another batch": lambda: take(jnp.ones((2, 3, 4)), jnp.zeros((3, 1), int)),
    "lengths in place of offsets": lambda: Ragged(np.arange(5), np.array([2.0, 3.0])),
    "answers of another list": lambda: scoring.credit(np.ones((3, 2)), np.zeros(2, int)),
    "probabilities in place of answers": lambda: scoring.credit(np.ones((3, 2)), np.ones(3)),
    "keys of 15 bytes": lambda: first_of_equals(np.zeros((4, 15), np.uint8)),
}


def test_so_many_calls_of_a_function_are_checked(monkeypatch):
    monkeypatch.setattr(shapes, "MOST_CALLS", 0)
    assert scoring.credit(np.ones((3, 2)), np.zeros(2, int)[:1]).shape == (3,)


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_a_wrong_shape_or_dtype_is_an_error(call):
    with pytest.raises(TypeCheckError, match=r"typechecking parameter|checking the parameters"):
        call()


@jaxtyped(typechecker=shapes.check)
def _rows(x: Float[jax.Array, "B D"], ours: float = 0.0) -> Int[np.ndarray, " B"]:
    return np.zeros(x.shape[0] + int(ours), int)


def test_what_is_checked():
    """What is returned too; JAX's arrays or those that stand for them; nothing but arrays."""
    for x in (jnp.ones((3, 2)), np.ones((3, 2)), jax.ShapeDtypeStruct((3, 2), jnp.bfloat16)):
        assert len(_rows(x, np.float32(0))) == 3  # which is no float, as annotated
    with pytest.raises(TypeCheckError, match="return value"):
        _rows(jnp.ones((3, 2)), 1)


def annotations(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """Names and annotations of what is public: parameters, results (of `name`), fields."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if isinstance(node, ast.ClassDef):
                for field in node.body:
                    if isinstance(field, ast.AnnAssign):
                        yield field.target.id, field.annotation
            for function in [node] if isinstance(node, ast.FunctionDef) else node.body:
                if isinstance(function, ast.FunctionDef) and not re.match("_[^_]", function.name):
                    given = function.args
                    for a in [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg]:
                        if a is not None and a.annotation is not None:
                            yield a.arg, a.annotation
                    if function.returns is not None:
                        yield function.name, function.returns


def kind_of(node: ast.AST) -> bool:
    """Whether this is `Float[Array, "B D"]` or another dtype's."""
    return isinstance(node, ast.Subscript) and bool(KINDS.fullmatch(ast.unparse(node.value)))


def bare(node: ast.AST) -> bool:
    """Whether an annotation holds an array without its shape; dicts hold several of several."""
    if kind_of(node) or ast.unparse(node).startswith("dict[str, "):
        return False
    if ast.unparse(node) in ("Array", "jax.Array", "np.ndarray"):
        return True
    return any(map(bare, ast.iter_child_nodes(node)))


@pytest.mark.parametrize("path", SHAPED, ids=map(str, SHAPED))
def test_every_public_array_says_its_shape(path):
    assert not [f"{name}: {ast.unparse(a)}" for name, a in annotations(parse(path)) if bare(a)]


def shapes_of(node: ast.expr) -> list[str]:
    found = [n.slice.elts[1].value for n in ast.walk(node) if kind_of(n)]
    return [re.sub(r"[*#]", "", shape).strip() for shape in found]


@pytest.mark.parametrize("path", SHAPED, ids=map(str, SHAPED))
def test_names_and_annotations_say_one_shape(path):
    wrong = [
        f"{name}: {ast.unparse(annotation)}"
        for name, annotation in annotations(parse(path))
        if (suffix := SUFFIX.search(name)) and (said := shapes_of(annotation))
        if suffix[1].replace("x", " ") not in said
    ]
    assert not wrong


def test_these_checks_see_what_is_wrong():
    tree = ast.parse(
        "def f(x: np.ndarray | None, y_BxD: Float[Array, 'B M'], z_B: Int[Array, ' B'],"
        " u: dict[str, Array]) -> tuple[int, jax.Array]: ..."
    )
    assert [name for name, a in annotations(tree) if bare(a)] == ["x", "f"]
    assert shapes_of(dict(annotations(tree))["y_BxD"]) == ["B M"]
    assert SUFFIX.search("y_BxD")[1] == "BxD" and SUFFIX.search("z_B")[1] == "B"
    assert len(SHAPED) > 30


def test_only_tests_check_them():
    """No decorator: a user's calls are as fast as without annotations."""
    for path in SOURCES:
        names = {name for name, _ in imports(parse(Path(path)))}
        assert not {n for n in names if is_inside(n, ("beartype", "typeguard"))}, path
        assert all(KINDS.fullmatch(name[10:]) for name in names if is_inside(name, ("jaxtyping",)))
