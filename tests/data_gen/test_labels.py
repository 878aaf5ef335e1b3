"""Labels: what boxes, verdicts and captions say of what a photo shows, and what is sure."""

import json

import pytest
from handmade_run import make_run

from data_gen.annotations import NOT_ANNOTATED, InstanceVerifier
from data_gen.labels import (
    Label,
    of_image,
    read_label_file,
    read_labels,
    settled,
    unsaid_by_others,
    write_labels,
)
from data_gen.records import Caption, ImageItem, write_table
from negclip_jax.common.errors import InputError

IMAGE = ImageItem("1", "1.jpg", (Caption("1", "A bus"), Caption("2", "a cat on a couch")))


def verdict(name, state="absent", p_yes=0.1, method="logprobs", question=None, **more):
    row = {"image_id": "1", "object": name, "question": question, "verdict": state, "key": "k"}
    row |= {"p_yes": p_yes, "p_no": 1 - p_yes, "mass": 1.0, "method": method, "error_code": None}
    return row | more


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    names = ["person", "cat", "dog", "Sofa", "kite"]
    rows = [(1, 1, 0), (1, 900, 1), (2, 100, 0), (4, 3, 0)]  # class, area, crowd
    content = {
        "images": [{"id": 1, "width": 100, "height": 100, "file_name": "1.jpg"}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": c, "area": area, "iscrowd": crowd}
            for i, (c, area, crowd) in enumerate(rows)
        ],
    }
    path = tmp_path_factory.mktemp("boxes") / "instances.json"
    path.write_text(json.dumps(content))
    return InstanceVerifier(path)


def said(labels):
    return {(row.object, row.source): (row.state, row.probability, row.size) for row in labels}


def test_boxes_tell_of_every_annotated_class(boxes):
    found = of_image(IMAGE, boxes, [verdict("cat", "present", 1.0, "instances")])
    assert said(found) == {
        ("person", "boxes"): ("present", 1.0, "crowd"),
        ("cat", "boxes"): ("present", 1.0, "plain"),
        ("dog", "boxes"): ("absent", 0.0, None),
        ("couch", "boxes"): ("present", 1.0, "tiny"),
        ("kite", "boxes"): ("absent", 0.0, None),
        ("bus", "caption"): ("unsure", 0.5, None),
    }
    assert next(row.name for row in found if row.object == "couch") == "Sofa"
    assert settled(found) == (["cat"], ["dog", "kite"])


def test_boxes_say_nothing_of_a_photo_that_they_do_not_know(boxes):
    other = ImageItem("2", "2.jpg", (Caption("1", "Looking around"),))
    unknown = verdict("dog", "unsure", 0.5, "instances", error_code=NOT_ANNOTATED)
    assert of_image(other, boxes, [unknown]) == []


def test_every_verdict_is_a_label_beside_that_of_the_boxes(boxes):
    verdicts = [verdict("cat"), verdict("kitten", "unsure", 0.5, "instances"), verdict("bus")]
    verdicts += [verdict("dog", "unsure", 0.4, mass=0.8), verdict("bench", "error", 0, mass=0)]
    found = of_image(IMAGE, boxes, verdicts)
    assert said(found)["cat", "mllm"] == ("absent", 0.1, None)
    assert said(found)["dog", "mllm"] == ("unsure", 0.5, None)
    assert said(found)["kitten", "boxes"] == ("unsure", 0.5, None)
    assert not any(row.object == "bench" for row in found)
    assert [row.key for row in found if row.source == "mllm"] == ["k"] * 3
    # They contradict each other about the cat, and a caption names the bus.
    assert settled(found) == ([], ["kite"])


def test_what_a_caption_names_is_unsure_until_somebody_looked():
    assert said(of_image(IMAGE, None, [])) == {
        (name, "caption"): ("unsure", 0.5, None) for name in ("bus", "cat", "couch")
    }
    found = of_image(IMAGE, None, [verdict("bus", "present", 0.9), verdict("cat", "unsure", 0.5)])
    assert sorted(said(found)) == [
        ("bus", "mllm"), ("cat", "caption"), ("cat", "mllm"), ("couch", "caption")
    ]  # fmt: skip
    assert settled(found) == (["bus"], [])


