"""The whole command on a tiny model: files, subsets, interruptions, mixtures, real slices."""

import json
import logging
import shutil

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from tiny_benchmark import write_items
from tiny_tars import write_photos

from evals import __main__ as command_line
from evals import registry
from negclip_jax.embeddings import encoder
from negclip_jax.interop import huggingface

REAL = registry.BENCHMARKS

pytestmark = pytest.mark.usefixtures("one_device_mesh")


@pytest.fixture(autouse=True)
def keeps_logging(monkeypatch):
    monkeypatch.setattr("negclip_jax.runtime.console.set_up_logging", lambda: None)


@pytest.fixture(scope="session")
def tuned_checkpoint(tiny_checkpoint, tmp_path_factory):
    """The tiny checkpoint with another text tower."""
    config = huggingface.read_config(tiny_checkpoint)
    params = huggingface.load_params(tiny_checkpoint, config)
    rng = np.random.default_rng(1)
    params["text_projection"] += rng.normal(0, 0.2, params["text_projection"].shape)
    path = tmp_path_factory.mktemp("tuned") / "tuned"
    return huggingface.save(path, config, params, base=tiny_checkpoint)


@pytest.fixture
def evaluate(tiny_benchmarks, tmp_path):
    """Function of flags to the exit status; results lie in `evaluate.out`."""

    def run(*flags: str) -> int:
        return command_line.main([f"--data={tiny_benchmarks}", f"--out={run.out}", *flags])

    run.out = tmp_path / "out"
    return run


def document(out) -> dict:
    return json.loads((out / "results.json").read_text())


def test_two_models_side_by_side(evaluate, tiny_checkpoint, tuned_checkpoint, capsys):
    models = [f"--model=before={tiny_checkpoint}", f"--model=after={tuned_checkpoint}"]
    assert evaluate(*models) == 0
    found = document(evaluate.out)
    assert list(found["settings"]["models"]) == ["before", "after"]
    facts = found["settings"]["models"]["after"]["facts"]
    assert facts["activation"].startswith("quick_gelu") and "pooling" in facts
    assert set(found["benchmarks"]) == {"tiny", "kept"}
    assert "before -> after" in found["benchmarks"]["tiny"]["comparisons"]
    table = pq.read_table(evaluate.out / "predictions.parquet")
    rows = table.filter(pc.equal(table["benchmark"], "tiny"))["row"].to_pylist()
    assert rows == ["takes the first"] * 24 + ["before"] * 24 + ["after"] * 24
    right = found["benchmarks"]["tiny"]["rows"]["after"]["metrics"]["accuracy"]["value"]
    assert 0 < right < 1
    out = capsys.readouterr().out
    assert "Tiny: accuracy" in out and "Kept: accuracy" in out and "separable" in out
    page = (evaluate.out / "report.html").read_text()
    assert "after" in page and "data:image/jpeg;base64" in page


def test_photos_from_tars_give_the_results_of_the_folder(
    evaluate, tiny_benchmarks, tiny_checkpoint, tmp_path, caplog
):
    """And reuse the features that were computed from it."""
    caplog.set_level("INFO")
    flags = [f"--model={tiny_checkpoint}", f"--cache={tmp_path}/kept", "--benchmarks=tiny"]
    assert evaluate(*flags) == 0
    before = document(evaluate.out)["benchmarks"]["tiny"]["rows"]
    data, photos = tmp_path / "files", tiny_benchmarks / "photos"
    shutil.copytree(tiny_benchmarks, data, ignore=shutil.ignore_patterns("photos"))
    write_photos(tmp_path / "p.tar", photos, sorted(path.name for path in photos.iterdir()))
    evaluate.out = tmp_path / "again"
    flags += [f"--images=wds:{tmp_path}/p.tar", f"--out={evaluate.out}"]
    caplog.clear()
    assert command_line.main([f"--data={data}", *flags]) == 0
    assert document(evaluate.out)["benchmarks"]["tiny"]["rows"] == before
    assert "0 of 12 images and 0 of 48 texts to encode" in caplog.text


def test_a_subset_is_marked_in_every_output(evaluate, tiny_benchmarks, tiny_checkpoint, capsys):
    write_items(tiny_benchmarks, images=14)
    model = f"--model={tiny_checkpoint}"
    assert evaluate(model, "--benchmarks=tiny") == 1
    assert "give --allow-subset" in capsys.readouterr().err
    assert not (evaluate.out / "results.json").exists()
    assert evaluate(model, "--benchmarks=tiny", "--allow-subset") == 0
    assert document(evaluate.out)["benchmarks"]["tiny"]["subset"]
    assert all(pq.read_table(evaluate.out / "predictions.parquet")["subset"].to_pylist())
    page = (evaluate.out / "report.html").read_text()
    assert "subset: 24 of 28" in page and "Photos are missing for Tiny" in page
    assert "(subset: 24 of 28 items)" in capsys.readouterr().out
    assert len((evaluate.out / "missing_photos.txt").read_text().splitlines()) == 2


