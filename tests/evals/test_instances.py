"""Photos of an instance file: what is drawn for each, which are left out, bad files."""

import pytest
from tiny_evals import instances_content, write_json

from evals.instances import read_photos
from negclip_jax.common.errors import InputError


def read(folder, content):
    return read_photos(write_json(folder / "instances.json", content))


def test_present_and_absent(tmp_path):
    content = instances_content()
    inside = {
        i: {a["category_id"] for a in content["annotations"] if a["image_id"] == i}
        for i in range(6)
    }
    names = {c["id"]: c["name"] for c in content["categories"]}
    photos = {int(p.image.path[:12]): p for p in read(tmp_path, content)}
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
    assert [p.image.path for p in read(tmp_path, content)] == ["000000000001.jpg"]


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
        ("images", {"id": 9}, '"file_name" is missing'),
        ("categories", {"id": 9, "name": ""}, '"name" is empty'),
    ],
)
def test_bad_files(tmp_path, key, record, expected):
    content = instances_content()
    content[key].append(record)
    with pytest.raises(InputError, match=r"instances\.json has \d problem") as caught:
        read(tmp_path, content)
    assert expected in str(caught.value)


def test_another_json(tmp_path):
    with pytest.raises(InputError, match='"categories" is missing'):
        read(tmp_path, {"images": [{"id": 1, "file_name": "a.jpg"}]})
