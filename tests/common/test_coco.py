"""COCO files: ids however they are written, layouts, objects without what nobody asked for."""

import json

import pytest

from negclip_jax.common import coco
from negclip_jax.common.errors import InputError
from negclip_jax.common.records import Fields


def content(spell=lambda number, _: number):
    """Two images with two objects each; `spell` writes the n-th use of an id."""
    return {
        "images": [
            {"id": spell(i, 0), "file_name": f"{i}.jpg", "width": 100, "height": 100}
            for i in (1, 2)
        ],
        "categories": [{"id": spell(7, 0), "name": "cat"}, {"id": spell(8, 1), "name": "dog"}],
        "annotations": [
            {
                "id": i,
                "image_id": spell(image, i),
                "category_id": spell(category, i),
                "bbox": [0, 0, 10, 2],
                "segmentation": [[0, 0, 10, 0, 10, 2]],
            }
            for i, (image, category) in enumerate([(1, 7), (1, 8), (2, 8), (2, 8)])
        ],
    }


def write(tmp_path, value):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(value))
    return path


SPELLINGS = {
    "numbers": lambda number, _: number,
    "strings": lambda number, _: str(number),
    "floats": lambda number, _: float(number),
    "padded": lambda number, _: f"{number:012d}",
    "mixed": lambda number, use: (number, str(number), float(number), f"00{number}")[use],
}


@pytest.mark.parametrize("kind", SPELLINGS)
def test_one_id_however_it_is_written(kind, tmp_path):
    found = coco.read_instances(write(tmp_path, content(SPELLINGS[kind])))
    assert found.images == {"1": ("1.jpg", 100, 100), "2": ("2.jpg", 100, 100)}
    assert found.categories == ("cat", "dog")
    assert [(row.image, row.category) for row in found.objects] == [
        ("1", "cat"),
        ("1", "dog"),
        ("2", "dog"),
        ("2", "dog"),
    ]


@pytest.mark.parametrize(
    ("key", "record", "message"),
    [
        ("images", {"id": "01", "file_name": "b.jpg"}, r"two images have one id \(1\): 1 in image"),
        ("categories", {"id": "7", "name": "bird"}, r"two categories have one id \(1\): 7 in"),
        ("images", {"id": None}, r'"id" is missing \(1\): images\[2\]'),
        ("images", {"id": 1.5}, r'"id" is neither text nor a whole number'),
        ("images", {"id": True}, r'"id" is neither text nor a whole number'),
        ("annotations", {"image_id": 1, "category_id": 9}, "not among the categories"),
        ("annotations", {"category_id": 7}, '"image_id" is missing'),
        ("annotations", {"image_id": 1, "category_id": 7, "bbox": [1]}, "a box is not four"),
        ("annotations", 3, "a record is not an object"),
    ],
)
def test_records_that_cannot_be_read_refuse_the_file(key, record, message, tmp_path):
    value = content()
    value[key].append(record)
    with pytest.raises(InputError, match=message) as caught:
        coco.read_instances(write(tmp_path, value))
    assert "instances.json" in str(caught.value)


def test_the_same_image_listed_twice_is_one(tmp_path):
    value = content()
    value["images"].append(value["images"][0] | {"id": "1"})
    assert len(coco.read_instances(write(tmp_path, value)).images) == 2


def test_a_caller_may_collect_further_problems(tmp_path):
    value = content()
    value["annotations"].append({"image_id": 1, "category_id": 9})
    path = write(tmp_path, value)
    fields = Fields(path)
    assert len(coco.read_instances(path, fields).objects) == 4
    fields.note("another", "somewhere")
    with pytest.raises(InputError, match=r"2 problems: category_id .* another"):
        fields.done()


def test_segmentations_only_where_they_are_asked_for(tmp_path):
    path = write(tmp_path, content())
    assert {row.segmentation for row in coco.read_instances(path).objects} == {None}
    kept = coco.read_instances(path, segmentation=True).objects
    assert all(row.segmentation == [[0, 0, 10, 0, 10, 2]] for row in kept)


def test_plainly_visible():
    value = content()
    value["annotations"][1]["iscrowd"] = 1
    value["annotations"][2]["area"] = 9
    value["annotations"][3]["area"] = 10
    found = coco.parse_instances(value, Fields("f"))
    assert [found.is_plain(row) for row in found.objects] == [True, False, False, True]
    assert [row.area for row in found.objects] == [20, 20, 9, 10]


def test_what_a_file_may_leave_out():
    value = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"image_id": 1, "category_id": 1}, {"image_id": 5, "category_id": 1}],
    }
    fields = Fields("f")
    found = coco.parse_instances(value, fields)
    fields.done()
    assert found.images == {"1": ("", 0, 0)}
    assert [row.image for row in found.objects] == ["1", "5"]
    assert all(found.is_plain(row) and row.box is None for row in found.objects)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", r'not in the COCO layout: it holds a list, not an object with "images" and "anno'),
        ('{"images": 1}', 'not in the COCO layout: the key "images" is not a list'),
        ('{"images": []}', 'not in the COCO layout: the key "annotations" is missing'),
    ],
)
def test_files_of_another_layout(tmp_path, text, message):
    class OurError(InputError):
        pass

    (tmp_path / "x.json").write_text(text)
    with pytest.raises(OurError, match=message):
        coco.read_lists(tmp_path / "x.json", ("images", "annotations"), OurError)
    with pytest.raises(OurError, match="cannot be read"):
        coco.read_lists(tmp_path / "none.json", ("images",), OurError)
