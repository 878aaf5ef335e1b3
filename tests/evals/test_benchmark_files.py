"""Benchmarks from a file and from an installed package: the whole command, and every mistake."""

import json
import sys

import pytest
from PIL import Image

from evals import __main__ as command
from evals import benchmark_files, catalogue, in_training, registry
from evals.images import DataRoots
from negclip_jax.common.errors import InputError

MINE = '''"""Mine: is it what it is?

Protocol: the file's.
"""

from evals.choices import Choice, choice_problem
from evals.images import ImageRef
from evals.reading import read_items, read_json

BENCHMARKS = {
    "mine": {
        "title": "My own",
        "task": "Which?",
        "source": "here",
        "licence": "none",
        "download": "nowhere",
        "size": 2,
    }
}


def load(roots, *, download):
    file = roots.find("mine.json", download=download)
    items = read_items(file, enumerate(read_json(file, list)), item)
    return choice_problem(roots, file, items, rule="argmax")


def item(fields, where, record):
    texts = tuple(fields.texts(record, "texts", where))
    return Choice(where, (ImageRef(fields.text(record, "image", where)),), texts)
'''


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "BENCHMARKS", dict(registry.BENCHMARKS))
    monkeypatch.setattr("negclip_jax.runtime.console.set_up_logging", lambda: None)


@pytest.fixture
def mine(tmp_path):
    """Function of changes, {old: new}, of the example to its file."""

    def write(changes: dict[str, str] | None = None, name: str = "mine.py"):
        text = MINE
        for old, new in (changes or {}).items():
            assert old in text
            text = text.replace(old, new, 1)
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    Image.new("RGB", (20, 20), "red").save(folder / "a.png")
    items = [{"image": "a.png", "texts": [f"a thing {i}", f"no thing {i}"]} for i in range(2)]
    (folder / "mine.json").write_text(json.dumps(items))
    return folder


def test_a_file_is_evaluated_beside_ours(mine, data, tmp_path, tiny_checkpoint, one_device_mesh):
    out = tmp_path / "out"
    flags = [f"--benchmark-file={mine()}", "--benchmarks=mine", f"--data={data}", f"--out={out}"]
    assert command.main([*flags, f"--model={tiny_checkpoint}"]) == 0
    entry = json.loads((out / "results.json").read_text())["benchmarks"]["mine"]
    assert (entry["title"], entry["scored"], entry["size"]) == ("My own", 2, 2)
    assert "My own" in (out / "report.html").read_text()
    assert command.main([*flags, f"--model={tiny_checkpoint}"]) == 0  # again in one process


def test_training_reads_it_too(mine, data, tmp_path):
    options = {"data": str(data), "allow_subset": False, "workdir": str(tmp_path / "run")}
    found = in_training.configured(benchmarks="mine", benchmark_files=f" {mine()},", **options)
    assert list(found) == ["bench"]


def test_the_catalogue_shows_it(mine, capsys):
    assert catalogue.main([f"--benchmark-file={mine()}", "mine"]) == 0
    assert capsys.readouterr().out.startswith("## Mine: is it what it is?\n\n- `mine`: Which?")


def test_a_file_called_as_a_module_of_python_does_not_replace_it(mine):
    registry.add_files([mine(name="json.py")])
    assert sys.modules["json"] is json and registry.get("mine").title == "My own"


MISTAKES = [
    ({'"mine": {': '"valse": {'}, r"mine\.py: there is a benchmark 'valse' already"),
    ({"def load": "def read"}, r"mine\.py has no function load\(roots, \*, download\)"),
    ({"BENCHMARKS": "MINE"}, r"mine\.py has no BENCHMARKS = "),
    ({'"mine": {': '"mine": 3, "x": {'}, r'BENCHMARKS has no table of "mine"'),
    ({'        "licence": "none",\n': ""}, r'BENCHMARKS\["mine"\] has no text for licence$'),
    ({'"size"': '"sise"'}, r"has sise; its keys are title, task, .*size, reader, options"),
    ({"def load": "def load("}, r"mine\.py line 22: "),
    ({"BENCHMARKS": "import nothing_like_it\nBENCHMARKS"}, r"mine\.py line 10: ModuleNotFoundErr"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_a_wrong_file_is_told_in_one_line(mine, changes, message, tmp_path, capsys):
    flags = [f"--benchmark-file={mine(changes)}", f"--data={tmp_path}", f"--out={tmp_path / 'o'}"]
    assert command.main([*flags, "--model=absent"]) == 1
    with pytest.raises(InputError, match=message):
        registry.add_files([mine(changes)])
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_no_such_file(tmp_path):
    with pytest.raises(InputError, match=r"--benchmark-file=.*absent\.py: there is no such file"):
        registry.add_files([tmp_path / "absent.py"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file = ": "file = {}['x'] and "}, r"mine\.py line 23: KeyError: 'x'"),
        (
            {"    return choice_problem": "    return 3 or choice_problem"},
            "load returns int, no ev",
        ),
        ({'(record, "texts"': '(record, None.texts and "texts"'}, r"mine\.py line 29: Attribute"),
    ],
)
def test_what_fails_while_it_loads(mine, data, changes, message):
    registry.add_files([mine(changes)])
    with pytest.raises(InputError, match=message):
        registry.get("mine").load(DataRoots((data,)))


def test_what_fails_while_it_scores(mine, data):
    wrong = (
        "    import dataclasses\n\n    def score(images, texts):\n        return images + None\n\n"
    )
    wrong += "    problem = choice_problem(roots, file, items, rule='argmax')\n"
    wrong += "    return dataclasses.replace(problem, score=score, controls={'c': score})\n\n"
    registry.add_files([mine({"    return choice_problem": f"{wrong}    return choice_problem"})])
    problem = registry.get("mine").load(DataRoots((data,)))
    for score in (problem.score, problem.controls["c"]):
        with pytest.raises(InputError, match=r"mine\.py line 28: TypeError: unsupported operand"):
            score(1, 2)


def test_an_installed_package_offers_its_own(mine, tmp_path, monkeypatch):
    (tmp_path / "lab").mkdir()
    mine().rename(tmp_path / "lab" / "bench.py")
    info = tmp_path / "lab-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab\nVersion: 1\n")
    entries = "mine = lab.bench\ngone = lab.nothing"
    (info / "entry_points.txt").write_text(f"[negclip_jax.benchmarks]\n{entries}\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = benchmark_files.installed()
    assert list(found) == ["mine", "gone"] and "lab.bench" not in sys.modules
    assert found["mine"]().title == "My own"
    with pytest.raises(InputError, match=r"ModuleNotFoundError: No module named 'lab\.nothing'"):
        found["gone"]()
