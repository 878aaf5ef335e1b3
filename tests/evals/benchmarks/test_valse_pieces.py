"""The other pieces of VALSE: those that are there, by a loop; their mean only if all are."""

import json

import numpy as np
import pytest
from tiny_evals import AllThere, feature, features, numbers, valse_record, write_json

from evals.benchmarks import valse_pieces
from evals.images import DataRoots, ImageRef
from negclip_jax.common.errors import InputError

COUNTS = {"plurals": (1000, 851), "relations": (614, 535), "foil-it": (1000, 943)}


def test_items_equal_a_loop(shared_data):
    folder = shared_data / "benchmarks" / "valse"
    problem = valse_pieces.load(AllThere((folder,)))
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


def test_the_slice_with_its_photos(shared_data):
    roots = DataRoots((shared_data / "benchmarks" / "slices",), (shared_data / "coco" / "photos",))
    problem = valse_pieces.load(roots)
    assert problem.total == problem.scored == 85 and not problem.missing


def test_absent_pieces_are_named_and_there_is_no_mean(tmp_path):
    write_json(tmp_path / "plurals.json", {"a": valse_record(0)})
    problem = valse_pieces.load(AllThere((tmp_path,)))
    assert "relations" in problem.notes[0] and "plurals" not in problem.notes[0]
    assert "accuracy_mean_of_pieces" not in numbers(problem.score(*features(problem)))


def test_the_mean_weighs_pieces_equally(tmp_path):
    for n, piece in enumerate(valse_pieces.PIECES, 1):
        records = {f"{i}": valse_record(i) for i in range(n)}
        write_json(tmp_path / f"valse_{piece}.json", records)
    problem = valse_pieces.load(AllThere((tmp_path,)))
    assert not problem.notes
    result = numbers(problem.score(*features(problem)))
    pieces = [result[piece] for piece in valse_pieces.PIECES]
    assert result["accuracy_mean_of_pieces"] == pytest.approx(np.mean(pieces))
    assert len(set(pieces)) > 2


def test_a_bad_piece_is_not_taken_for_an_absent_one(tmp_path):
    write_json(tmp_path / "plurals.json", {"a": valse_record(0)})
    write_json(tmp_path / "relations.json", {"a": valse_record(0) | {"foil": ""}})
    with pytest.raises(InputError, match=r'relations\.json has 1 problem: "foil" is empty'):
        valse_pieces.load(AllThere((tmp_path,)))
