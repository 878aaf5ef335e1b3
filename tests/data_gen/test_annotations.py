"""What instance annotations tell, and where they cannot."""

import json
import tracemalloc

import pytest

from data_gen.annotations import Cooccurrence, InstanceVerifier
from negclip_jax.common.errors import InputError
from negclip_jax.language import tables
from negclip_jax.language.vocabulary import CATEGORIES

NAMES = ["person", "cat", "couch", "laptop", "keyboard", "hot dog"]
SIZES = {"large": 2000, "tiny": 500}


@pytest.fixture(scope="module")
def verifier(tmp_path_factory):
    ids = {name: i for i, name in enumerate(NAMES, 1)}
    boxes = [(1, "cat", "large", 0), (1, "couch", "tiny", 0), (1, "person", "large", 1),
             (2, "laptop", "large", 0), (2, "cat", "tiny", 0), (2, "cat", "large", 0)]  # fmt: skip
    content = {
        "images": [{"id": i, "width": 640, "height": 480} for i in (1, 2, 3)],
        "categories": [{"id": i, "name": name} for name, i in ids.items()],
        "annotations": [
            {"id": k, "image_id": image, "category_id": ids[name], "area": SIZES[size],
             "bbox": [0, 0, 9, 9], "iscrowd": crowd}
            for k, (image, name, size, crowd) in enumerate(boxes)
        ],
    }  # fmt: skip
    path = tmp_path_factory.mktemp("boxes") / "instances.json"
    path.write_text(json.dumps(content))
    return InstanceVerifier(path)


@pytest.mark.parametrize(
    ("image", "obj", "verdict", "p_yes"),
    [
        (1, "cat", "present", 1.0),
        ("1", "cat", "present", 1.0),
        ("0001", "cat", "present", 1.0),
        (1.0, "cat", "present", 1.0),
        (3, "cat", "absent", 0.0),
        (3, "sofa", "absent", 0.0),
        (1, "couch", "unsure", 0.5),  # tiny
        (1, "person", "unsure", 0.5),  # a crowd
        (2, "cat", "present", 1.0),  # one tiny, one large
        (1, "kitten", "unsure", 0.5),  # a cat, maybe a kitten
        (3, "kitten", "absent", 0.0),  # no cat, so no kitten
        (3, "computer", "unsure", 0.5),  # no laptop, maybe another computer
        (2, "computer", "unsure", 0.5),
        (3, "umbrella", "unsure", 0.5),  # not annotated
        (2, "keyboard", "unsure", 0.5),  # that of the laptop
        (1, "keyboard", "absent", 0.0),
        (3, "dog", "unsure", 0.5),  # a hot dog is none
        (9, "cat", "unsure", 0.5),  # not in the file
    ],
)
def test_verdicts(verifier, image, obj, verdict, p_yes):
    assert verifier.verdict(image, obj) == (verdict, p_yes)


def test_what_a_box_hides_is_not_said_to_be_absent(verifier):
    assert "keyboard" in verifier.doubted("2") and "laptop" not in verifier.doubted("2")
    assert verifier.doubted("3") == frozenset()
    hidden = {name for name, boxed in tables.rows("doubts") for name in (name, *boxed.split(", "))}
    assert hidden <= CATEGORIES.keys()


def test_what_is_present_counts_however_small(verifier):
    assert verifier.present == {"1": {"cat", "couch", "person"}, "2": {"cat", "laptop"}, "3": set()}
    assert verifier.names == tuple(NAMES)


def test_real_boxes_and_captions_agree(shared_data):
    """Where five people wrote of a photo, an object that all name is seldom judged absent."""
    verifier = InstanceVerifier(shared_data / "coco" / "instances.json")
    captions = json.loads((shared_data / "coco" / "captions.json").read_text())["annotations"]
    named = [
        (row["image_id"], name)
        for row in captions
        for name in ("cat", "train", "giraffe", "zebra", "pizza", "toilet")
        if f"a {name} " in row["caption"] and str(row["image_id"]) in verifier.present
    ]
    verdicts = [verifier.verdict(image, name)[0] for image, name in named]
    assert len(verdicts) > 30
    assert verdicts.count("absent") < 0.1 * len(verdicts)


