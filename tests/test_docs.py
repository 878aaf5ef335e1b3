"""Every command that README and docs show exists, with every flag and configuration key."""

import importlib
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from configs import common

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"))
    if "_build" not in path.parts
)
_FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.S | re.M)
_KEYS = {
    f"{section}.{key}"
    for section, keys in common.base().to_dict().items()
    if isinstance(keys, dict)
    for key in keys
} | {"seed"}


def commands(page: str) -> list[list[str]]:
    """The words of each command of this repository that a page shows in a fence."""
    found = []
    for block in _FENCE.findall((ROOT / page).read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.strip()
            if re.match(r"(\.venv/bin/)?python (-m |launch\.py)", line):
                found.append(shlex.split(line, comments=True))
    return found


@cache
def help_of(*words: str) -> str:
    command = [sys.executable, *words, "--help"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout


def test_pages_are_found():
    assert "README.md" in PAGES and len(PAGES) > 15
    assert sum(len(commands(page)) for page in PAGES) > 40


@pytest.mark.parametrize("page", PAGES)
def test_commands_have_these_flags(page):
    for words in commands(page):
        names = [word.split("=")[0] for word in words if word.startswith("--")]
        if "launch.py" in words:
            for word in names:
                key = word.removeprefix("--config").removeprefix(".")
                known = word in ("--workdir", "--help") or not key or key in _KEYS
                assert known, f"{page}: launch.py has no {word}"
            for word in words:
                if word.startswith("--config="):
                    file, _, variant = word.removeprefix("--config=").partition(":")
                    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
                    assert module.get_config(*([variant] if variant else [])), word
            continue
        module = words[words.index("-m") + 1]
        if not (ROOT / module.split(".")[0]).exists():
            continue  # pip, pytest: not ours
        sub = [w for w in words[words.index("-m") + 2 :] if re.fullmatch("[a-z-]+", w)][:1]
        sub = sub if module == "data_gen" else []
        shown = help_of("-m", module, *sub)
        assert shown, f"{page}: {shlex.join(words)}"
        for word in names:
            is_known = re.search(rf"{re.escape(word)}\b", shown) or word.startswith("--config.")
            assert is_known or word == "--help", f"{page}: {module} has no {word}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", (ROOT / page).read_text()):
        if not re.match(r"[a-z]+:", target):
            found = (ROOT / page).parent / target
            assert found.exists() or found.with_suffix(".md").exists(), f"{page}: {target}"


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
