"""Statements for pairs that were written elsewhere."""

import json

import pyarrow.parquet as pq
import pytest

from data_gen.annotations import InstanceVerifier
from data_gen.cli import main
from data_gen.from_pairs import denied, write_statements
from negclip_jax.common.errors import InputError
from negclip_jax.language.negation import find_cues
from negclip_jax.language.text import tokenize


@pytest.mark.parametrize(
    ("text", "obj"),
    [
        ("A cat on a sofa, with no dog in sight.", "dog"),
        ("No couches are visible, but a cat sleeps.", "couch"),
        ("A cat on a sofa, with no ladder in sight.", "ladder"),
        ("A cat with no dog and no bird in sight.", None),
        ("A cat on a sofa.", None),
    ],
)
def test_what_a_text_denies(text, obj):
    assert denied(text) == obj


@pytest.fixture(scope="module")
def released(shared_data):
    return shared_data / "coco" / "negation_pairs.json"


@pytest.mark.slow
def test_the_released_file_alone(released, tmp_path, capsys):
    assert main(["statements", f"--pairs={released}", f"--to={tmp_path}"]) == 0
    assert "--config.data.statements=" in capsys.readouterr().out
    rows = pq.read_table(tmp_path / "statements.parquet").to_pylist()
    assert len(rows) > 500
    assert {label.partition("@")[2] for row in rows for label in row["label"]} == {
        "pair",
        "caption",
    }
    assert sum(row["truth"] for row in rows) * 2 == len(rows)


def test_with_boxes_they_decide(shared_data, released, tmp_path):
    instances = shared_data / "coco" / "instances.json"
    counts = write_statements(released, tmp_path / "s.parquet", str(instances))
    rows = pq.read_table(tmp_path / "s.parquet").to_pylist()
    assert counts["texts"] == len(rows) > 3000
    boxes = InstanceVerifier(instances)
    for row in rows:
        seen = [boxes.verdict(row["image_id"], name)[0] for name in row["objects"]]
        if row["image_id"] in boxes.present and "pair" not in str(row["label"]):
            states = ["present" if "present@" in label else "absent" for label in row["label"]]
            assert seen == states, row
        assert bool(find_cues(tokenize(row["text"]))) == (row["polarity"] != "affirms")


@pytest.mark.slow
def test_the_same_seed_gives_the_same_file(released, tmp_path):
    for name in ("a", "b"):
        write_statements(released, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    write_statements(released, tmp_path / "c", seed=1)
    assert (tmp_path / "c").read_bytes() != (tmp_path / "a").read_bytes()


def test_pairs_of_which_nothing_is_known(tmp_path):
    row = {"image": "1.jpg", "caption": "a view", "negated": "a view, with no dog in sight"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match="no statement can be written"):
        write_statements(tmp_path / "pairs.jsonl", tmp_path / "s.parquet")
    assert not (tmp_path / "s.parquet").exists()
    with pytest.raises(InputError, match="no file of pairs"):
        write_statements(tmp_path / "none.json", tmp_path / "s.parquet")
