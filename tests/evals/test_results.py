"""What is on disk after each benchmark of each model, and what a second command may add."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from evals import results as results_module
from evals.benchmark import Benchmark, Metric, Problem, Published, Result, by_both_rules
from evals.images import ImageRef
from evals.results import Results, headlines, table_text
from negclip_jax.common.errors import InputError

SETTINGS = {
    "models": {"a": {"facts": {}, "fingerprint": "1"}, "b": {"facts": {}, "fingerprint": "2"}},
    "seed": 0,
}
PUBLISHED = (Published("CLIP", "accuracy", 0.5, "paper"),)
BENCHMARK = Benchmark("x", "X", "source", "MIT", "there", load=None, published=PUBLISHED)
IMAGES = [ImageRef("0.png"), ImageRef("1.png", (1.0, 2.0, 3.0, 4.0))]
PROBLEM = Problem(IMAGES, ["t"], score=None, total=6, scored=4, missing=["9.png"], file="f.json")
ITEMS = np.array(["i0", "i1", "i2", "i3"])


def result(right, **changes) -> Result:
    right = np.asarray(right, float)
    metric = Metric("accuracy", right, ITEMS, np.array([0, 0, 1, 1]), None, 0.5, headline=True)
    columns = {
        "item": ITEMS.tolist(),
        "images": [[0], [0], [1], [0, 1]],
        "texts": [["no", "yes"], ["a", "b"], ["c", "d"], ["one text"]],
        "scores": [[0.1, 0.2], [0.3, float("-inf")], [0.5, 0.6], [0.7, 0.8]],
        "answers": [[0]] * 4,
        "predicted": [[1], [0], [1], [1]],
        "right": right.tolist(),
        "cue": ["no", "not", "no", "not"],
        "rank": [1, 2, 3, 4],
    }
    return dataclasses.replace(Result([metric], columns, {"cue": "by cue"}), **changes)


def opened(out, settings=SETTINGS, **changes) -> Results:
    return Results(out, settings, {"python": "3"}, **changes)


@pytest.fixture
def filled(tmp_path):
    """Folder with both models' results."""
    found = opened(tmp_path)
    found.begin(BENCHMARK, PROBLEM)
    found.add("x", "guesses", PROBLEM, result([0, 0, 1, 1]), control=True)
    found.add("x", "a", PROBLEM, result([0, 1, 0, 0]))
    found.add("x", "b", PROBLEM, result([1, 1, 1, 0]))
    return tmp_path


def read(out) -> dict:
    return json.loads((out / "results.json").read_text())


def test_the_document(filled):
    entry = read(filled)["benchmarks"]["x"]
    assert entry["subset"] and (entry["scored"], entry["total"], entry["missing"]) == (4, 6, 1)
    assert entry["published"] == [
        {"model": "CLIP", "metric": "accuracy", "value": 0.5, "source": "paper"}
    ]
    accuracy = entry["rows"]["b"]["metrics"]["accuracy"]
    assert (accuracy["value"], accuracy["n"], accuracy["chance"]) == (0.75, 4, 0.5)
    assert accuracy["method"] == "bootstrap over 2 images"
    assert entry["rows"]["guesses"]["control"] and not entry["rows"]["a"]["control"]


def test_models_are_compared_on_the_same_items_and_controls_are_not(filled):
    comparisons = read(filled)["benchmarks"]["x"]["comparisons"]
    assert list(comparisons) == ["a -> b"]
    found = comparisons["a -> b"]["metrics"]["accuracy"]
    assert (found["gained"], found["lost"], found["difference"]) == (2, 0, 0.5)
    assert found["separable"] is False and found["p_value"] == 0.5


def test_breakdowns_are_shares_of_right_items_by_group(filled):
    groups = read(filled)["benchmarks"]["x"]["breakdowns"]["cue"]
    assert groups["no"]["b"]["value"] == 1 and groups["not"]["b"]["value"] == 0.5
    assert groups["no"]["b"]["n"] == 2


