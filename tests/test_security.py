"""SECURITY.md promises nothing that no test checks."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "SECURITY.md").read_text())


def names_in(path: Path) -> set[str]:
    functions = (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef))
    return {function.name for function in functions if function.name.startswith("test_")}


def test_every_test_that_is_named_exists():
    assert len(NAMED) > 25
    missing = [(f, name) for f, name in NAMED if name not in names_in(ROOT / f)]
    assert not missing


def test_every_file_of_hostile_tests_is_named():
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "hostile").glob("test_*.py")}
    assert files == {file for file, _ in NAMED if "hostile" in file}


def test_every_promise_names_tests():
    promises = (ROOT / "SECURITY.md").read_text().partition("## What is not promised")[0]
    for promise in promises.split("\n**")[1:]:
        assert "::test_" in promise, promise[:60]