def test_photos_that_cannot_be_read_are_left_out_as_missing_ones_are(
    evaluate, tiny_benchmarks, tiny_checkpoint, tuned_checkpoint, capsys, caplog
):
    """Two of twelve, under two models; the control is scored on the same items."""
    real = (tiny_benchmarks / "photos").resolve()
    (tiny_benchmarks / "photos").unlink()
    shutil.copytree(real, tiny_benchmarks / "photos")
    (tiny_benchmarks / "photos" / "3.png").write_bytes(b"no photo")
    (tiny_benchmarks / "photos" / "7.png").write_bytes(b"")
    flags = [f"--model=a={tiny_checkpoint}", f"--model=b={tuned_checkpoint}", "--benchmarks=tiny"]
    assert evaluate(*flags) == 1
    entry = document(evaluate.out)["benchmarks"]["tiny"]
    assert "3.png: this is not an image" in entry["errors"]["a"]
    assert entry["errors"]["a"].endswith("or give --allow-subset to score the others")
    assert evaluate(*flags, "--allow-subset", "--overwrite") == 0
    entry = document(evaluate.out)["benchmarks"]["tiny"]
    assert (entry["scored"], entry["total"], entry["subset"]) == (20, 24, True)
    assert {row: found["metrics"]["accuracy"]["n"] for row, found in entry["rows"].items()} == {
        "takes the first": 20,
        "a": 20,
        "b": 20,
    }
    told = "2 photos cannot be read and count as missing: 3.png: this is not an image"
    assert told in entry["notes"][-1] and told in caplog.text and not entry["errors"]
    page = (evaluate.out / "report.html").read_text()
    assert "subset: 20 of 24" in page and told in page
    assert "(subset: 20 of 24 items)" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", " \n", "[]", "{ }"])
def test_an_empty_file_stops_no_other_benchmark(
    evaluate, tiny_benchmarks, tiny_checkpoint, caplog, capsys, monkeypatch, content
):
    caplog.set_level("INFO")
    monkeypatch.setitem(registry.BENCHMARKS, "negrefcocog", REAL["negrefcocog"])
    (tiny_benchmarks / "NegRefCOCOg.json").write_text(content)
    assert evaluate(f"--model={tiny_checkpoint}") == 0
    assert list(document(evaluate.out)["benchmarks"]) == ["tiny", "kept"]
    left_out = next(line for line in caplog.messages if "left out" in line)
    assert "NegRefCOCOg.json holds no items" in left_out or "NegRefCOCOg.json is empty" in left_out
    assert evaluate(f"--model={tiny_checkpoint}", "--benchmarks=tiny,negrefcocog") == 1
    assert "negrefcocog: " in capsys.readouterr().err


def test_a_killed_evaluation_keeps_what_it_had_and_encodes_nothing_again(
    evaluate, tiny_checkpoint, tuned_checkpoint, capsys, monkeypatch
):
    flags = [f"--model=a={tiny_checkpoint}", f"--model=b={tuned_checkpoint}"]
    flags += ["--benchmarks=tiny,kept"]
    monkeypatch.setattr(encoder, "TEXTS_PER_DEVICE", 12)
    calls = []
    original = encoder.Tower.encode_next

    def killed_at_the_third_batch_of_b(tower):
        calls.append(tower)
        if len(calls) > 1 + 4 + 2:  # a: one of images, four of texts; b: two of texts
            raise KeyboardInterrupt
        original(tower)

    monkeypatch.setattr(encoder.Tower, "encode_next", killed_at_the_third_batch_of_b)
    assert evaluate(*flags) == 130
    found = document(evaluate.out)["benchmarks"]
    assert "a" in found["tiny"]["rows"] and "a" in found["kept"]["rows"]
    assert "b" not in found["tiny"]["rows"]
    assert (evaluate.out / "report.html").is_file()

    pending = []

    def count(tower):
        pending.append((tower.inputs.name, tower.pending))
        original(tower)

    monkeypatch.setattr(encoder.Tower, "encode_next", count)
    assert evaluate(*flags) == 0
    assert pending == [("texts", 24), ("texts", 12)]  # b's other half, and no image
    assert "b" in document(evaluate.out)["benchmarks"]["kept"]["rows"]


