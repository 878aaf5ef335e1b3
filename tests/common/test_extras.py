"""Optional packages are imported when called for, and an error message says how to get them."""

import ast
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_architecture import ROOT, SOURCES, parse

from negclip_jax.common import extras
from negclip_jax.common.errors import InputError

OPTIONAL = ("torch", "torchvision", "diffusers", "open_clip", "clip", "wandb", "ray", "vllm", "av")
OPTIONAL += ("sentencepiece", "gcsfs", "s3fs")


def openai_layout(tmp_path: Path) -> None:
    from negclip_jax.interop import openai
    from negclip_jax.models.clip import CLIPConfig

    openai.save(tmp_path / "out", CLIPConfig(), {})


def segmentation(tmp_path: Path) -> None:
    from evals.segmentation.clipseg import CLIPSeg

    CLIPSeg(str(tmp_path))


def text_to_image(tmp_path: Path) -> None:
    from evals.text_to_image import pipelines

    pipelines.libraries()


def weights_and_biases(tmp_path: Path) -> None:
    from negclip_jax.runtime.writers import WandbWriter

    WandbWriter("project", tmp_path, {})


def video(tmp_path: Path) -> None:
    from evals.frames import extract

    extract(tmp_path / "a.mp4", tmp_path)


def siglip(tmp_path: Path) -> None:
    from negclip_jax.data.tokenizer import SigLIPTokenizer

    (tmp_path / "spiece.model").touch()
    SigLIPTokenizer(tmp_path)


def ray_runner(tmp_path: Path) -> None:
    from data_gen.generate import run_on_ray

    run_on_ray(SimpleNamespace(), tmp_path, workers=1)


def vllm(tmp_path: Path) -> None:
    from data_gen.engines.vllm import VLLMEngine

    VLLMEngine("model")


# package that is hidden, extra that the message has to name, call that needs it
CALLS = [
    ("torch", "torch", openai_layout),
    ("torch", "torch", segmentation),
    ("torch", "diffusers", text_to_image),
    ("diffusers", "diffusers", text_to_image),
    ("wandb", "wandb", weights_and_biases),
    ("av", "video", video),
    ("sentencepiece", "siglip", siglip),
    ("ray", "ray", ray_runner),
    ("vllm", "vllm", vllm),
]


@pytest.mark.parametrize(("hidden", "extra", "call"), CALLS)
def test_a_missing_extra_is_one_line_that_names_its_command(
    monkeypatch, tmp_path, hidden, extra, call
):
    monkeypatch.setitem(sys.modules, hidden, None)
    with pytest.raises(ValueError) as error:
        call(tmp_path)
    assert type(error.value).__name__ in ("InputError", "CheckpointError", "TokenizerError")
    assert f"pip install -e '.[{extra}]'" in str(error.value)
    assert "\n" not in str(error.value)


def test_every_extra_that_is_named_is_declared():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {extra for _, extra, _ in CALLS} <= set(declared["optional-dependencies"])
    assert not [d for d in declared["dependencies"] if d.split(">")[0] in OPTIONAL]


def top_level_imports(path: Path) -> set[str]:
    """First names of what a file imports when it is imported itself."""
    found, waiting = set(), list(parse(path).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += ast.iter_child_nodes(node)
    return found


def test_no_file_imports_an_extra_before_it_is_called_for():
    """Only the other side of the benchmarks does, in processes of its own."""
    theirs = ("bench/published_recipe.py",)
    for path in SOURCES:
        if str(path) not in theirs:
            assert not top_level_imports(path) & set(OPTIONAL), path
    assert "torch" in top_level_imports(Path(theirs[0]))


def test_an_extra_that_is_there_is_returned(monkeypatch):
    assert extras.require("numpy", extra="torch", why="this test") is np


def test_an_extra_that_is_broken_says_so(monkeypatch, tmp_path):
    (tmp_path / "half_installed.py").write_text("import a_library_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    message = r"cannot be imported \(.*a_library_that_is_not_there"
    with pytest.raises(InputError, match=message):
        extras.require("half_installed", extra="torch", why="this test")