@pytest.mark.parametrize(
    ("question", "name"),
    [
        ("Is there a dog?", "dog"),
        ("Are there any dogs in the picture?", "dog"),
        ("Is there a dog on the bed?", None),
        ("Is the man wearing a hat?", None),
        ("Is it raining?", None),
    ],
)
def test_a_question_is_a_label_where_it_asks_for_a_thing_alone(question, name):
    image = ImageItem("1", "1.jpg", (Caption("1", "Looking around"),))
    found = of_image(image, None, [verdict("words", question=question, method="vqa")])
    assert [(row.object, row.source) for row in found] == ([(name, "vqa")] if name else [])
    assert settled(found) == ([], [name] if name else [])


def test_the_published_rule_settles_nothing():
    found = of_image(IMAGE, None, [verdict("Helmet", method="substring")])
    assert ("helmet", "text") in said(found) and settled(found) == ([], [])


@pytest.mark.parametrize(
    ("source", "probability", "size", "is_there"),
    [
        ("mllm", 0.6, None, False),  # likelier there than not: no reason to call its denial false
        ("mllm", 0.9, None, True),
        ("boxes", 1.0, "plain", True),
        ("boxes", 1.0, "large", True),
        ("boxes", 1.0, "tiny", False),
    ],
)
def test_what_is_there_is_plain_or_sure(source, probability, size, is_there):
    row = Label("1", "dog", "dog", "present", source, probability, size)
    assert settled([row]) == (["dog"] if is_there else [], [])


def write_parts(run, parts):
    for number, labels in enumerate(parts):
        rows = [{**label._asdict(), "file_name": f"{label.image_id}.jpg"} for label in labels]
        write_table(run / "labels" / f"part-{number:05d}.parquet", "labels", rows)


PARTS = [
    [
        Label("1", "dog", "dog", "present", "boxes", 1.0, "tiny"),
        Label("1", "cat", "cat", "absent", "boxes", 0.0),
        Label("1", "cat", "cat", "present", "mllm", 0.75, None, "k"),
        Label("2", "dog", "dog", "absent", "mllm", 0.25, None, "k"),
    ],
    [Label("3", "bus", "bus", "unsure", "caption", 0.5)],
]


