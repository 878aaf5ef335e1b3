"""What a false text says of which object, and what says that it is false."""

import json

import pytest
from handmade_run import make_run

from data_gen.annotations import InstanceVerifier
from data_gen.audit import audit
from data_gen.records import read_table, write_table
from data_gen.texts import _claims, known_of, rests_on, texts


@pytest.mark.parametrize(
    ("foil", "claims"),
    [
        ("A mat with no cat.", [("cat", False)]),
        ("A cat on a mat, and there is a dog.", [("dog", True)]),
        ("A dog but no cat.", [("cat", False), ("dog", True)]),
        ("There is nobody on the mat.", [("person", False)]),
        ("A cat is not sitting on a mat.", []),  # it changes what the caption says of the cat
    ],
)
def test_what_a_foil_says_of_objects(foil, claims):
    assert _claims(foil, "dog") == claims


@pytest.fixture
def boxes(tmp_path):
    """Cat in photo 1 and 2, no dog; see `handmade_run`."""
    make_run(tmp_path)
    return InstanceVerifier(tmp_path / "instances.json")


NO_CAT, A_DOG, NO_DOG, NO_BUS = (
    [(name, n == 1)] for n, name in enumerate(("cat", "dog", "dog", "bus"))
)
SITTING: list = []


@pytest.mark.parametrize(
    ("claims", "seen", "with_boxes", "source"),
    [
        (NO_CAT, {}, True, "boxes"),
        (A_DOG, {}, True, "boxes"),
        (NO_CAT, {"cat": "absent"}, True, "boxes"),  # boxes come first
        (NO_CAT, {"cat": "present"}, False, "verdict"),
        (A_DOG, {"dog": "absent"}, False, "verdict"),
        (NO_CAT, {"cat": "unsure"}, False, "caption"),
        (NO_CAT, {"cat": "absent"}, False, "contradicted"),
        (NO_DOG, {}, True, "contradicted"),
        (NO_BUS, {}, True, "nothing"),  # no annotated class, and in no caption
        (A_DOG, {}, False, "nothing"),
        (SITTING, {}, True, "caption"),
        (A_DOG + NO_CAT, {"dog": "present", "cat": "present"}, False, "verdict"),
    ],
)
def test_what_a_false_text_rests_on(boxes, claims, seen, with_boxes, source):
    known = known_of((name, state, "mllm") for name, state in seen.items())
    found = rests_on(claims, known, "1", boxes if with_boxes else None, ["A cat on a mat."])
    assert found == source


def test_boxes_in_the_table_come_before_verdicts_in_any_order():
    seen = [("cat", "present", "boxes"), ("cat", "absent", "mllm")]
    for labels in (seen, seen[::-1]):
        assert rests_on(NO_CAT, known_of(labels), "1") == "boxes"


def test_a_run_gives_statements_where_it_knows_something_and_else_its_own_foils(tmp_path):
    run = make_run(tmp_path)
    found = {pair["pair_id"]: rows for pair, rows in texts(run)}
    assert found.keys() == {"p1", "p2", "p4"}
    # Of photo 2 and 3 nothing is known to be there.
    assert [(r["truth"], r["foil"], r["rests_on"]) for r in found["p2"]] == [
        (True, False, None),
        (False, True, "caption"),
    ]
    # Of photo 1 a verdict says that a cat is there and no dog.
    statements = [row for row in found["p1"] if row["unit"] != "p1"]
    assert {(row["truth"], row["rests_on"]) for row in statements} == {
        (True, None),
        (False, "verdict"),
    }
    assert {row["image_id"] for row in statements} == {"1"}
    boxes = InstanceVerifier(tmp_path / "instances.json")
    told = [r["rests_on"] for _, rows in texts(run, boxes) for r in rows if r["unit"] != "p1"]
    assert "boxes" in told and "verdict" not in told


def test_statements_that_boxes_contradict_are_found(tmp_path):
    run = make_run(tmp_path)
    rows = read_table(run, "verdicts").to_pylist()
    for row in rows:  # the model sees a dog in photo 1, where boxes have only a cat
        row["verdict"] = (
            {"dog": "present", "cat": "absent"}[row["object"]]
            if row["image_id"] == "1"
            else row["verdict"]
        )
        row["p_yes"] = row["mass"] * (row["verdict"] == "present")  # as sure as it says
    write_table(run / "verdicts" / "part-00000.parquet", "verdicts", rows)
    pairs = read_table(run, "pairs").to_pylist()
    for row in pairs:
        if row["pair_id"] == "p1":
            row |= {"object": "cat", "negated_caption": "A bus 1 with no cat"}
    write_table(run / "pairs" / "part-00000.parquet", "pairs", pairs)
    said = audit(run, tmp_path / "instances.json")
    found = json.loads((run / "audit.json").read_text())["false_texts"]
    assert found["rest_on"]["contradicted"] > 0 and found["examples"]["contradicted"]
    assert "contradicted: 1.jpg: " in said


def test_the_audit_counts_them(tmp_path):
    run = make_run(tmp_path)
    said = audit(run, tmp_path / "instances.json")
    found = json.loads((run / "audit.json").read_text())["false_texts"]
    number = sum(not row["truth"] for _, rows in texts(run) for row in rows)
    assert found["number"] == number == sum(found["rest_on"].values())
    # "A foil with no bus", twice: no boxes or verdicts of a bus, but captions have one.
    assert found["rest_on"]["caption"] == 2 and found["rest_on"]["boxes"] == number - 2
    assert sum(sum(row["rest_on"].values()) for row in found["forms"]) == number
    assert f"{number} false texts rest on  boxes {number - 2}, verdict 0, caption 2" in said
