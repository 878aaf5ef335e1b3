"""Every command prints names from outside without their control characters."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
NAME = "a\x1b[31mred\x07\u202egpj\nb"
RAW = re.compile("[\x1b\x07\u202e]")
PACKAGES = ("negclip_jax", "data_gen", "evals", "quickstart", "bench")
SUBCOMMANDS = ("probe", "plan", "run", "status", "retry", "report", "audit", "export")
SUBCOMMANDS += ("batch-export", "batch-import")

# Arguments that lead a command to words about names in the folder {0}, by its module. Each command
# is also given an argument that it does not know, which argparse would quote as it stands.
ARGUMENTS: dict[str, list[list[str]]] = {
    "evals.__main__": [
        ["--model={0}", "--data={0}", "--out={0}/out", "--benchmarks=pope"],
        ["--model={0}", "--data={0}", "--out={0}/out", f"--benchmarks={NAME}"],
        ["--model=x", "--data={0}/none", "--out={0}/out"],
        ["--model=x", "--data={0}", "--out={0}/file"],
    ],
    "evals.search.__main__": [[NAME, "--model=x", "--images={0}/none", "--out={0}/out"]],
    "evals.segmentation.__main__": [
        ["--clipseg={0}", "--model=x", "--data={0}", "--out={0}/out"],
        ["--clipseg=x", "--model=x", "--data={0}", "--out={0}/out", f"--phrases={NAME}"],
    ],
    "evals.text_to_image.__main__": [
        ["--pipeline=x", "--model=x", "--out={0}/out", "--prompts={0}/none.txt"],
    ],
    "evals.catalogue": [[NAME]],
    "evals.frames": [["--videos={0}/none", "--out={0}/out"], ["--videos={0}", "--out={0}/out"]],
    "data_gen.__main__": [
        *([name, "--out={0}/out"] for name in SUBCOMMANDS),
        *([name, "--captions={0}/captions.json", "--out={0}/out"] for name in ("plan", "run")),
        ["plan", "--captions={0}/none.json"],
        ["run", "--out={0}/out", f"--config.{NAME}=1"],
    ],
    "data_gen.from_annotations": [
        ["--captions={0}/captions.json", "--instances={0}/none.json", "--out={0}/out.json"]
    ],
    "negclip_jax.__main__": [[NAME]],
    "negclip_jax.interop.export": [
        ["--model={0}", "--out={0}/out"],
        ["--model={0}/none", "--out={0}/out"],
        ["--model={0}@last", "--out={0}/out"],
    ],
    "quickstart.__main__": [],
    "quickstart.tiny_clip": [["--out={0}/file"]],
    "quickstart.world": [],
    "quickstart.evaluate": [["--model=x={0}", "--world={0}", "--out={0}/out.json"]],
    **{f"bench.{name}": [] for name in ("__main__", "startup", "loader", "images", "evals")},
    **{f"bench.{name}": [] for name in ("scaling", "finetune", "data_gen", "encode", "prepared")},
    "bench.generation": [["--captions=x"]],
    "bench.paper": [],
}
# The first rewrites this repository's own tables, from the data set that it is given; the second is
# the process that `bench.paper` starts in place of launch.py.
NO_COMMANDS = {"negclip_jax.language.extract_wordnet", "bench.timed_launch"}


@pytest.fixture
def folder(tmp_path):
    """A folder whose name, and whose files' names and contents, are hostile."""
    root = tmp_path / NAME
    root.mkdir()
    (root / "file").touch()
    question = {"question_id": 1, "image": f"{NAME}.jpg", "text": "Is there a dog in the image?"}
    (root / "coco_pope_random.json").write_text(json.dumps(question | {"label": "no"}))
    caption = {"id": NAME, "image_id": 1, "caption": "x"}
    images = [{"id": 1, "file_name": f"{NAME}.jpg"}]
    content = {"images": images, "annotations": [caption, caption | {"caption": "y"}]}
    (root / "captions.json").write_text(json.dumps(content))
    return root


def is_plain(*texts: str) -> bool:
    return any(texts) and not any(map(RAW.search, texts))


def test_no_command_is_left_out():
    marked = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if '__name__ == "__main__"' in path.read_text() or path.name == "__main__.py"
    ]
    assert sorted(marked) == sorted([*ARGUMENTS, *NO_COMMANDS])


@pytest.mark.parametrize("module", ARGUMENTS)
def test_names_are_printed_without_control_characters(module, folder, capsys, monkeypatch):
    monkeypatch.setattr("negclip_jax.runtime.console.set_up_logging", lambda: None)
    monkeypatch.setattr(sys, "argv", [module, NAME])
    main = importlib.import_module(module).main
    for arguments in (*ARGUMENTS[module], [f"--no={NAME}"]):
        code = 0
        try:
            code = main([argument.replace("{0}", str(folder)) for argument in arguments])
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        assert code, f"{arguments}: no error"
        assert is_plain(printed.out, printed.err, str(code)), (arguments, printed)


@pytest.mark.parametrize(
    "arguments",
    [[f"--config.{NAME}=1", f"--workdir={NAME}"], [f"--no_{NAME}=1"], ["--workdir=x", NAME]],
)
def test_training_prints_names_without_control_characters(arguments):
    command = [sys.executable, "launch.py", "--config=configs/negationclip.py:vit_b_32", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and is_plain(done.stdout, done.stderr), done.stderr


@pytest.mark.usefixtures("one_device_mesh")
def test_photos_that_are_found_are_listed_on_one_line_each(tmp_path, tiny_checkpoint, capsys):
    """A search ends well, so that its names go to stdout."""
    from evals.search.__main__ import main

    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(3):
        Image.new("RGB", (8, 8), (80 * i, 0, 0)).save(photos / f"{i}{NAME}.png")
    (photos / f"bad{NAME}.jpg").write_bytes(b"no photo")
    flags = [
        f"--model=tuned{NAME}={tiny_checkpoint}",
        f"--images={photos}",
        f"--out={tmp_path}/out",
    ]
    assert main([f"no {NAME}", *flags]) == 0
    printed = capsys.readouterr()
    assert is_plain(printed.out, printed.err)
    lines = printed.out.strip("\n").split("\n")
    assert len(lines) == 2 + 3 and all(r"\x1b[31mred\x07\u202egpj\nb.png" in x for x in lines[2:])
    page = (tmp_path / "out" / "report.html").read_text()
    assert not RAW.search(page)
