"""The rules of ARCHITECTURE.md that a program can check: who imports whom, names, sizes, style."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("negclip_jax", "configs", "data_gen", "evals", "bench", "quickstart")
MAX_FILE_LINES, MAX_FUNCTION_LINES = 600, 100

SOURCES = sorted(
    path.relative_to(ROOT)
    for path in [ROOT / "launch.py", *(p for name in PACKAGES for p in (ROOT / name).rglob("*.py"))]
)
TESTS = sorted(path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py"))


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), filename=str(path))


@functools.cache
def imports(tree: ast.AST) -> tuple[tuple[str, int], ...]:
    """Dotted names that are imported anywhere below `tree`, with their lines."""
    return tuple(_imports(tree))


def _imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def below(folder: str) -> list[Path]:
    return [path for path in SOURCES if str(path) == folder or Path(folder) in path.parents]


def violations(folder: str, forbidden: tuple[str, ...], allowed: tuple[str, ...] = ()) -> list[str]:
    found = []
    for path in below(folder):
        for name, line in imports(parse(path)):
            bad = any(name == f or name.startswith(f + ".") for f in forbidden)
            if bad and path.name not in allowed:
                found.append(f"{path}:{line} imports {name}")
    return found


JAX = ("jax", "flax", "optax", "orbax", "ml_collections")
# The house from the ground up: each room, and the rooms that it may import, itself included.
COMMON = ("negclip_jax.common",)
LANGUAGE = (*COMMON, "negclip_jax.language")
DATA = (*LANGUAGE, "negclip_jax.data")
RUNTIME = (*COMMON, "negclip_jax.runtime")
MODELS = (*COMMON, "negclip_jax.models")
CHECKPOINTS = (*RUNTIME, *MODELS, "negclip_jax.checkpoints")
INTEROP = (*CHECKPOINTS, *DATA, "negclip_jax.interop")
EMBEDDINGS = (*RUNTIME, *MODELS, *DATA, "negclip_jax.embeddings")
LIBRARY = (*INTEROP, *EMBEDDINGS, "negclip_jax.pretrained", "negclip_jax.CLIP")
ROOMS = {
    "negclip_jax/common": COMMON,
    "negclip_jax/language": LANGUAGE,
    "negclip_jax/data": DATA,
    "negclip_jax/runtime": RUNTIME,
    "negclip_jax/checkpoints": CHECKPOINTS,
    "negclip_jax/models": MODELS,
    "negclip_jax/interop": INTEROP,
    "negclip_jax/embeddings": EMBEDDINGS,
    "negclip_jax/pretrained.py": LIBRARY,
    "negclip_jax/training": (*INTEROP, *EMBEDDINGS, "negclip_jax.training"),
    "negclip_jax": ("negclip_jax",),
    "configs": (*COMMON, "configs"),
    "data_gen": (*DATA, "data_gen"),
    "evals": (*LIBRARY, "evals"),
    "launch.py": (*RUNTIME, "negclip_jax.training", "evals"),
}
# What a room must not import of other packages, and the files that may all the same.
ABSENT = [
    ("negclip_jax", ("torch",), ("tensors.py",)),  # pickled weights, through torch's safe loader
    ("negclip_jax/common", (*JAX, "grain", "transformers"), ()),
    ("negclip_jax/language", (*JAX, "grain", "transformers"), ()),
    ("negclip_jax/data", JAX, ()),
    ("negclip_jax/models", ("ml_collections", "orbax", "grain", "optax"), ()),
    ("negclip_jax/interop", ("ml_collections", "optax", "orbax"), ()),
    ("negclip_jax/runtime", ("ml_collections", "optax", "flax"), ()),
    ("negclip_jax/training", ("transformers",), ()),
    ("configs", ("jax", "numpy"), ()),
    ("data_gen", ("jax", "flax", "optax", "orbax", "torch", "transformers"), ()),
    ("data_gen", ("ml_collections",), ("settings.py",)),
    ("evals/text_to_image", ("torch", "diffusers", "transformers"), ()),  # extras, at call time
    ("launch.py", ("torch", "transformers"), ()),
]
OURS = (*PACKAGES, "launch")


def is_inside(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(module + ".") for module in modules)


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_stands_below_them(room):
    found = [
        f"{path}:{line} imports {name}"
        for path in below(room)
        for name, line in imports(parse(path))
        if is_inside(name, OURS) and not is_inside(name, ROOMS[room])
    ]
    assert not found


@pytest.mark.parametrize(("folder", "forbidden", "allowed"), ABSENT)
def test_rooms_do_without_these_packages(folder, forbidden, allowed):
    assert not violations(folder, forbidden, allowed)


def module_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path, modules: set[str]) -> set[str]:
    """The modules of `modules` that a file imports, at the top, deferred or for types only."""
    found = set()
    for name, _ in imports(parse(path)):
        while name and name not in modules:  # `from module import name`: the longest that is one
            name = name.rpartition(".")[0]
        found.add(name)
    return found & modules - {module_name(path)}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other: what peeling off all ends of chains leaves.

    A module that imports no other one of the rest is in no circle, nor is one that none imports.
    """
    rest = dict(graph)
    while True:
        imported = set().union(*rest.values()) if rest else set()
        ends = {m for m, targets in rest.items() if m not in imported or not targets & rest.keys()}
        if not ends:
            return [sorted(rest)] if rest else []
        rest = {m: targets - ends for m, targets in rest.items() if m not in ends}


def test_no_module_imports_itself_in_a_circle():
    """Deferred imports and those for types included: a circle hides which of two is the base."""
    modules = {module_name(path) for path in SOURCES}
    assert not circles({module_name(p): imported_modules(p, modules) for p in SOURCES})


