"""What a wheel installs: the library alone, with the files that it reads."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from test_architecture import ROOT

BUILD = "import sys; from setuptools import build_meta as b; getattr(b, sys.argv[1])(sys.argv[2])"
PACKAGES = ("negclip_jax", "configs", "data_gen", "evals", "quickstart")


def copy_clone(to: Path) -> Path:
    """A clone's packages, without what was made in them."""
    for folder in PACKAGES:
        no_caches = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, to / folder, ignore=no_caches)
    for file in ("pyproject.toml", "README.md", "LICENSE", "launch.py"):
        shutil.copy(ROOT / file, to)
    return to


def build(project: Path, to: Path, kind: str = "wheel") -> zipfile.ZipFile:
    """What pip unpacks for `pip install PROJECT`, or for `pip install -e` with "editable"."""
    to.mkdir(exist_ok=True)
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(to)]
    built = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = to.glob("*.whl")
    return zipfile.ZipFile(wheel)


def test_a_wheel_holds_the_library_and_all_of_it(tmp_path):
    clone = copy_clone(tmp_path / "clone")
    wheel = build(clone, tmp_path / "built")
    installed = {n for n in wheel.namelist() if ".dist-info/" not in n}
    library = [path for path in (clone / "negclip_jax").rglob("*") if path.is_file()]
    assert installed == {path.relative_to(clone).as_posix() for path in library}
    wheel.extractall(tmp_path / "site")
    command = [sys.executable, "-m", "negclip_jax"]
    listed = subprocess.run(command, cwd=tmp_path / "site", capture_output=True, text=True)
    assert listed.stdout.startswith("This is the library alone: ")
