"""What a wheel installs: the library alone, with the files that it reads."""

import shutil
import subprocess
import sys
import zipfile

from test_architecture import ROOT

BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


def test_a_wheel_holds_the_library_and_all_of_it(tmp_path):
    clone = tmp_path / "clone"
    for folder in ("negclip_jax", "configs", "data_gen", "evals", "quickstart"):
        no_caches = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, clone / folder, ignore=no_caches)
    for file in ("pyproject.toml", "README.md", "LICENSE", "launch.py"):
        shutil.copy(ROOT / file, clone)
    command = [sys.executable, "-c", BUILD, str(tmp_path)]
    built = subprocess.run(command, cwd=clone, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    installed = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    library = [path for path in (clone / "negclip_jax").rglob("*") if path.is_file()]
    assert installed == {path.relative_to(clone).as_posix() for path in library}
