"""The whole command: tiny CLIPSeg, made photos and real ones, bad input in one line."""

import json
import re
import subprocess
import sys

import pytest

from evals.segmentation import __main__ as segmentation
from evals.segmentation import metrics


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("negclip_jax.runtime.console.set_up_logging", lambda: None)
    monkeypatch.setattr(metrics.measure, "__kwdefaults__", {"seed": 0, "resamples": 50})


@pytest.fixture
def run(clipseg_directory, tuned_tower, annotated, tmp_path):
    """Function of flags to the exit status; results lie in `run.out`."""

    def call(*flags: str, data=annotated, model=f"tuned={tuned_tower}") -> int:
        base, out = f"--clipseg={clipseg_directory}", f"--out={call.out}"
        return segmentation.main([base, f"--model={model}", f"--data={data}", out, *flags])

    call.out = tmp_path / "out"
    return call


def document(out) -> dict:
    return json.loads((out / "results.json").read_text())


def test_base_and_tuned_side_by_side(run, annotated, capsys):
    assert run("--size=64") == 0
    found = document(run.out)
    assert list(found["settings"]["models"]) == ["CLIPSeg", "tuned"]
    entry = found["benchmarks"]["categories"]
    assert entry["scored"] == entry["total"] == 6 and not entry["subset"]
    numbers = entry["rows"]["tuned"]["metrics"]
    assert 0 < numbers["miou@0.3"]["value"] < numbers["iou@0.3"]["value"] < 1
    change = entry["comparisons"]["CLIPSeg -> tuned"]["metrics"]["ap"]
    assert change["low"] <= change["difference"] <= change["high"]
    assert found["warnings"] == [] and "evals/cues.py" in found["negated"]
    assert "categories_negated" not in found["benchmarks"]  # no category negates
    table = capsys.readouterr().out
    assert "Category names: all phrases: miou@0.3" in table and "CLIPSeg" in table
    page = (run.out / "report.html").read_text()
    assert page.count("data:image/jpeg;base64") >= 3 and "true mask" in page
    assert "352 x 352" not in page and "64 x 64 pixels" in page
    lines = (run.out / "phrases.jsonl").read_bytes()
    assert run("--size=64") == 0 and (run.out / "phrases.jsonl").read_bytes() == lines


def test_the_old_flag_works_with_a_warning(run, clipseg_directory, tuned_tower, annotated, capsys):
    """What was --base is --clipseg: the same command, which finds its own results."""
    assert run("--size=32") == 0
    new, _ = document(run.out), capsys.readouterr()
    flags = [f"--model=tuned={tuned_tower}", f"--data={annotated}", f"--out={run.out}", "--size=32"]
    for base in ([f"--base={clipseg_directory}"], ["--base", str(clipseg_directory)]):
        assert segmentation.main([*base, *flags]) == 0
        assert document(run.out)["benchmarks"] == new["benchmarks"]
        told = "warning: --base is now --clipseg; the old flag works until the next release\n"
        assert capsys.readouterr().err.startswith(told)


def test_an_untuned_tower_changes_nothing(run, same_tower):
    assert run("--size=32", model=f"same={same_tower}") == 0
    change = document(run.out)["benchmarks"]["categories"]["comparisons"]["CLIPSeg -> same"]
    assert {m["difference"] for m in change["metrics"].values()} == {0.0}
    assert not any(m["gained"] or m["lost"] or m["separable"] for m in change["metrics"].values())
    assert "Worst losses" not in (run.out / "report.html").read_text()


def test_negated_phrases_are_scored_on_their_own_and_markup_is_escaped(run, annotated):
    content = json.loads((annotated / "instances.json").read_text())
    for category, name in zip(
        content["categories"], ("no <b>cat</b>", "a <b>cat</b>"), strict=True
    ):
        category["name"] = name
    (annotated / "instances.json").write_text(json.dumps(content))
    assert run("--size=64") == 0
    negated = document(run.out)["benchmarks"]["categories_negated"]
    assert negated["scored"] == 3 and "evals/cues.py" in negated["notes"][-1]
    page = (run.out / "report.html").read_text()
    assert "&lt;b&gt;cat&lt;/b&gt;" in page and "<b>cat</b>" not in page


