"""What is never written anywhere in the packages, because a stranger's bytes could reach it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
READERS = ("negclip_jax", "evals", "data_gen", "quickstart", "configs", "launch.py")
SOURCES = sorted(
    path
    for name in READERS
    for path in ([ROOT / name] if name.endswith(".py") else (ROOT / name).rglob("*.py"))
)

PARQUET = (
    "negclip_jax/data/pair_tables.py",
    "negclip_jax/data/feature_files.py",
    "negclip_jax/data/parquet_images.py",
    "data_gen/records.py",  # of a run of data_gen, which is the user's own
)
# Calls by the end of their name, and the files that may make them all the same.
FORBIDDEN = {
    "eval": (),
    "exec": (),
    "compile": (),
    "__import__": (),
    # --config and --benchmark-file are Python files of the user's own.
    "exec_module": ("data_gen/settings.py", "evals/benchmark_files.py"),
    "os.system": (),
    "os.popen": (),
    "pickle.load": (),
    "pickle.loads": (),
    "pickle.Unpickler": (),
    "torch.jit.load": (),
    "marshal.loads": (),
    "yaml.load": (),
    "extractall": (),  # nothing is unpacked onto the disk
    "unpack_archive": (),
    "tarfile.open": (),  # `data.tar_index` reads tars: no member can name a place on the disk
    "TarFile": ("data_gen/export.py",),  # which writes
    # Where what a footer claims is compared with the file before anything is unpacked.
    "ParquetFile": PARQUET,
    "jinja2.Template": (),
    "from_string": (),
    "Markup.unescape": (),
}
# What a call must be given.
REQUIRED = {
    "torch.load": ("weights_only", True),
    "jinja2.Environment": ("autoescape", True),
}
# Photos of strangers are opened where formats and sizes are limited; a rendered page's own are not.
IMAGE_OPEN = ("negclip_jax/common/decoding.py", "data_gen/images.py", "quickstart/evaluate.py")


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def ends_with(name: str, wanted: str) -> bool:
    """Whether a dotted name is `wanted` or ends in it; a bare builtin has no dots before it."""
    if wanted in ("eval", "exec", "compile", "__import__"):
        return name == wanted
    return name == wanted or name.endswith(f".{wanted}")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_call_runs_what_a_file_says(path):
    name = str(path.relative_to(ROOT))
    for called, node in calls(path):
        where = f"{name}:{node.lineno} {called}"
        for forbidden, allowed in FORBIDDEN.items():
            assert not ends_with(called, forbidden) or name in allowed, where
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        for required, (key, value) in REQUIRED.items():
            assert not ends_with(called, required) or given.get(key) == str(value), where
        assert given.get("allow_pickle", "False") == "False", where
        assert given.get("shell", "False") == "False", where
        assert given.get("trust_remote_code", "False") == "False", where
        if called == "Image.open" and name not in IMAGE_OPEN:
            assert "formats" in given or "evals/text_to_image" in name, where


def test_pickles_are_read_by_lists_of_allowed_names_alone():
    """Each own unpickler says itself what it may find, and is Python's: C's has a memory bomb."""
    found = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and "Unpickler" in ast.unparse(node):
                bases = [ast.unparse(base) for base in node.bases]
                methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
                found[path.relative_to(ROOT).as_posix()] = bases, methods
    assert set(found) == {
        "negclip_jax/interop/torch_archives.py",
        "negclip_jax/common/plain_pickle.py",
    }
    for bases, methods in found.values():
        assert bases in (["pickle._Unpickler"], ["PlainUnpickler"])
        assert {"find_class", "persistent_load"} <= methods


def test_the_check_sees_calls():
    tree = ast.parse("import torch\ntorch.load(p)\nnp.load(p, allow_pickle=True)")
    names = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert names == ["torch.load", "np.load"] and ends_with("torch.load", "torch.load")
    assert not ends_with("re.compile", "compile") and ends_with("x.extractall", "extractall")
