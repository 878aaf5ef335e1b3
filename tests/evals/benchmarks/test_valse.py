"""VALSE existence: pairwise accuracy by a loop, all 534 items and the 505 valid ones, bad files."""

import json

import numpy as np
import pytest
from tiny_evals import AllThere, feature, features, numbers, valse_record, write_json

from evals import registry
from evals.benchmarks import valse
from evals.images import DataRoots, ImageRef
from negclip_jax.common.errors import InputError


def official(path) -> dict[str, tuple[bool, bool]]:
    """Item to (score(caption) > score(foil), valid), as VALSE's scripts count `acc_r`."""
    results = {}
    for key, item in json.loads(path.read_text()).items():
        image = feature(ImageRef(item["image_file"])).astype(np.float64)
        caption, foil = (np.float32(feature(item[k]) @ image) for k in ("caption", "foil"))
        results[key] = (bool(caption > foil), item["mturk"]["caption"] >= 2)
    return results


@pytest.fixture(scope="module")
def published(shared_data):
    folder = shared_data / "benchmarks" / "valse"
    return folder / "existence.json", registry.get("valse").load(AllThere((folder,)))


def test_all_items_equal_a_loop(published):
    file, problem = published
    result = problem.score(*features(problem))
    expected = official(file)
    assert result.predictions["right_official"] == [float(right) for right, _ in expected.values()]
    valid = [right for right, valid in expected.values() if valid]
    assert (problem.total, len(valid)) == (534, 505)
    assert numbers(result)["accuracy"] == np.mean([right for right, _ in expected.values()])
    assert numbers(result)["accuracy_valid"] == pytest.approx(np.mean(valid))
    by_name = {metric.name: len(metric.values) for metric in result.metrics}
    assert by_name["accuracy_valid"] == 505 and by_name["accuracy"] == 534


def test_a_liking_for_no_gains_nothing(published):
    """Negation is in 267 captions and 265 foils only; one foil adds a second one, and one item's
    caption and foil are equal."""
    _, problem = published
    liking = numbers(problem.controls["prefers the negated text"]())
    assert liking["accuracy_strict"] == pytest.approx((267 + 1 / 2) / 534)
    disliking = numbers(problem.controls["prefers the affirmed text"]())
    assert disliking["accuracy_strict"] == pytest.approx((265 + 1 + 1 / 2) / 534)


def test_published_values_are_shares_of_534():
    for value in registry.get("valse").published:
        assert value.value * 534 == pytest.approx(round(value.value * 534))
    percent = [round(100 * value.value, 2) for value in registry.get("valse").published]
    assert percent == [70.97, 76.78, 71.72, 80.15, 66.85, 79.59]


def error(folder, content) -> str:
    path = folder / "valse" / "existence.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError) as caught:
        registry.get("valse").load(DataRoots((folder,)))
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_the_same_id_twice(tmp_path):
    record = json.dumps(valse_record(0))
    assert "the key 'a' occurs twice" in error(tmp_path, f'{{"a": {record}, "a": {record}}}')


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"foil": None}, '"foil" is missing (1): b'),
        ({"caption": " "}, '"caption" is empty (1): b'),
        ({"mturk": {}}, '"caption" is missing (1): b.mturk'),
        ({"mturk": {"caption": "many"}}, '"caption" is not a number (1): b.mturk'),
        ({"foil": ["There is a cat."]}, '"foil" is not a string'),
    ],
)
def test_bad_records(tmp_path, change, expected):
    message = error(tmp_path, {"a": valse_record(0), "b": valse_record(1) | change})
    assert expected in message and "nothing was scored" in message


def test_another_file_of_that_name(tmp_path):
    assert "holds a value of type list, not a JSON object" in error(tmp_path, [valse_record(0)])
    assert "a record is not an object" in error(tmp_path, {"a": 3})


def test_a_file_beside_others_of_its_name(tmp_path):
    """`existence.json` alone is found too, one in a folder `valse` first."""
    write_json(tmp_path / "existence.json", {"other": valse_record(0)})
    assert registry.get("valse").load(DataRoots((tmp_path,))).file.endswith("existence.json")
    write_json(tmp_path / "x" / "valse" / "existence.json", {"a": valse_record(0)})
    assert "valse/existence" in registry.get("valse").load(DataRoots((tmp_path,))).file


COUNTS = {"plurals": (1000, 851), "relations": (614, 535), "foil-it": (1000, 943)}


def test_items_of_pieces_equal_a_loop(shared_data):
    folder = shared_data / "benchmarks" / "valse"
    problem = registry.get("valse_pieces").load(AllThere((folder,)))
    result = problem.score(*features(problem))
    ours = dict(zip(result.predictions["item"], result.predictions["right_official"], strict=True))
    found = {metric.name: metric for metric in result.metrics}
    for piece, (total, valid) in COUNTS.items():
        expected = {}
        for key, item in json.loads((folder / f"{piece}.json").read_text()).items():
            image = feature(ImageRef(item["image_file"])).astype(np.float64)
            scores = [np.float32(feature(item[name]) @ image) for name in ("caption", "foil")]
            expected[f"{piece}:{key}"] = float(scores[0] > scores[1])
        assert expected == {key: ours[key] for key in expected}
        assert len(found[piece].values) == total
        assert len(found[f"{piece}_valid"].values) == valid
        assert numbers(result)[piece] == pytest.approx(np.mean(list(expected.values())))


def test_the_slice_of_pieces_with_its_photos(shared_data):
    roots = DataRoots((shared_data / "benchmarks" / "slices",), (shared_data / "coco" / "photos",))
    problem = registry.get("valse_pieces").load(roots)
    assert problem.total == problem.scored == 85 and not problem.missing


def test_absent_pieces_are_named_and_there_is_no_mean(tmp_path):
    write_json(tmp_path / "plurals.json", {"a": valse_record(0)})
    problem = registry.get("valse_pieces").load(AllThere((tmp_path,)))
    assert "relations" in problem.notes[0] and "plurals" not in problem.notes[0]
    assert "accuracy_mean_of_pieces" not in numbers(problem.score(*features(problem)))


def test_the_mean_weighs_pieces_equally(tmp_path):
    for n, piece in enumerate(valse.PIECES, 1):
        records = {f"{i}": valse_record(i) for i in range(n)}
        write_json(tmp_path / f"valse_{piece}.json", records)
    problem = registry.get("valse_pieces").load(AllThere((tmp_path,)))
    assert not problem.notes
    result = numbers(problem.score(*features(problem)))
    pieces = [result[piece] for piece in valse.PIECES]
    assert result["accuracy_mean_of_pieces"] == pytest.approx(np.mean(pieces))
    assert len(set(pieces)) > 2


def test_a_bad_piece_is_not_taken_for_an_absent_one(tmp_path):
    write_json(tmp_path / "plurals.json", {"a": valse_record(0)})
    write_json(tmp_path / "relations.json", {"a": valse_record(0) | {"foil": ""}})
    with pytest.raises(InputError, match=r'relations\.json has 1 problem: "foil" is empty'):
        registry.get("valse_pieces").load(AllThere((tmp_path,)))
