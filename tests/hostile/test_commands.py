"""Every command prints names from outside without their control characters."""

import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from negclip_jax.common.arguments import Parser

ROOT = Path(__file__).resolve().parents[2]
NAME = "a\x1b[31mred\x07\u202egpj\nb"
RAW = re.compile("[\x1b\x07\u202e]")
PACKAGES = ("negclip_jax", "data_gen", "evals", "quickstart", "bench")
SUBCOMMANDS = ("probe", "plan", "run", "status", "retry", "report", "audit", "export")
SUBCOMMANDS += ("batch-export", "batch-import")

_FEATURES = ("--library=transformers", "--model={0}", "--out={0}/out")

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
    "negclip_jax.interop.image_features": [
        [*_FEATURES, "--images={0}/none"],
        [*_FEATURES, "--images={0}"],
        [*_FEATURES, "--images={0}", "--pairs={0}/captions.json"],
        [*_FEATURES, "--images={0}", f"--shard={NAME}"],
    ],
    "negclip_jax.interop.export": [
        ["--model={0}", "--out={0}/out"],
        ["--model={0}/none", "--out={0}/out"],
        ["--model={0}@last", "--out={0}/out"],
    ],
    "quickstart.__main__": [],
    "quickstart.tiny_clip": [["--out={0}/file"]],
    "quickstart.few_scenes": [],
    "quickstart.world": [],
    "quickstart.evaluate": [["--model=x={0}", "--world={0}", "--out={0}/out.json"]],
    **{f"bench.{name}": [] for name in ("__main__", "startup", "loader", "images", "evals")},
    **{f"bench.{name}": [] for name in ("scaling", "finetune", "data_gen", "encode", "prepared")},
    "bench.generation": [["--captions=x"]],
    "bench.paper": [],
    "bench.profile": [],
    "bench.layouts": [],
}
# The first rewrites this repository's own tables, from the data set that it is given; the second is
# the process that `bench.paper` starts in place of launch.py.
NO_COMMANDS = {"negclip_jax.language.extract_wordnet", "bench.timed_launch"}


def programs() -> list[list[str]]:
    """Module and subcommand of every command."""
    names = [[module] for module in ARGUMENTS if module != "data_gen.__main__"]
    subcommands = (*SUBCOMMANDS, "statements", "nouns")
    return [*names, *(["data_gen.__main__", name] for name in subcommands)]


class Parsed(Exception):
    """A command line was taken: `args` are the namespace and the words that it does not know."""


@pytest.fixture
def parse(monkeypatch):
    """Function of a module and words to what `main` does with them, up to the work itself."""
    depth, original = [0], Parser.parse_known_args

    def stop(*arguments, **options):
        depth[0] += 1
        try:
            found = original(*arguments, **options)
        finally:
            depth[0] -= 1
        if depth[0]:  # of a subcommand
            return found
        raise Parsed(*found)

    monkeypatch.setattr(Parser, "parse_known_args", stop)
    monkeypatch.setattr("negclip_jax.runtime.console.set_up_logging", lambda: None)
    return lambda module, words: importlib.import_module(module).main(words)


@pytest.mark.parametrize("program", programs(), ids=" ".join)
def test_help_begins_with_an_example_that_runs(program, parse, capsys):
    module, *sub = program
    with pytest.raises(SystemExit, match="0"):
        parse(module, [*sub, "--help"])
    top = capsys.readouterr().out.split("usage: ")[0]
    called = module.removesuffix(".__main__").replace("negclip_jax.__main__", "negclip_jax")
    if module == "negclip_jax.__main__":
        return assert_lists(top)
    example = re.search(r"^    (python -m (?:[^\n\\#]|\\\n)*)", top, re.MULTILINE)[1]
    words = shlex.split(example.replace("\\\n", " "))
    assert words[: 3 + len(sub)] == ["python", "-m", called, *sub]
    assert len(top[: top.index(example)]) < 200
    assert not [word for word in words if re.search(r"=[A-Z_]{3,}$", word)]  # no DIR to fill in
    with pytest.raises(Parsed) as taken:
        parse(module, words[3:])
    assert not taken.value.args[1]


def assert_lists(top: str) -> None:
    """The list of commands is no example of one, and names them."""
    assert "python -m quickstart " in top and "python launch.py" in top


@pytest.mark.parametrize("program", programs(), ids=" ".join)
def test_missing_flags_are_named_all_at_once(program, parse, capsys):
    """Once all that the first message names are given, none is missing."""
    module, *sub = program
    with pytest.raises((SystemExit, Parsed)) as end:
        parse(module, sub)
    told = capsys.readouterr().err.partition("the following arguments are required: ")[2]
    assert end.type is Parsed or told or module == "data_gen.__main__"
    given = [name.partition(" or ")[0] for name in told.strip().split(", ") if told]
    words = [f"{name}=a=b" if name.startswith("--") else "x" for name in given]
    with pytest.raises(Parsed) as taken:
        parse(module, [*sub, *words])
    assert not taken.value.args[1]


MISSING = {
    "evals.__main__": "--data, --out, --model or --interpolate",
    "evals.search.__main__": "--model, --images or --features, TEXT or --serve",
    "evals.segmentation.__main__": "--clipseg, --model, --data, --out",
    "evals.text_to_image.__main__": "--pipeline, --model, --out, --prompts or --data",
    "negclip_jax.interop.export": "--model, --out",
    "data_gen.__main__ run": "--out, --captions or --config",
    "data_gen.__main__ retry": "--out, --only or --stage, --captions or --config",
    "data_gen.__main__ batch-import": "--out, files",
    "data_gen.__main__ nouns": "--to, --nouns or --captions",
}


@pytest.mark.parametrize("program", MISSING)
def test_flags_of_which_one_is_needed_are_named_too(program, capsys):
    module, *sub = program.split()
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(module).main(sub)
    assert capsys.readouterr().err.endswith(f" are required: {MISSING[program]}\n")


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
