"""What a false text says of which object, and what says that it is false."""

import json

import pytest
from handmade_run import make_run

from data_gen.annotations import InstanceVerifier
from data_gen.audit import audit
from data_gen.labels import Label
from data_gen.texts import known_of, rests_on, texts

PAIR = {
    "pair_id": "p",
    "image_id": "1",
    "file_name": "1.jpg",
    "object": "dog",
    "negated_caption": "A cat on a mat with no dog.",
    "rewriter": "template:with-no",
}


def false_text(foil: str) -> dict:
    return list(texts([PAIR | {"foils": [foil]}]))[1]


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
def test_claims(foil, claims):
    assert false_text(foil)["claims"] == claims


@pytest.fixture
def boxes(tmp_path):
    """Cat in photo 1 and 2, no dog; see `handmade_run`."""
    make_run(tmp_path)
    return InstanceVerifier(tmp_path / "instances.json")


def verdicts(source: str = "mllm", **states: str) -> dict:
    return known_of(Label("1", name, name, state, source, 0.5) for name, state in states.items())


NO_CAT, A_DOG = "A mat with no cat.", "A mat with a dog."


@pytest.mark.parametrize(
    ("foil", "seen", "with_boxes", "source"),
    [
        (NO_CAT, {}, True, "boxes"),
        (A_DOG, {}, True, "boxes"),
        (NO_CAT, {"cat": "absent"}, True, "boxes"),  # boxes come first
        (NO_CAT, {"cat": "present"}, False, "verdict"),
        (A_DOG, {"dog": "absent"}, False, "verdict"),
        (NO_CAT, {"cat": "unsure"}, False, "caption"),
        (NO_CAT, {"cat": "absent"}, False, "contradicted"),
        ("A mat with no dog.", {}, True, "contradicted"),
        ("A mat with no bus.", {}, True, "nothing"),  # no annotated class, and in no caption
        (A_DOG, {}, False, "nothing"),
        ("A cat is not sitting on a mat.", {}, True, "caption"),
        ("A dog but no cat.", {"dog": "present", "cat": "present"}, False, "verdict"),
    ],
)
def test_what_a_false_text_rests_on(boxes, foil, seen, with_boxes, source):
    known = (["A cat on a mat."], verdicts(**seen), boxes if with_boxes else None)
    assert rests_on(false_text(foil), *known) == source


def test_boxes_in_the_table_come_before_verdicts_in_any_order():
    seen = [Label("1", "cat", "cat", "present", "boxes", 1.0)]
    seen += [Label("1", "cat", "cat", "absent", "mllm", 0.1)]
    for labels in (seen, seen[::-1]):
        assert rests_on(false_text(NO_CAT), [], known_of(labels)) == "boxes"


def test_the_audit_counts_them(tmp_path):
    run = make_run(tmp_path)
    said = audit(run, tmp_path / "instances.json")
    found = json.loads((run / "audit.json").read_text())["false_texts"]
    # "A foil with no bus", three times: no boxes or verdicts of a bus, but captions have one.
    assert found["number"] == 3 and found["rest_on"]["caption"] == 3
    assert [row["form"] for row in found["forms"]] == ["foil that denies"]
    assert "3 false texts rest on  boxes 0, verdict 0, caption 3, nothing 0, contradicted 0" in said