def test_a_stopped_command_has_a_page_of_what_it_scored_and_continues(run, monkeypatch, capsys):
    from evals.segmentation import scoring

    inner, looked = scoring.look, []

    def stops(towers, phrases, roots):
        looked.append(phrases)
        if len(looked) == 3:
            raise KeyboardInterrupt
        return inner(towers, phrases, roots)

    monkeypatch.setattr(scoring, "look", stops)
    assert run("--size=32") == 130
    assert "the same command continues" in capsys.readouterr().err
    entry = document(run.out)["benchmarks"]["categories"]
    assert (entry["scored"], entry["total"], entry["subset"]) == (4, 6, True)
    assert "subset: 4 of 6" in (run.out / "report.html").read_text()
    monkeypatch.setattr(scoring, "look", inner)
    assert run("--size=32") == 0
    entry = document(run.out)["benchmarks"]["categories"]
    assert (entry["scored"], entry["subset"]) == (6, False)


def test_results_of_other_models_are_not_mixed(run, same_tower, capsys):
    assert run("--size=32") == 0
    assert run("--size=32", model=f"tuned={same_tower}") == 1
    assert "holds results of other models or another --size" in capsys.readouterr().err
    assert run("--size=32", "--overwrite", model=f"tuned={same_tower}") == 0


def test_a_tower_of_another_training_is_marked_everywhere(run, tiny_checkpoint, caplog):
    assert run("--size=32", model=f"alien={tiny_checkpoint}") == 0
    words = "was not fine-tuned from CLIPSeg"
    assert words in caplog.text and words in document(run.out)["warnings"][0]
    assert words in (run.out / "report.html").read_text()


@pytest.mark.slow
def test_real_photos_and_masks(run, shared_data):
    """24 COCO photos with their own polygons and crowds, and the negated phrase at hand."""
    content = json.loads((shared_data / "coco" / "instances.json").read_text())
    crowds = {a["image_id"] for a in content["annotations"] if a["iscrowd"]}
    kept = [i for i in content["images"] if i["id"] in crowds or i["id"] == 358083][:23]
    kept += [i for i in content["images"] if i["id"] == 358083 and i not in kept]
    names = {image["id"] for image in kept}
    content["images"] = kept
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in names]
    data = run.out.parent / "real"
    data.mkdir()
    (data / "instances.json").write_text(json.dumps(content))
    (data / "NegRefCOCOg.json").write_bytes(
        (shared_data / "benchmarks" / "negrefcocog" / "NegRefCOCOg.json").read_bytes()
    )
    photos = f"--images={shared_data / 'coco' / 'photos'}"
    assert run("--size=64", "--allow-subset", photos, data=data) == 0
    found = document(run.out)["benchmarks"]
    assert found["categories"]["scored"] > 60 and not found["categories"]["subset"]
    assert (
        found["negrefcocog_negated"]["scored"] == 1 < found["negrefcocog_negated"]["total"]
        and found["negrefcocog"]["subset"]
    )
    assert "subset: 1 of 440" in (run.out / "report.html").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--phrases=phrasecut"], "refer_test.json is not below"),
        (["--phrases=nothing"], "is not one of phrasecut, refcoco, negrefcocog, categories"),
        (["--size=30"], "no multiple of 16"),
        (["--device=quantum"], "--device=quantum cannot be used"),
    ],
)
def test_bad_input_is_one_line(run, capsys, flags, message):
    assert run(*flags) == 1
    error = capsys.readouterr().err
    assert re.search(message, error) and "Traceback" not in error


def test_help_needs_neither_jax_nor_torch():
    code = (
        "import sys\nfrom evals.segmentation.__main__ import main\n"
        "try:\n    main(['--help'])\nfinally:\n"
        "    assert not {'jax', 'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--allow-subset" in done.stdout, done.stderr