def test_predictions_are_one_row_an_item_and_model(filled):
    rows = pq.read_table(filled / "predictions.parquet").to_pylist()
    assert [row["row"] for row in rows[::4]] == ["guesses", "a", "b"]
    last = rows[-1]
    assert last == {
        "benchmark": "x",
        "row": "b",
        "item": "i3",
        "images": ["0.png", "1.png"],
        "boxes": [None, [1.0, 2.0, 3.0, 4.0]],
        "texts": ["one text"],
        "scores": [0.7, 0.8],
        "answers": [0],
        "predicted": [1],
        "right": 0.0,
        "subset": True,
        "groups": [("cue", "not"), ("rank", "4")],
    }


def test_files_are_complete_after_every_row(tmp_path):
    found = opened(tmp_path)
    found.begin(BENCHMARK, PROBLEM)
    for rows, name in enumerate(("a", "b"), 1):
        found.add("x", name, PROBLEM, result([0, 1, 0, 0]))
        assert list(read(tmp_path)["benchmarks"]["x"]["rows"]) == ["a", "b"][:rows]
        assert pq.read_table(tmp_path / "predictions.parquet").num_rows == 4 * rows
    assert not list(tmp_path.glob("*.partial*"))


def test_a_second_command_adds_its_benchmarks(filled):
    before = read(filled)["benchmarks"]["x"]
    again = opened(filled)
    again.begin(dataclasses.replace(BENCHMARK, name="y"), PROBLEM)
    again.add("y", "a", PROBLEM, result([1, 1, 1, 1]))
    assert read(filled)["benchmarks"]["x"] == before
    table = pq.read_table(filled / "predictions.parquet")
    assert table["benchmark"].to_pylist() == ["x"] * 12 + ["y"] * 4


def test_the_same_benchmark_again_replaces_its_rows(filled):
    again = opened(filled)
    again.begin(BENCHMARK, PROBLEM)
    again.add("x", "a", PROBLEM, result([1, 1, 1, 1]))
    rows = read(filled)["benchmarks"]["x"]["rows"]
    assert rows["a"]["metrics"]["accuracy"]["value"] == 1 and "b" in rows
    assert pq.read_table(filled / "predictions.parquet").num_rows == 12


def test_other_items_start_a_benchmark_afresh(filled):
    again = opened(filled)
    again.begin(BENCHMARK, dataclasses.replace(PROBLEM, scored=6, missing=[]))
    again.add("x", "a", PROBLEM, result([1, 1, 1, 1]))
    entry = read(filled)["benchmarks"]["x"]
    assert list(entry["rows"]) == ["a"] and not entry["subset"] and not entry["comparisons"]
    assert pq.read_table(filled / "predictions.parquet").num_rows == 4


def test_results_of_other_models_are_not_mixed_or_lost(filled):
    other = SETTINGS | {"models": {"a": {"facts": {}, "fingerprint": "3"}}}
    before = (filled / "results.json").read_bytes()
    with pytest.raises(
        InputError, match=r"holds results of a, b with other models: give another --out"
    ):
        opened(filled, other)
    assert (filled / "results.json").read_bytes() == before
    assert opened(filled, other, overwrite=True).document["benchmarks"] == {}


def test_a_damaged_file_is_one_line(filled):
    (filled / "results.json").write_text("{")
    with pytest.raises(InputError, match=r"results\.json is damaged .*: remove it"):
        opened(filled)


