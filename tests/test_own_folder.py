"""The guides to a benchmark and an objective of one's own, word by word, in an empty folder.

The environment has a clone installed by `pip install -e`; nothing else leads to this repository.
"""

import json
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from processes import environment
from test_architecture import ROOT
from test_packaging import build, copy_clone

_CELL = re.compile(r"^```\{code-cell\} ipython3\n((?::tags:[^\n]*\n)?)(.*?)^```", re.S | re.M)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Where packages lie of an environment in which a clone is installed."""
    root = tmp_path_factory.mktemp("installed")
    venv.create(root / "venv")
    (site,) = (root / "venv").glob("lib/*/site-packages")
    build(copy_clone(root / "clone"), root / "built", "editable").extractall(site)
    # The packages that this one needs; of what lies there, .pth files are not read.
    others = [path for path in sys.path if path.endswith("-packages")]
    (site / "others.pth").write_text("\n".join(others) + "\n")
    return site


@pytest.fixture
def follow(site, tmp_path):
    """Function that runs Python in an empty folder, as who has the environment active does."""
    (tmp_path / "empty").mkdir()
    env = {name: value for name, value in environment(1).items() if name != "PYTHONPATH"}
    env["PATH"] = f"{site.parents[2] / 'bin'}:{env['PATH']}"

    def follow(script: str) -> Path:
        command, options = ["python", "-"], {"capture_output": True, "text": True}
        done = subprocess.run(command, input=script, cwd=tmp_path / "empty", env=env, **options)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return tmp_path / "empty"

    return follow


def in_shell(lines: str) -> str:
    return f"import subprocess; subprocess.run(['bash', '-ec', {lines!r}], check=True)"


def cells(page: str) -> str:
    """The cells of a page that are shown, as one script."""
    script = []
    for tags, cell in _CELL.findall((ROOT / "docs" / "guides" / page).read_text()):
        magic, _, rest = cell.partition("\n")
        if magic.startswith("%%writefile "):
            script.append(f"open({magic.split()[1]!r}, 'w').write({rest!r})")
        elif magic.startswith("%%script bash"):
            script.append(in_shell(rest))
        elif "remove-cell" not in tags:
            script.append(cell)
    return "\n".join(script)


def scored(folder: Path) -> dict:
    return json.loads((folder / "eval" / "results.json").read_text())["benchmarks"]["mine"]


@pytest.mark.slow
def test_a_benchmark_of_ones_own(follow, site, tmp_path):
    folder = follow(cells("benchmark.md"))
    entry = scored(folder)
    assert (entry["title"], entry["scored"]) == ("Mine", 200)
    # Then as a package, by the lines of the page; what `pip install .` unpacks is unpacked here.
    page = (ROOT / "docs" / "guides" / "benchmark.md").read_text()
    (block,) = re.findall(r"^```\npip install \.\n(.*?)^```", page, re.S | re.M)
    package = build(folder, tmp_path / "built")
    package.extractall(site)
    try:
        (folder / "mine.py").unlink()  # it is the package's that is found
        (folder / "eval" / "results.json").unlink()
        follow(in_shell(block))
        assert scored(folder)["rows"] == entry["rows"]
    finally:
        for name in package.namelist():
            (site / name).unlink()


@pytest.mark.long
def test_an_objective_of_ones_own(follow):
    folder = follow(cells("objective.md"))
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").open()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert lines[-1]["step"] == 100 and losses[-1] < losses[0]
    assert json.loads((folder / "run" / "config.json").read_text())["train"]["objective"] == "hinge"
