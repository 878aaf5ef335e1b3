"""Problems are complained of all at once; every model is scored on every benchmark that works."""

import dataclasses
import json

import pytest
from tiny_benchmark import write_items

from evals import registry, runner
from evals.benchmark import Problem
from evals.images import DataRoots
from evals.models import described
from evals.results import Results
from negclip_jax.common.errors import InputError
from negclip_jax.embeddings import encoder

REAL = registry.BENCHMARKS

pytestmark = pytest.mark.usefixtures("one_device_mesh")


def load(data, names=("tiny", "kept"), **changes):
    return runner.load_problems(names, DataRoots((data,)), **{"allow_subset": False} | changes)


def new_results(out, *models) -> Results:
    settings = {"models": {m.name: described(m) for m in models}, "seed": 0}
    return Results(out, settings, {})


@pytest.fixture
def evaluate(tiny_benchmarks, tmp_path):
    """Function of models to (document, failures)."""

    def run(*models, names=("tiny", "kept"), out="out"):
        results = new_results(tmp_path / out, *models)
        roots = DataRoots((tiny_benchmarks,))
        loaded = runner.load_problems(names, roots, allow_subset=False)
        failures = runner.run(models, loaded, roots, results, cache=tmp_path / "cache")
        return json.loads((tmp_path / out / "results.json").read_text()), failures

    return run


def test_every_model_has_a_row_in_every_benchmark(evaluate, tiny_model, other_model):
    document, failures = evaluate(tiny_model, other_model)
    assert not failures
    for name in ("tiny", "kept"):
        rows = document["benchmarks"][name]["rows"]
        assert {row for row, value in rows.items() if not value["control"]} == {"tiny", "other"}
    tiny, kept = (
        document["benchmarks"][n]["rows"]["other"]["metrics"]["accuracy"]["value"]
        for n in ("tiny", "kept")
    )
    assert tiny == pytest.approx(1 - kept)
    control = document["benchmarks"]["tiny"]["rows"]["takes the first"]
    assert control["control"] and control["metrics"]["accuracy"]["value"] == 1


def test_all_images_and_texts_are_encoded_once_for_all_benchmarks(
    evaluate, tiny_model, monkeypatch
):
    batches = []
    original = encoder.Tower.encode_next

    def counted(tower):
        before = tower.pending
        original(tower)
        batches.append((tower.inputs.name, before - tower.pending))

    monkeypatch.setattr(encoder.Tower, "encode_next", counted)
    evaluate(tiny_model)
    total = {kind: sum(n for name, n in batches if name == kind) for kind, _ in batches}
    assert total == {"images": 12, "texts": 48}  # of 24 and 96 that the two benchmarks list


def test_the_same_evaluation_twice_gives_the_same_files(evaluate, tiny_model, tmp_path):
    evaluate(tiny_model, out="first")
    evaluate(tiny_model, out="second")
    for file in ("results.json", "predictions.parquet"):
        first, second = ((tmp_path / out / file).read_bytes() for out in ("first", "second"))
        assert first == second


def test_an_unreadable_photo_fails_one_benchmark_and_keeps_the_others(
    evaluate, tiny_model, tiny_benchmarks
):
    original = registry.get("kept")

    def needs_the_bad_one(roots) -> Problem:
        problem = original.load(roots)
        bad = dataclasses.replace(problem.images[0], path="bad.png")
        return dataclasses.replace(problem, images=[bad, *problem.images[1:]])

    (tiny_benchmarks / "bad.png").write_bytes(b"")
    with pytest.MonkeyPatch.context() as patch:
        broken = dataclasses.replace(original, load=needs_the_bad_one)
        get = registry.get
        patch.setattr(registry, "get", lambda name: broken if name == "kept" else get(name))
        document, failures = evaluate(tiny_model)
    (failure,) = failures
    message = failure.removeprefix("tiny on kept: ")
    assert message.startswith("1 images cannot be used: bad.png: the image file is empty")
    assert document["benchmarks"]["kept"]["errors"] == {"tiny": message}
    assert "tiny" in document["benchmarks"]["tiny"]["rows"]


def test_all_wrong_files_come_in_one_message(tiny_benchmarks):
    write_items(tiny_benchmarks, images=15)
    with pytest.raises(InputError) as caught:
        load(tiny_benchmarks, names=("tiny", "nothing", "kept"))
    tiny, nothing, kept = str(caught.value).split("\n")
    assert tiny == (
        "tiny: 3 photos are not below the data folders, so that 6 of 30 items cannot be scored: "
        "12.png, 13.png, 14.png. Add them, or give --allow-subset to score the others, marked as a "
        "subset"
    )
    assert nothing == (
        "there is no benchmark 'nothing'; --benchmarks takes one or more of: tiny, kept"
    )
    assert kept.startswith("kept: 3 photos are not below")


def test_a_subset_is_scored_when_it_is_allowed(tiny_benchmarks, tmp_path):
    write_items(tiny_benchmarks, images=25)
    loaded = load(tiny_benchmarks, allow_subset=True, out=tmp_path / "out")
    _, problem = loaded["tiny"]
    assert (problem.scored, problem.total) == (24, 50)
    listed = (tmp_path / "out" / "missing_photos.txt").read_text().splitlines()
    assert len(listed) == 26 and listed[0] == "tiny\t12.png"
    with pytest.raises(InputError, match=r"12\.png, .*, 21\.png and 3 more\. Add them"):
        load(tiny_benchmarks)


def test_without_any_photo_there_is_no_subset(tiny_benchmarks):
    (tiny_benchmarks / "photos").unlink()
    with pytest.raises(InputError, match=r"tiny: none of its photos is below the data folders: 0"):
        load(tiny_benchmarks, allow_subset=True)


def test_available_skips_what_is_not_there(tiny_benchmarks, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setitem(registry.BENCHMARKS, "negrefcocog", REAL["negrefcocog"])
    assert list(load(tiny_benchmarks, names=["available"])) == ["tiny", "kept"]
    assert "left out, for their files or photos are not there: negrefcocog" in caplog.text
    with pytest.raises(InputError, match=r"negrefcocog: NegRefCOCOg\.json.* is not below"):
        load(tiny_benchmarks, names=["tiny", "negrefcocog"])
    (tiny_benchmarks / "tiny.json").unlink()
    with pytest.raises(InputError, match="no benchmark has its files below"):
        load(tiny_benchmarks, names=["available"])
