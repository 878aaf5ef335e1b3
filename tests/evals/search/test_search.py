"""The whole command, on tiny models: terminal, page, cache, bad input in one line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_shards import write_parquet, write_records
from tiny_tars import write_photos

from evals.search import __main__ as search
from negclip_jax.data import feature_files
from negclip_jax.pretrained import CLIP

pytestmark = pytest.mark.usefixtures("one_device_mesh")


@pytest.fixture(autouse=True)
def keeps_logging(monkeypatch):
    monkeypatch.setattr("negclip_jax.runtime.console.set_up_logging", lambda: None)


@pytest.fixture
def run(tiny_checkpoint, photos, tmp_path):
    """Function of flags to the exit status; results lie in `run.out`."""

    def call(*flags: str, images=photos.data, model=tiny_checkpoint) -> int:
        out = f"--out={call.out}"
        return search.main([f"--model=tuned={model}", f"--images={images}", out, *flags])

    call.out = tmp_path / "out"
    return call


def test_two_models_and_queries_side_by_side(run, tiny_checkpoint, capsys, caplog):
    caplog.set_level("INFO")
    base = f"--base=before={tiny_checkpoint}"
    assert run("a cat", "no cat", base, "--top=3") == 0
    found = json.loads((run.out / "results.json").read_text())
    assert list(found["queries"]) == ["a cat", "no cat"] and found["photos"] == 12
    columns = found["queries"]["no cat"]
    assert list(columns) == ["before", "tuned"]
    assert columns["before"] == columns["tuned"]  # the same weights
    scores = [row["score"] for row in columns["tuned"]]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    out = capsys.readouterr().out
    assert "no cat" in out and columns["tuned"][0]["name"] in out
    page = (run.out / "report.html").read_text()
    assert page.count("data:image/jpeg;base64") == 2 * 2 * 3 and "12 photos, 2 queries" in page
    assert "before: 12 of 12 photos to encode" in caplog.text
    assert "tuned: 0 of 12 photos to encode" in caplog.text


def test_one_model_alone_and_fewer_photos_than_asked_for(run, capsys):
    assert run("a cat") == 0
    columns = json.loads((run.out / "results.json").read_text())["queries"]["a cat"]
    assert list(columns) == ["tuned"] and len(columns["tuned"]) == 12
    assert "12 photos, 1 query" in (run.out / "report.html").read_text()


@pytest.mark.parametrize("form", ["wds", "parquet", "arrayrecord"])
def test_shards_are_ranked_as_the_folder_and_reuse_its_features(
    run, form, photos, tmp_path, caplog
):
    """Which photo has which score; embeddings are found by content, wherever a photo lies."""
    caplog.set_level("INFO")
    folder, to = photos.data / "photos", tmp_path / "shards"
    to.mkdir()
    names = sorted(path.name for path in folder.iterdir())
    if form == "wds":
        spec = f"wds:{write_photos(to / 'a.tar', folder, names)}"
        called = {f"a.tar/{name}": name for name in names}
    elif form == "parquet":
        spec = f"parquet:{write_parquet(folder, to)}"
        half = len(names) // 2
        called = {
            f"train-{i:05d}-of-00002.parquet/{row}": name
            for i, part in enumerate((names[:half], names[half:]))
            for row, name in enumerate(part)
        }
    else:
        pattern, by_name = write_records(folder, to)
        spec, called = f"arrayrecord:{pattern}", {x: name for name, x in by_name.items()}
    assert run("a cat", images=folder) == 0
    before = json.loads((run.out / "results.json").read_text())["queries"]["a cat"]["tuned"]
    assert run("a cat", images=spec) == 0
    assert f"tuned: 0 of {len(names)} photos to encode" in caplog.text
    found = json.loads((run.out / "results.json").read_text())
    scores = [[(r["score"], called.get(r["name"], r["name"])) for r in x]
              for x in (found["queries"]["a cat"]["tuned"], before)]  # fmt: skip
    assert sorted(scores[0]) == sorted(scores[1]) and found["photos"] == len(names)
    page = (run.out / "report.html").read_text()
    assert page.count("data:image/jpeg;base64") == len(names)


def test_shards_that_cannot_be_searched_are_one_line(run, tmp_path, capsys):
    for spec, message in (
        (f"wds:{tmp_path}/gone.tar", "match no file"),
        ("tfds:coco_captions/train", "tfds:coco_captions/train"),
        (f"parquet:{tmp_path}", "match no file"),
    ):
        assert run("a cat", images=spec) == 1
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error and error.count("\n") == 1


def test_a_photo_that_cannot_be_read_does_not_stop_the_search(run, photos, tmp_path, caplog):
    images = tmp_path / "some"
    images.mkdir()
    (images / "good.png").write_bytes((photos.data / "photos" / "1.png").read_bytes())
    (images / "bad.png").write_bytes(b"bad")
    assert run("a cat", images=images) == 0
    assert "1 left out: bad.png" in caplog.text
    assert "bad.png" in json.loads((run.out / "results.json").read_text())["skipped"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["  "], "a query is empty"),
        (["a cat", "--top=0"], "--top=0: at least one photo"),
        (["a cat", "--base=nothing/here/at/all"], "nothing/here/at/all"),
    ],
)
def test_bad_input_is_one_line(run, capsys, flags, message):
    assert run(*flags) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


@pytest.mark.parametrize("content", ['{"benchmarks": {}}', "[1]", "no json"])
def test_results_of_another_command_are_not_replaced(run, capsys, content):
    run.out.mkdir()
    (run.out / "results.json").write_text(content)
    assert run("a cat") == 1
    assert "is not of a search and would be replaced" in capsys.readouterr().err
    assert (run.out / "results.json").read_text() == content


def test_killed_while_the_results_are_written(run, monkeypatch):
    write_bytes = Path.write_bytes

    def half(path, content):
        written = write_bytes(path, content[: len(content) // 2])
        if "results" in path.name:
            raise KeyboardInterrupt
        return written

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", half)
        assert run("a cat") == 130
    assert run("a cat") == 0


def test_an_empty_folder_is_one_line_before_any_model_is_read(run, capsys, tmp_path):
    (tmp_path / "none").mkdir()
    assert run("a cat", images=tmp_path / "none", model="no/model/there") == 1
    assert "holds no photo" in capsys.readouterr().err


def test_help_needs_neither_jax_nor_torch():
    code = (
        "import sys\nfrom evals.search.__main__ import main\ntry:\n    main(['--help'])\nfinally:\n"
        "    assert not {'jax', 'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--top" in done.stdout, done.stderr


def test_a_long_name_keeps_both_ends_in_the_terminal():
    name = f"folder/{'x' * 60}0123.jpg"
    shown = search.table_text("q", {"m": [{"rank": 1, "score": 0.5, "name": name, "was": None}]})
    assert "folder/xxx" in shown and "xxx0123.jpg" in shown and "…" in shown and name not in shown
    short = shown.splitlines()[-1].split()[-1]
    assert len(short) == 44


@pytest.mark.slow
def test_features_of_another_library_rank_as_the_photos_do(run, tiny_checkpoint, photos, tmp_path):
    """With the photos for the page, without them, and without some of the features."""
    model = CLIP.from_pretrained(tiny_checkpoint)
    files = sorted((photos.data / "photos").iterdir())
    names = [f"photos/{file.name}" for file in files]
    features = np.array(model.encode_image(model.preprocess(files)))
    feature_files.write(tmp_path / "f.parquet", names, features, "x")

    def ranked(*flags: str) -> tuple[dict, list]:
        shutil.rmtree(run.out, ignore_errors=True)
        flags = ("a cat", f"--model=tuned={tiny_checkpoint}", f"--out={run.out}", *flags)
        assert search.main([*flags]) == 0
        found = json.loads((run.out / "results.json").read_text())
        rows = found["queries"]["a cat"]["tuned"]
        return {row["name"]: row["score"] for row in rows}, found

    expected, _ = ranked(f"--images={photos.data}")
    given = f"--features={tmp_path / 'f.parquet'}"
    for flags, shown in (((given,), 0), ((given, f"--images={photos.data}"), 12)):
        found, _ = ranked(*flags)
        assert found == pytest.approx(expected, abs=1e-5)
        assert not (run.out / "embeddings" / "digests.bin").exists()
        page = (run.out / "report.html").read_text()
        assert page.count("data:image/jpeg;base64") == shown
    features[3] = 0
    feature_files.write(tmp_path / "f.parquet", names[1:], features[1:], "x")
    found, document = ranked(given, f"--images={photos.data}")
    assert found.keys() == expected.keys() - {names[0], names[3]}
    assert document["skipped"].keys() == {names[0], names[3]}
    assert "has no feature in" in document["skipped"][names[0]]


def test_photos_or_features_have_to_be_named(tiny_checkpoint, tmp_path, capsys):
    flags = ["a cat", f"--model={tiny_checkpoint}", f"--out={tmp_path / 'out'}"]
    assert search.main(flags) == 1
    assert "error: give --images=PHOTOS, or --features=FILE" in capsys.readouterr().err
    assert search.main([*flags, f"--features={tmp_path / 'none.parquet'}"]) == 1
    assert "there is no" in capsys.readouterr().err
