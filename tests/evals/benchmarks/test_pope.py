"""POPE as pairs of statements: the texts, a loop over the files, and what liking "no" gains."""

import json

import numpy as np
import pytest
from tiny_evals import AllThere, feature, features, numbers, pope_record

from evals import registry
from evals.benchmarks import pope
from evals.images import DataRoots, ImageRef
from negclip_jax.common.errors import InputError


def check(problem, files) -> None:
    result = problem.score(*features(problem))
    expected, yes = [], []
    for file in files:
        for line in file.read_text().splitlines():
            record = json.loads(line)
            image = feature(ImageRef(record["image"])).astype(np.float64)
            thing = record["text"].removeprefix("Is there ").split(" ", 1)[1]
            thing = thing.removesuffix(" in the image?")
            article = record["text"].split()[2]
            there = np.float32(feature(f"There is {article} {thing} in the image.") @ image)
            denied = np.float32(feature(f"There is no {thing} in the image.") @ image)
            yes.append(record["label"] == "yes")
            expected.append(float(there > denied if yes[-1] else denied > there))
    assert result.predictions["right_official"] == expected
    ours = numbers(result)
    assert ours["accuracy"] == np.mean(expected)
    assert ours["accuracy_yes"] == np.mean(np.array(expected)[yes])
    assert ours["accuracy_no"] == np.mean(np.array(expected)[~np.array(yes)])


def test_all_questions_equal_a_loop(shared_data):
    folder = shared_data / "benchmarks" / "pope"
    problem = registry.get("pope").load(AllThere((folder,)))
    assert problem.total == 9000 and len(problem.images) == 500
    check(problem, [folder / f"coco_pope_{setting}.json" for setting in pope.SETTINGS])
    for control in problem.controls.values():
        assert numbers(control())["accuracy"] == 0.5


def test_the_slice_with_its_photos(shared_data):
    folder = shared_data / "benchmarks" / "slices"
    problem = registry.get("pope").load(DataRoots((folder,), (shared_data / "coco" / "photos",)))
    assert problem.total == problem.scored == 72
    check(problem, [folder / f"pope_{setting}.jsonl" for setting in pope.SETTINGS])


def write(folder, records) -> None:
    for setting in pope.SETTINGS:
        lines = records if setting == "popular" else [pope_record(0)]
        text = "\n".join(r if isinstance(r, str) else json.dumps(r) for r in lines)
        (folder / f"coco_pope_{setting}.json").write_text(text)


def test_one_file_alone(tmp_path):
    (tmp_path / "pope_popular.jsonl").write_text(json.dumps(pope_record(1)))
    problem = registry.get("pope").load(AllThere((tmp_path,)))
    assert problem.notes == ("Parts whose file is not there or empty: random, adversarial.",)
    ours = numbers(problem.score(*features(problem)))
    assert "accuracy_popular" in ours and "accuracy_random" not in ours


def test_statements(tmp_path):
    write(tmp_path, [pope_record(1) | {"text": "Is there an oven in the imange?"}])
    problem = registry.get("pope").load(AllThere((tmp_path,)))
    assert "There is an oven in the image." in problem.texts
    assert "There is no oven in the image." in problem.texts


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"text": "Are there dogs?"}, '"text" is not "Is there a X in the image?" (1): record 2'),
        ({"label": "maybe"}, '"label" is none of yes, no'),
        ({"question_id": 1}, "an id occurs twice (1): 1 in record 1 and record 2"),
        ({"question_id": True}, '"question_id" is not a number'),
        ({"image": None}, '"image" is missing'),
    ],
)
def test_bad_records(tmp_path, change, expected):
    write(tmp_path, [pope_record(0), pope_record(1) | change])
    with pytest.raises(InputError) as caught:
        registry.get("pope").load(AllThere((tmp_path,)))
    assert expected in str(caught.value) and "coco_pope_popular.json" in str(caught.value)


def test_a_line_that_was_cut(tmp_path):
    write(tmp_path, [pope_record(0), '{"question_id": 2, "im'])
    with pytest.raises(InputError, match=r"coco_pope_popular\.json line 2 is not valid JSON"):
        registry.get("pope").load(AllThere((tmp_path,)))


def test_the_position_of_the_negated_text_follows_the_label(tmp_path):
    write(tmp_path, [pope_record(0), pope_record(1)])
    problem = registry.get("pope").load(AllThere((tmp_path,)))
    predictions = problem.score(*features(problem)).predictions
    labels = dict(zip(predictions["item"], predictions["label"], strict=True))
    answers = dict(zip(predictions["item"], predictions["answers"], strict=True))
    assert answers == {item: [int(label == "no")] for item, label in labels.items()}