def test_interpolation(evaluate, tiny_checkpoint, tuned_checkpoint, capsys, monkeypatch):
    encoded = []
    original = encoder.Tower.encode_next

    def counted(tower):
        encoded.append(tower.inputs.name)
        original(tower)

    monkeypatch.setattr(encoder.Tower, "encode_next", counted)
    flags = [f"--interpolate={tiny_checkpoint},{tuned_checkpoint}", "--alphas=0,0.5,1"]
    assert evaluate(*flags, "--max-loss=100") == 0
    assert encoded.count("images") == 1  # the vision tower is the same at every alpha
    found = document(evaluate.out)
    assert list(found["settings"]["models"]) == ["alpha 0", "alpha 0.5", "alpha 1"]
    curve = found["interpolation"]
    assert [p["alpha"] for p in curve["points"]] == [0, 0.5, 1]
    best = max(curve["points"], key=lambda p: (p["negation"], -p["alpha"]))
    assert curve["best"] == best["alpha"] and curve["max_loss"] == 1
    assert "best alpha" in capsys.readouterr().out
    assert "Weight-space ensembling" in (evaluate.out / "report.html").read_text()


def test_the_ends_of_a_mixture_are_the_models(evaluate, tiny_checkpoint, tuned_checkpoint):
    assert evaluate(f"--model=b={tuned_checkpoint}") == 0
    alone = document(evaluate.out)["benchmarks"]["tiny"]["rows"]["b"]["metrics"]
    flags = [f"--interpolate={tiny_checkpoint},{tuned_checkpoint}", "--alphas=0,1", "--overwrite"]
    assert evaluate(*flags) == 0
    mixed = document(evaluate.out)["benchmarks"]["tiny"]["rows"]["alpha 1"]["metrics"]
    assert mixed == alone


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give one or more --model"),
        (["--model=x", "--interpolate=a,b"], "give one or more --model"),
        (["--model=x", "--benchmarks=nothing"], "there is no benchmark 'nothing'; --benchmarks"),
        (["--model=gone/model"], "gone/model"),
        (["--model=x", "--distributed=host:1"], "needs --process-id and --num-processes as well"),
        (["--interpolate=a,b", "--benchmarks=tiny"], "none measures retention"),
    ],
)
def test_mistakes_are_messages(evaluate, flags, message, capsys):
    assert evaluate(*flags) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and "Traceback" not in err


def test_an_output_folder_that_cannot_be_written(evaluate, tmp_path, capsys):
    evaluate.out = tmp_path / "file"
    evaluate.out.write_text("")
    assert evaluate("--model=x") == 1
    assert capsys.readouterr().err == f"error: cannot write to --out={evaluate.out}: File exists\n"


def test_an_output_folder_in_a_bucket_is_refused(evaluate, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    evaluate.out = "gs://bucket/out"
    assert evaluate("--model=nothing") == 1
    assert "is no folder of this machine" in capsys.readouterr().err
    assert not (tmp_path / "gs:").exists()


def test_a_failure_on_one_benchmark_is_status_1(
    evaluate, tiny_benchmarks, tiny_checkpoint, caplog, tmp_path
):
    items = json.loads((tiny_benchmarks / "tiny.json").read_text())
    items[0]["image"] = "bad.png"
    (tiny_benchmarks / "tiny.json").write_text(json.dumps(items))
    (tiny_benchmarks / "bad.png").write_bytes(b"no image")
    with caplog.at_level(logging.INFO):
        assert evaluate(f"--model=m={tiny_checkpoint}") == 1
    assert "m on tiny: 1 images cannot be used: bad.png: this is not an image" in caplog.text
    assert "m" in document(evaluate.out)["benchmarks"]["tiny"]["errors"]
    assert "failed" in (evaluate.out / "report.html").read_text()


@pytest.mark.slow
def test_the_real_slices(shared_data, tiny_checkpoint, tmp_path, capsys):
    slices = shared_data / "benchmarks" / "slices"
    if not slices.is_dir():
        pytest.skip(f"{slices} is not there")
    flags = [f"--data={slices}", f"--data={shared_data}", f"--out={tmp_path}"]
    flags += ["--benchmarks=negbench_mcq,sugarcrepe,pope", f"--model={tiny_checkpoint}"]
    assert command_line.main(flags) == 0
    found = document(tmp_path)["benchmarks"]
    assert found["negbench_mcq"]["scored"] == 313 and not found["negbench_mcq"]["subset"]
    control = found["negbench_mcq"]["rows"]["text-only solver"]
    assert control["metrics"]["accuracy"]["value"] > 0.9
