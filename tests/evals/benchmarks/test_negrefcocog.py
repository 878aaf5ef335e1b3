"""NegRefCOCOg against the official script's loop, its bad files, and what its boxes give away."""

import json

import numpy as np
import pytest
from tiny_evals import (
    AllThere,
    feature,
    features,
    negrefcocog_record,
    numbers,
    write_json,
    write_photos,
)

from evals import registry
from evals.images import DataRoots, ImageRef
from negclip_jax.common.errors import InputError


def official(path) -> list[bool]:
    """`negrefcocog_eval.py`: a loop over boxes, np.argmax, equality of boxes."""
    right = []
    for item in json.loads(path.read_text()):
        similarities = []
        for x, y, w, h in item["bbox_list"]:
            crop = feature(ImageRef(item["image"], (float(x), float(y), float(w), float(h))))
            similarities.append(np.float32(feature(item["phrase"]).astype(np.float64) @ crop))
        predicted = item["bbox_list"][np.argmax(similarities)]
        right.append(predicted == item["ref_bbox"])
    return right


@pytest.fixture(scope="module")
def published(shared_data):
    path = shared_data / "benchmarks" / "negrefcocog"
    return path / "NegRefCOCOg.json", registry.get("negrefcocog").load(AllThere((path,)))


def test_all_items_equal_the_official_script(published):
    file, problem = published
    result = problem.score(*features(problem))
    assert problem.total == 440 and len({ref.path for ref in problem.images}) == 402
    assert result.predictions["right_official"] == [float(r) for r in official(file)]
    assert 180 < sum(result.predictions["right_official"]) < 260  # the comparison is not empty


def test_ties_are_right_officially_and_half_strictly(published):
    _, problem = published
    same = np.ones((len(problem.images), 2), np.float32)
    result = problem.score(same, np.ones((len(problem.texts), 2), np.float32))
    assert numbers(result)["accuracy"] == 1 and numbers(result)["accuracy_strict"] == 0.5


def test_what_the_boxes_give_away(published):
    """The smaller box alone reaches 252 of 440, CLIP ViT-B/32 254; balanced by area, chance."""
    _, problem = published
    smaller = numbers(problem.controls["takes the smaller box"]())
    assert smaller["accuracy"] == pytest.approx(252 / 440)
    assert smaller["accuracy_area_balanced"] == pytest.approx(0.5)
    taller = numbers(problem.controls["takes the box of taller shape"]())
    assert taller["accuracy"] == pytest.approx(0.557, abs=0.002)
    top = numbers(problem.controls["takes the top-most box"]())
    assert top["accuracy"] == top["accuracy_strict"] == pytest.approx(0.494, abs=0.001)


def test_a_taste_for_small_crops_gains_nothing_when_balanced(published):
    """A scorer that takes the smaller box 80 % of the time, and knows nothing else."""
    _, problem = published
    rng = np.random.default_rng(0)
    groups = np.array(problem.controls["takes the smaller box"]().predictions["size"])
    gains = []
    for _ in range(40):
        takes_smaller = rng.random(len(groups)) < 0.8
        right = takes_smaller == (groups == "smaller")
        balanced = np.mean([right[groups == g].mean() for g in ("smaller", "larger")])
        gains.append((right.mean() - 0.5, balanced - 0.5))
    plain, balanced = np.mean(gains, axis=0)
    assert plain > 0.03 and abs(balanced) < 0.01


def test_cues_of_the_phrases(published):
    _, problem = published
    cues = problem.score(*features(problem)).predictions["cue"]
    counts = {cue: cues.count(cue) for cue in set(cues)}
    assert counts["not"] == 199 and counts["without"] == 97 and counts["nobody"] == 23
    assert counts["none"] == 7  # "no . 10": a number, no negation


def test_the_slice_with_its_photo(shared_data):
    roots = DataRoots((shared_data / "benchmarks" / "slices",), (shared_data / "coco",))
    problem = registry.get("negrefcocog").load(roots)
    assert problem.scored == problem.total == 1
    x, y, w, h = problem.images[0].box
    assert problem.images[0].open(roots).size == (round(x + w) - round(x), round(y + h) - round(y))


def error(folder, records) -> str:
    write_json(folder / "NegRefCOCOg.json", records)
    write_photos(folder, [f"COCO_train2014_{i:012d}.jpg" for i in range(3)])
    with pytest.raises(InputError) as caught:
        registry.get("negrefcocog").load(DataRoots((folder,)))
    assert "NegRefCOCOg.json" in str(caught.value)
    return str(caught.value)


def test_box_outside_its_photo(tmp_path):
    record = negrefcocog_record(0)
    record["bbox_list"][1] = [10, 4, 80, 30]
    message = error(tmp_path, [negrefcocog_record(1), record])
    assert "a box lies outside its photo (1): item 1: [10.0, 4.0, 80.0, 30.0]" in message
    assert "of 64 x 48" in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"ref_bbox": [1, 1, 5, 5]}, '"ref_bbox" is not exactly one of'),
        ({"bbox_list": [[0, 0, 20.5, 48]]}, '"ref_bbox" is not exactly one of'),
        ({"bbox_list": "[[0, 0, 1, 1]]"}, '"bbox_list" is not a list'),
        ({"bbox_list": [[0, 0, 20.5, 48], [0, 0, 0, 5]]}, "a box has no area"),
        ({"bbox_list": [[0, 0, 20.5, 48], [0, 0, "a", 5]]}, "a box is not four numbers"),
        ({"phrase": None}, '"phrase" is missing'),
        ({"image": 3}, '"image" is not a string'),
    ],
)
def test_bad_records(tmp_path, change, expected):
    assert expected in error(tmp_path, [negrefcocog_record(1), negrefcocog_record(0) | change])


def test_several_boxes_and_a_middle_answer(tmp_path):
    record = negrefcocog_record(0, answer=1)
    record["bbox_list"].append([5, 5, 10, 10])
    write_json(tmp_path / "NegRefCOCOg.json", [record])
    write_photos(tmp_path, ["COCO_train2014_000000000000.jpg"])
    problem = registry.get("negrefcocog").load(DataRoots((tmp_path,)))
    result = problem.score(*features(problem))
    assert result.predictions["answers"] == [[1]]
    assert result.metrics[0].chance == pytest.approx(1 / 3)