def test_labels_come_back_image_by_image(tmp_path):
    write_parts(tmp_path, PARTS)
    assert list(read_labels(tmp_path)) == [
        ("1", PARTS[0][:3]), ("2", PARTS[0][3:]), ("3", PARTS[1])
    ]  # fmt: skip
    (tmp_path / "labels" / "part-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="the answers are in the cache"):
        list(read_labels(tmp_path))


def test_a_run_of_an_earlier_version_has_the_labels_of_its_verdicts(tmp_path):
    run = make_run(tmp_path)
    items = [{"image_id": "1", "file_name": "one.jpg"}]
    write_table(run / "items" / "part-00000.parquet", "items", items)
    found = dict(read_labels(run))
    assert [(row.object, row.state, row.source) for row in found["1"]] == [
        ("dog", "absent", "mllm"), ("cat", "present", "mllm")
    ]  # fmt: skip
    assert list(found) == ["1", "2", "3"]
    write_labels(run, tmp_path / "labels.json")
    assert list(read_label_file(tmp_path / "labels.json")) == ["one.jpg", "2", "3"]


def test_the_exported_file_has_a_line_an_image(tmp_path):
    write_parts(tmp_path, PARTS)
    write_labels(tmp_path, tmp_path / "export" / "labels.json")
    path = tmp_path / "export" / "labels.json"
    assert len(path.read_text().splitlines()) == 5
    unsure = {"state": "unsure", "source": "boxes", "probability": 0.5}
    expected = {
        "1.jpg": {
            "cat": unsure,
            "dog": {"state": "present", "source": "boxes", "probability": 1.0},
        },
        "2.jpg": {"dog": {"state": "absent", "source": "mllm", "probability": 0.25}},
        "3.jpg": {"bus": unsure | {"source": "caption"}},
    }
    assert read_label_file(path) == expected
    assert json.loads(path.read_text())["images"]["1.jpg"] == {
        "present": {"boxes": ["dog"]}, "unsure": {"boxes": ["cat"]},
    }  # fmt: skip
    write_labels(tmp_path / "nothing", tmp_path / "none.json")
    assert read_label_file(tmp_path / "none.json") == {}
    # The file of an earlier version, object by object, is read as it is.
    (tmp_path / "old.json").write_text(json.dumps(expected))
    assert read_label_file(tmp_path / "old.json") == expected


def test_absent_classes_of_boxes_are_written_once_and_nothing_is_lost(tmp_path):
    names = [f"thing {i}" for i in range(80)]

    def boxed(image: str, there: dict[str, str]) -> list[Label]:
        return [
            Label(image, n, n, "present", "boxes", 1.0, there[n]) if n in there
            else Label(image, n, n, "absent", "boxes", 0.0)
            for n in names
        ]  # fmt: skip

    parts = [
        [Label("0", "hat", "hat", "absent", "mllm", 0.03)],  # a photo that the boxes do not know
        boxed("1", {"thing 3": "plain", "thing 70": "tiny"}),
        [*boxed("2", {}), Label("2", "thing 5", "thing 5", "present", "mllm", 0.9, None, "k"),
         Label("2", "street", "street", "unsure", "caption", 0.5)],
        boxed("3", {})[:79],  # of another version: it does not speak of all classes
        [Label("4", "thing 1", "thing 1", "absent", "mllm", 0.0)],
    ]  # fmt: skip
    write_parts(tmp_path, parts)
    write_labels(tmp_path, tmp_path / "labels.json")
    found = read_label_file(tmp_path / "labels.json")
    absent = {"state": "absent", "source": "boxes", "probability": 0.0}
    present = {"state": "present", "source": "boxes", "probability": 1.0}
    unsure = {"state": "unsure", "source": "boxes", "probability": 0.5}
    all_absent = dict.fromkeys(names, absent)
    assert found == {
        "0.jpg": {"hat": {"state": "absent", "source": "mllm", "probability": 0.03}},
        "1.jpg": all_absent | {"thing 3": present, "thing 70": present},
        "2.jpg": all_absent | {"thing 5": unsure, "street": unsure | {"source": "caption"}},
        "3.jpg": {name: absent for name in names[:79]},
        "4.jpg": {"thing 1": absent | {"source": "mllm"}},
    }
    assert all(list(objects) == sorted(objects) for objects in found.values())
    content = json.loads((tmp_path / "labels.json").read_text())
    assert content["images"]["1.jpg"] == {
        "present": {"boxes": ["thing 3", "thing 70"]}, "rest": "boxes",
    }  # fmt: skip
    assert "rest" not in content["images"]["3.jpg"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ('{"format": 3}', "is of format 3; here 1 and 2 are read"),
        ('{"format": 2, "images": {"a": {}}}', "no file of labels"),
        ('{"format": 2, "classes": {}, "images": {"a": {"rest": "boxes"}}}', "no file of labels"),
        ('{"format": 2, "classes": {}, "images": {"a": {"present": [1]}}}', "no file of labels"),
    ],
)
def test_a_file_of_labels_that_cannot_be_read(tmp_path, content, said):
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(InputError, match=said):
        read_label_file(tmp_path / "labels.json")


def test_things_are_asked_about_that_other_captions_leave_unsaid():
    texts = ("A man with a dog on a street.", "A man by a bench.", "A man on a street.")
    image = ImageItem("1", "1.jpg", tuple(Caption(str(i), t) for i, t in enumerate(texts)))
    found = unsaid_by_others(image, 3, 0)
    assert set(found[:2]) == {"bench", "dog"}  # between them no caption is left without one
    assert found[2] == "street" and "person" not in found  # all of them name people
    assert unsaid_by_others(image, 9, 0)[3:] == ["person"]


def test_what_boxes_tell_is_not_asked(boxes):
    image = ImageItem(
        "1", "1.jpg", (Caption("1", "A man with a dog on a street."), Caption("2", ""))
    )
    asked = unsaid_by_others(image, 9, 0)
    told = {name for name in asked if boxes.verdict("1", name)[0] != "unsure"}
    assert told and set(unsaid_by_others(image, 9, 0, boxes)) == set(asked) - told