@pytest.mark.parametrize("content", ["[]", '{"settings": {}}', "[" * 10_000, '{"a": 1, "a": 2}'])
def test_another_layout_is_one_line(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(InputError, match=r"results\.json is damaged .*: remove it"):
        opened(tmp_path)


def test_damaged_predictions_are_one_line(filled):
    (filled / "predictions.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"predictions\.parquet is damaged"):
        opened(filled)


def test_a_failure_is_noted_until_the_model_is_scored(filled):
    again = opened(filled)
    again.begin(BENCHMARK, PROBLEM)
    again.fail("x", "b", "a bad photo")
    assert read(filled)["benchmarks"]["x"]["errors"] == {"b": "a bad photo"}
    again.add("x", "b", PROBLEM, result([1, 1, 1, 0]))
    assert read(filled)["benchmarks"]["x"]["errors"] == {}


def test_the_table_for_the_terminal(filled):
    title, numbers, change = table_text(read(filled)).split("\n")
    assert title.split() == ["a", "b", "n"]
    assert numbers.startswith("X (subset: 4 of 6 items): accuracy")
    assert "25.0 [0.0, 50.0]" in numbers and numbers.endswith("4")
    assert change.strip() == "+50.0 (2 up, 0 down, not separable)"


def test_intervals_say_how_long_they_take(tmp_path, monkeypatch, capsys):
    """As if each took ten seconds."""
    monkeypatch.setattr("negclip_jax.common.progress.FIRST_SECONDS", 0.0)
    found = opened(tmp_path)
    found.begin(BENCHMARK, PROBLEM)
    again = dataclasses.replace(result([0, 1, 0, 0]).metrics[0], name="again")
    for model in ("a", "b"):
        both = result([0, 1, 0, 0])
        found.add("x", model, PROBLEM, dataclasses.replace(both, metrics=[*both.metrics, again]))
    lines = [line.partition(": 1 of 2, ETA ")[0] for line in capsys.readouterr().err.splitlines()]
    of_each = [f"{model} on x: intervals{by}" for model in "ab" for by in ("", " by cue")]
    assert lines == [*of_each, "a against b on x: intervals"]


def test_one_process_writes(tmp_path):
    found = opened(tmp_path / "out", writes=False)
    found.begin(BENCHMARK, PROBLEM)
    found.add("x", "a", PROBLEM, result([0, 1, 0, 0]))
    assert not (tmp_path / "out").exists()


def test_a_column_of_ids_is_no_breakdown(tmp_path, monkeypatch):
    monkeypatch.setattr(results_module, "_MAX_GROUPS", 1)
    found = opened(tmp_path)
    found.begin(BENCHMARK, PROBLEM)
    found.add("x", "a", PROBLEM, result([0, 1, 0, 0]))
    assert read(tmp_path)["benchmarks"]["x"]["breakdowns"] == {}


def test_headlines_fall_back_to_the_first_metric():
    metrics = {"m": {"headline": False}, "n": {"headline": False}}
    assert headlines({"rows": {"a": {"metrics": metrics}}}) == ["m"]
    metrics = metrics | {"n": {"headline": True}}
    assert headlines({"rows": {"a": {"metrics": metrics}}}) == ["n"]


def tied() -> Result:
    """All options score the same, and the official rule takes the first."""
    both = by_both_rules(
        "accuracy", np.ones(4), np.full(4, 0.25), ITEMS, items=ITEMS, headline=True
    )
    columns = result([0.25] * 4).predictions | {"right_official": [1.0] * 4}
    return Result(both, columns, {"cue": "by cue"})


def test_ties_are_counted_and_stand_beside_the_number(tmp_path):
    found = opened(tmp_path)
    found.begin(BENCHMARK, PROBLEM)
    found.add("x", "a", PROBLEM, tied())
    found.add("x", "b", PROBLEM, result([0, 1, 0, 1]))
    entry = read(tmp_path)["benchmarks"]["x"]
    metrics = entry["rows"]["a"]["metrics"]
    assert (metrics["accuracy"]["ties"], metrics["accuracy"]["strict"]) == (4, 0.25)
    assert (metrics["accuracy_strict"]["ties"], metrics["accuracy_strict"]["strict"]) == (4, None)
    assert entry["rows"]["b"]["metrics"]["accuracy"]["ties"] == 0
    # The breakdown has the headline's rule, and says how many tie.
    assert entry["breakdowns"]["cue"]["no"]["a"]["value"] == 1
    assert entry["breakdowns"]["cue"]["no"]["a"]["ties"] == 2
    lines = table_text(read(tmp_path)).split("\n")
    assert "100.0" in lines[1] and lines[2].split("  ")[-1] == "4 of 4 items tie; strict 25.0"


def test_a_file_of_another_size_than_the_published_one_is_told(tmp_path):
    found = opened(tmp_path)
    found.begin(dataclasses.replace(BENCHMARK, size=5914), PROBLEM)
    found.add("x", "a", PROBLEM, result([0, 1, 0, 0]))
    assert read(tmp_path)["benchmarks"]["x"]["size"] == 5914
    told = "X (subset: 4 of 6 items) (the file has 6 of 5,914 items): accuracy"
    assert told in table_text(read(tmp_path))
