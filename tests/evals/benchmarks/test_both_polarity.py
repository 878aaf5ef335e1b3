"""Both polarities: four statements, what likes and dislikes "no" get, drawing, ties."""

import math

import numpy as np
import pytest
from tiny_evals import AllThere, feature, features, instances_content, numbers, write_json

from evals import registry
from evals.benchmarks.both_polarity import Photo, read_photos, statements
from evals.images import DataRoots, ImageRef
from negclip_jax.common.errors import InputError


@pytest.fixture
def problem(tmp_path):
    write_json(tmp_path / "instances.json", instances_content())
    return registry.get("both_polarity").load(AllThere((tmp_path,)))


def test_statements_have_articles():
    photo = Photo(ImageRef("a"), "umbrella", "scissors", "dog")
    assert statements(photo) == (
        "there is no umbrella",
        "there are scissors",
        "there is an umbrella",
        "there are no scissors",
        "an umbrella",
        "scissors but no dog",
    )
    assert len(statements(photo._replace(second=""))) == 4


def test_every_photo_by_a_loop(shared_data):
    """The definition, written once more on random features of real labels."""
    problem = registry.get("both_polarity").load(AllThere((shared_data / "coco",)))
    result = problem.score(*features(problem))
    ours = {
        metric.name: dict(zip(metric.items, metric.values, strict=True))
        for metric in result.metrics
    }
    assert len(ours["absent"]) == problem.total == 317 and 200 < len(ours["mcq"]) < 317
    for i, item in enumerate(result.predictions["item"]):
        image = feature(ImageRef(item)).astype(np.float64)
        no_x, a_y, a_x, no_y = (image @ feature(t) for t in result.predictions["texts"][i])
        assert ours["absent"][item] == (no_x > a_x) and ours["present"][item] == (a_y > no_y)
        assert ours["both_polarities"][item] == (no_x > a_x and a_y > no_y)
        assert ours["all_four"][item] == (min(no_x, a_y) > max(a_x, no_y))
    chances = {metric.name: metric.chance for metric in result.metrics}
    for name, value in numbers(result).items():
        spread = math.sqrt(chances[name] * (1 - chances[name]) / len(ours[name]))
        assert abs(value - chances[name]) < 4 * spread, name


def test_labels_decide_what_is_there(shared_data):
    problem = registry.get("both_polarity").load(AllThere((shared_data / "coco",)))
    from evals.reading import read_json

    content = read_json(shared_data / "coco" / "instances.json", dict)
    names = {row["id"]: row["name"] for row in content["categories"]}
    files = {row["id"]: row["file_name"] for row in content["images"]}
    inside = {(files[row["image_id"]], names[row["category_id"]]) for row in content["annotations"]}
    predictions = problem.score(*features(problem)).predictions
    rows = zip(predictions["item"], predictions["absent"], predictions["present"], strict=True)
    for item, absent, present in rows:
        assert (item, present) in inside and (item, absent) not in inside
    assert len(set(predictions["absent"])) > 40  # not always the same category


def test_liking_and_disliking_no_both_fail(problem):
    liking = numbers(problem.controls["prefers the negated text"]())
    assert liking["both_polarities"] == liking["all_four"] == 0
    assert (liking["absent"], liking["present"]) == (1, 0)
    disliking = numbers(problem.controls["prefers the affirmed text"]())
    assert disliking["both_polarities"] == disliking["all_four"] == 0
    assert (disliking["absent"], disliking["present"], disliking["mcq"]) == (0, 1, 0)


def test_only_the_words_tell_true_from_false(problem):
    """Where absent and present are exchanged, right becomes wrong: nothing hangs on positions."""
    images, texts = features(problem)
    result = problem.score(images, texts)
    mirrored = problem.score(-images, texts)  # every order is reversed
    for name in ("absent", "present", "mcq"):
        ours, theirs = numbers(result)[name], numbers(mirrored)[name]
        assert ours + theirs == pytest.approx(1) or name == "mcq"


def test_draws_depend_on_names_alone(tmp_path):
    write_json(tmp_path / "instances.json", instances_content())
    first = registry.get("both_polarity").load(AllThere((tmp_path,)))
    content = instances_content()
    for key in content:
        content[key] = content[key][::-1]
    for image in content["images"]:
        image["file_name"] = f"elsewhere/{image['file_name']}"
    write_json(tmp_path / "instances.json", content)
    second = registry.get("both_polarity").load(AllThere((tmp_path,)))
    pick = ("absent", "present")
    drawn = [
        dict(
            zip(
                [i.rpartition("/")[2] for i in p["item"]],
                zip(*(p[c] for c in pick), strict=True),
                strict=True,
            )
        )
        for p in (
            first.score(*features(first)).predictions,
            second.score(*features(second)).predictions,
        )
    ]
    assert drawn[0] == drawn[1]


def test_real_photos_are_found(shared_data):
    problem = registry.get("both_polarity").load(DataRoots((shared_data / "coco",)))
    assert problem.scored == problem.total and not problem.missing


def photos_of(folder, content):
    """Photos of an instance file: what is drawn for each, which are left out."""
    return read_photos(write_json(folder / "instances.json", content))


def test_present_and_absent(tmp_path):
    content = instances_content()
    inside = {
        i: {a["category_id"] for a in content["annotations"] if a["image_id"] == i}
        for i in range(6)
    }
    names = {c["id"]: c["name"] for c in content["categories"]}
    photos = {int(p.image.path[:12]): p for p in photos_of(tmp_path, content)}
    assert set(photos) == {i for i in range(6) if 0 < len(inside[i]) < 4}
    for i, photo in photos.items():
        there = {names[c] for c in inside[i]}
        assert photo.present in there and photo.absent not in there
        assert photo.second in there - {photo.present} if len(there) > 1 else photo.second == ""


def test_photos_with_everything_or_nothing_are_left_out(tmp_path):
    content = instances_content()
    content["annotations"] = [
        *({"image_id": 0, "category_id": c} for c in (1, 2, 3, 4)),
        {"image_id": 1, "category_id": 2},
    ]
    assert [p.image.path for p in photos_of(tmp_path, content)] == ["000000000001.jpg"]


@pytest.mark.parametrize(
    ("key", "record", "expected"),
    [
        (
            "annotations",
            {"image_id": 0, "category_id": 9},
            "category_id is not among the categories",
        ),
        ("annotations", {"category_id": 1}, '"image_id" is missing'),
        ("images", {"id": 9, "file_name": "000000000001.jpg"}, "an id occurs twice"),
        ("images", {"id": 9}, '"file_name" is empty'),
        ("categories", {"id": 9, "name": ""}, '"name" is empty'),
    ],
)
def test_bad_instance_files(tmp_path, key, record, expected):
    content = instances_content()
    content[key].append(record)
    with pytest.raises(InputError, match=r"instances\.json has \d problem") as caught:
        photos_of(tmp_path, content)
    assert expected in str(caught.value)


def test_another_json(tmp_path):
    with pytest.raises(InputError, match='the key "annotations" is missing'):
        photos_of(tmp_path, {"images": [{"id": 1, "file_name": "a.jpg"}]})