def test_the_check_of_circles_sees_them():
    chain = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert not circles(chain)
    assert circles(chain | {"c": {"b"}}) == [["b", "c"]]
    assert circles(chain | {"d": {"e"}, "e": {"d", "a"}}) == [["d", "e"]]


def test_the_check_of_arrows_sees_violations():
    assert violations("negclip_jax/training", ("jax",))
    assert violations("negclip_jax/data", ("negclip_jax.common.errors",))
    assert violations("launch.py", ("absl.flags",))


def test_pure_modules_of_training_know_no_configuration():
    pure = ("objectives.py", "patterns.py", "step.py", "optim.py")
    for name in pure:
        path = Path("negclip_jax/training") / name
        names = [module for module, _ in imports(parse(path))]
        assert not [n for n in names if n.startswith(("ml_collections", "negclip_jax.data"))], path


def test_only_prepare_and_train_take_the_whole_configuration():
    """Everything else of training gets sections, as keyword arguments: a typo is a TypeError."""
    found = [
        f"{path}:{node.lineno} {node.name}"
        for path in below("negclip_jax/training")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef)
        and node.name not in ("prepare", "train")
        and any(a.arg == "config" for a in [*node.args.args, *node.args.kwonlyargs])
    ]
    assert not found


def test_top_level_imports_of_the_package_need_no_jax():
    """`import negclip_jax`, and flags before they are known to be right, are instant."""
    for path in (
        Path("negclip_jax/__init__.py"),
        Path("negclip_jax/common/errors.py"),
        Path("launch.py"),
    ):
        top = [node for node in parse(path).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = [name for node in top for name, _ in imports(ast.Module([node], []))]
        assert not [n for n in names if n.startswith(("jax", "flax", "negclip_jax", "grain"))], path


def string_constants(path: Path) -> Iterator[tuple[str, int]]:
    """String constants that are no docstrings."""
    tree = parse(path)
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if text and id(node) not in documentation:
            yield node.value, node.lineno


def test_only_one_file_places_arrays_on_mesh_axes():
    banned = {"PartitionSpec", "NamedSharding", "pmap", "process_index"}
    for path in below("negclip_jax"):
        if path != Path("negclip_jax/runtime/sharding.py"):
            names = {name for name, _ in imports(parse(path))}
            assert not {n for n in names if n.endswith((".PartitionSpec", ".NamedSharding"))}, path
            attributes = {n.attr for n in ast.walk(parse(path)) if isinstance(n, ast.Attribute)}
            assert not attributes & banned, path


def test_only_interop_knows_the_names_of_other_layouts():
    foreign = re.compile(r"text_model\.|vision_model\.|self_attn|resblocks|in_proj_weight")
    for path in [*below("negclip_jax"), *below("evals")]:
        if Path("negclip_jax/interop") not in path.parents:
            found = [line for text, line in string_constants(path) if foreign.search(text)]
            assert not found, f"{path}:{found}"


def test_only_writers_talk_to_tensorboard_and_wandb():
    for package in ("tensorboardX", "wandb"):
        found = violations("negclip_jax", (package,), ("writers.py",))
        assert not found


def test_no_defaults_at_the_point_of_use():
    """`config.get(key, default)` turns a misspelled key into a result."""
    found = []
    for path in [*below("negclip_jax"), *below("launch.py")]:
        for node in ast.walk(parse(path)):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            gets = "ConfigDict" in source(path) and re.fullmatch(r".*config.*\.get", called)
            default = called == "getattr" and len(node.args) == 3
            if gets or (default and "config" in ast.unparse(node.args[0])):
                found.append(f"{path}:{node.lineno} {ast.unparse(node)}")
    assert not found


@functools.cache
def source(path: Path) -> str:
    return (ROOT / path).read_text()


def test_nothing_is_left_to_do():
    words = re.compile(r"\b(TODO|FIXME|XXX|raise NotImplementedError)\b")
    for path in SOURCES:
        found = [i for i, text in enumerate(source(path).splitlines(), 1) if words.search(text)]
        assert not found, f"{path}:{found}"


def test_no_paths_of_the_machine_where_this_was_written():
    machine = re.compile(r"/(work|home|root|Users)/\w")
    for path in [*SOURCES, *TESTS]:
        if path.name != "test_architecture.py":
            found = [i for i, t in enumerate(source(path).splitlines(), 1) if machine.search(t)]
            assert not found, f"{path}:{found}"


def test_files_are_short():
    long = {
        str(path): count
        for path in [*SOURCES, *TESTS]
        if (count := len(source(path).splitlines())) > MAX_FILE_LINES
    }
    assert not long


def test_functions_are_short():
    long = [
        f"{path}:{node.lineno} {node.name} {node.end_lineno - node.lineno + 1}"
        for path in [*SOURCES, *TESTS]
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert not long


def test_public_functions_of_the_package_are_documented():
    missing = []
    for path in below("negclip_jax"):
        for node in parse(path).body:
            named = isinstance(node, ast.FunctionDef | ast.ClassDef)
            public = named and not node.name.startswith("_")
            if public and ast.get_docstring(node) is None:
                missing.append(f"{path}:{node.lineno} {node.name}")
        assert ast.get_docstring(parse(path)) or not parse(path).body, f"{path} has no docstring"
    assert not missing


def test_every_module_has_its_test_file():
    """One test file a module, in the mirror of its package."""
    shared = {"__init__", "errors", "records", "files", "layout"}  # tested through their users
    present = {path.name for path in TESTS}
    missing = [
        str(path)
        for path in below("negclip_jax")
        if path.stem not in shared and f"test_{path.stem}.py" not in present
    ]
    assert not missing