def write(path, images, image_ids):
    """Instances: each image shows a dog; `image_ids` are as its annotations spell them."""
    content = {
        "images": images,
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {"id": k, "image_id": i, "category_id": 1, "area": 9, "bbox": [0, 0, 9, 9]}
            for k, i in enumerate(image_ids, 1)
        ],
    }
    path.write_text(json.dumps(content))
    return path


def test_photos_are_found_by_their_names_where_ids_do_not_meet(tmp_path):
    named = {1: "val/a.jpg", 2: "b.JPG", 3: "c.jpg", 4: "x/d.jpg", 5: "y/d.jpg", 6: ""}
    images = [{"id": i, **({"file_name": name} if name else {})} for i, name in named.items()]
    asked = {
        "a.jpg": "a.jpg",  # JSONL: the id is the name
        "photo 2": "images/b.jpg",
        "1": "c.jpg",  # another photo has this id there
        "2": "nowhere.jpg",  # so has this one, and there is no such name
        "d": "d.jpg",  # two photos are called so
        "e": "y/d.jpg",
        "6": "f.jpg",  # without a name, the id counts
        "9": "9.jpg",
    }
    found = InstanceVerifier(write(tmp_path / "i.json", images, [1, 2, 6]), asked.items())
    shown = {i: found.present.get(i) for i in asked}
    dog, nothing = frozenset({"dog"}), frozenset()
    assert shown == {"a.jpg": dog, "photo 2": dog, "1": nothing, "2": None, "d": None,
                     "e": nothing, "6": dog, "9": None}  # fmt: skip
    assert found.visible.get("a.jpg") == dog and found.verdict("2", "cat") == ("unsure", 0.5)


def test_the_names_of_one_photo_in_two_releases(tmp_path):
    images = [{"id": 42, "file_name": "COCO_val2014_000000000042.jpg"}]
    path = write(tmp_path / "i.json", images, [42])
    found = InstanceVerifier(path, [("42", "000000000042.jpg")])
    assert found.present["42"] == {"dog"}


def test_images_that_only_boxes_name_are_known(tmp_path):
    path = write(tmp_path / "i.json", [{"id": 1, "file_name": "a.jpg"}], [1, *range(2, 40), "b"])
    found = InstanceVerifier(path, [("1", "a.jpg"), ("7", "a.jpg"), ("9", "c.jpg")])
    dog = frozenset({"dog"})
    assert dict(found.present) == {i: dog for i in ["1", "b", *map(str, range(2, 40))]}
    assert len(found.present) == 40 and found.verdict("30", "cat") == ("absent", 0.0)
    assert found.visible["7"] == dog and "41" not in found.present


def test_an_image_that_is_asked_for_twice(tmp_path):
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
    path = write(tmp_path / "i.json", images, [1])
    found = InstanceVerifier(path, [("x", "b.jpg"), ("x", "a.jpg"), ("2", "nowhere.jpg")])
    assert dict(found.present) == {"x": {"dog"}, "1": {"dog"}}


def test_a_table_of_boxes_that_is_read_whole_is_the_same(tmp_path):
    """Two equal images of one id, and annotations before categories."""
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "a.jpg"}]
    path = write(tmp_path / "i.json", images, [1, 1])
    content = json.loads(path.read_text())
    path.write_text(json.dumps({key: content[key] for key in reversed(content)}))
    assert dict(InstanceVerifier(path).present) == {"1": {"dog"}}
    content["images"][1]["file_name"] = "b.jpg"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="two images have one id"):
        InstanceVerifier(path)


@pytest.mark.parametrize(
    ("few", "many", "bytes_each"),  # counting them takes a millisecond a photo
    [
        pytest.param(2_000, 4_000, 400, marks=pytest.mark.slow),
        pytest.param(8_000, 20_000, 200, marks=pytest.mark.long),
    ],
)
def test_a_photo_takes_few_bytes(tmp_path, few, many, bytes_each):
    def held(number: int) -> int:
        images = [{"id": i, "file_name": f"{i:012d}.jpg"} for i in range(number)]
        path = write(tmp_path / "i.json", images, [i // 3 for i in range(3 * number)])
        tracemalloc.start()
        found = InstanceVerifier(path, ((str(i), f"{i:012d}.jpg") for i in range(number)))
        kinds = Cooccurrence(found.present)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kinds.names == ["dog"] and len(found.present) == number
        return peak

    assert held(many) - held(few) < bytes_each * (many - few)
