"""Every command that README and docs show exists, with every flag and configuration key.

Cells are run by the documentation's build, those of the guides to an own benchmark and objective by
`test_own_folder.py` as well. What else stands in a fence is parsed here, or `NOT_RUN` says why not.
"""

import contextlib
import importlib
import io
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path

import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

from configs import common
from data_gen import settings
from negclip_jax.data import mixture

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"))
    if "_build" not in path.parts
)
_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.S | re.M)
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_OURS = re.compile(r"(\.venv/bin/)?python (-m |launch\.py)")
# Lines of fences that are no command of this repository, and why no test runs them.
NOT_RUN = {
    r"gcloud |git clone REPOSITORY|\.venv/bin/pip |cd negclip_jax && nohup ": "of Google's "
    "machines; the commands that these start are parsed by test_guides.py",
    r"vllm serve ": "takes a GPU and 16 GB of weights; test_real_server.py starts another server",
    r"python3 -m venv |\. \.venv/bin/activate$": "the tests run in such an environment",
    r"pip install \.$": "test_own_folder.py unpacks what it would install",
    r"captions \+ images ─>": "a drawing",
    r"step 3: grad_norm is inf|negclip_jax/training/step\.py:": "said by a run: test_debugging.py",
    r"import clip$|model, preprocess = clip\.load": "takes a CLIP of a released size; "
    "interop/test_openai.py loads one",
    r"model\.similarity\(\[\"street\.jpg\"\], .*features=": "test_pretrained.py does it",
}
_KEYS = {
    f"{section}.{key}"
    for section, keys in common.base().to_dict().items()
    if isinstance(keys, dict)
    for key in keys
} | {"seed"}


def commands(page: str) -> list[list[str]]:
    """The words of each command of this repository that a page shows in a fence or in a line."""
    text = (ROOT / page).read_text()
    lines = [line for _, line in fenced(page)]
    lines += [" ".join(span.split()) for span in _SPAN.findall(_FENCE.sub("", text))]
    return [shlex.split(line, comments=True) for line in lines if _OURS.match(line)]


def fenced(page: str) -> list[tuple[str, str]]:
    """What stands behind the first marks of a fence, and each of its lines (continued: whole)."""
    return [
        (kind, line.strip())
        for kind, block in _FENCE.findall((ROOT / page).read_text())
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip()
    ]


@cache
def help_of(module: str, *words: str) -> str:
    if (ROOT / module.replace(".", "/")).is_dir():
        module += ".__main__"
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        importlib.import_module(module).main([*words, "--help"])
    return out.getvalue()


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
        shown = help_of(module, *sub)
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


@pytest.mark.parametrize("page", PAGES)
def test_what_is_no_command_of_ours_has_a_reason(page):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for kind, line in fenced(page):
        if kind.startswith("{") or kind == "python" or _OURS.match(line):
            continue
        if made := re.match(r"make ([a-z-]+)( |$)", line):
            assert made[1] in targets, line
        elif installed := re.match(r"pip install -e '?\.(?:\[(\w+)\])?", line):
            assert installed[1] is None or installed[1] in extras["optional-dependencies"], line
        elif sources := re.match(r"--config\.data\.sources='(.*)|(plain: .*)'$", line):
            assert mixture.parse(sources[1] or sources[2]), line
        else:
            assert any(re.match(pattern, line) for pattern in NOT_RUN), f"{page}: {line}"


def test_nothing_has_a_reason_for_nothing():
    lines = [line for page in PAGES for _, line in fenced(page)]
    for pattern in NOT_RUN:
        for part in pattern.split("|"):
            assert any(re.match(part, line) for line in lines), part


@pytest.mark.parametrize("page", PAGES)
def test_cells_are_run_by_the_build(page):
    text = (ROOT / page).read_text()
    if "```{code-cell}" in text:
        assert text.startswith("---\nfile_format: mystnb\nkernelspec:\n  name: python3\n")


@pytest.mark.parametrize("page", PAGES)
def test_settings_are_keys(page):
    generation = flatten_dict(settings.load(None, {}).to_dict(), sep=".")
    keys = _KEYS | generation.keys()
    for section, key in re.findall(
        r"--config\.(\w+)\.([A-Z]+|[a-z_.]+)", (ROOT / page).read_text()
    ):
        name = f"{section}.{key.rstrip('.')}"
        is_open = name.startswith("engine.extra_body")  # takes any
        assert name in keys or is_open or name == "SECTION.KEY", f"{page}: {name}"


def test_the_lines_of_the_readme_that_use_a_model(tiny_checkpoint, tmp_path, monkeypatch):
    (lines,) = [block for kind, block in _FENCE.findall((ROOT / "README.md").read_text()) if kind]
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), "red").save("street.jpg")
    found = {}
    name = '"openai/clip-vit-base-patch32"'  # which the tests cannot download
    assert name in lines
    lines = lines.replace(name, repr(str(tiny_checkpoint))).replace("model.s", "scores = model.s")
    exec(lines, found)
    assert found["scores"].shape == (1, 2)


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
