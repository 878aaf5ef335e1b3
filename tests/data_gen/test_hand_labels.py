"""The sample for hand labels, there and back."""

import csv

import pytest

from data_gen.audit import COLUMNS, precision, read_labels, sample, write_sample
from negclip_jax.common.errors import InputError

ROWS = [
    {"pair_id": f"p{i}", "caption": f"a bus {i}", "negated_caption": "=no()", "rewriter": "llm"}
    for i in range(300)
]


def test_a_sample_depends_on_ids_alone():
    chosen = sample(ROWS, 20)
    assert sample(ROWS[::-1], 20) == chosen
    assert len({row["pair_id"] for row in chosen}) == 20
    assert [row["pair_id"] for row in chosen] != [row["pair_id"] for row in ROWS[:20]]


def test_written_read_and_counted(tmp_path):
    path = tmp_path / "audit_sample.csv"
    write_sample(ROWS, path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 200 and tuple(rows[0]) == COLUMNS
    assert {row["negated_caption"] for row in rows} == {"'=no()"}  # no formula in a spreadsheet
    assert read_labels(path) == {}
    for row, label in zip(rows, ("yes", "Y", "no", "0", " right ", ""), strict=False):
        row["label"] = label
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    labels = read_labels(path)
    assert list(labels.values()) == [True, True, False, False, True]
    shares, unknown = precision({**labels, "unknown": True}, ROWS)
    assert (shares["all"].k, shares["all"].n, unknown) == (3, 5, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pair_id,label\np1,maybe\n", r"line 2 \('maybe'\)"),
        ("id,label\np1,yes\n", "no columns pair_id and label"),
        ("", "no columns pair_id and label"),
    ],
)
def test_bad_labels_are_sentences(tmp_path, text, message):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_labels(tmp_path / "x.csv")
    with pytest.raises(InputError, match="cannot be read"):
        read_labels(tmp_path / "none.csv")
