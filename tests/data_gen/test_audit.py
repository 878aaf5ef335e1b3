"""The verifier measured: counts by hand against those of the audit."""

import json
import re

import pytest
from handmade_run import make_run

from data_gen.audit import Judged, audit, measure
from data_gen.records import write_table
from data_gen.report import write_report
from negclip_jax.common.errors import InputError


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path)


def test_false_absences_are_counted(run, tmp_path):
    text = audit(run, tmp_path / "instances.json")
    result = json.loads((run / "audit.json").read_text())
    # Judged: dog of 1 and 2, cat of 1 and 2; the lamp is of no annotated class.
    assert result["judged"] == 4
    assert result["false_absence"]["k"] == 1 and result["false_absence"]["n"] == 2
    assert result["found_absent"]["k"] == 1 and result["found_absent"]["n"] == 2
    assert result["unsure"]["k"] == 1
    classes = {row["object"]: row["false_absence"] for row in result["by_class"]}
    assert (classes["cat"]["k"], classes["cat"]["n"]) == (1, 1)
    assert (classes["dog"]["k"], classes["dog"]["n"]) == (0, 1)
    assert (result["pairs"]["k"], result["pairs"]["n"]) == (1, 2)
    assert "50.0 % [" in text and "(1 of 2)" in text
    assert re.search(r"cat +false absence 100.0 %", text)


def test_a_higher_threshold_drops_the_doubtful(run, tmp_path):
    audit(run, tmp_path / "instances.json")
    curve = json.loads((run / "audit.json").read_text())["curve"]
    at = {point["threshold"]: point["false_absence"] for point in curve}
    assert (at[0.6]["k"], at[0.6]["n"]) == (1, 2)
    assert (at[0.9]["k"], at[0.9]["n"]) == (0, 1)
    kept = [point["false_absence"]["n"] for point in curve]
    assert kept == sorted(kept, reverse=True)


def test_answers_read_as_text_have_no_curve():
    rows = [Judged("dog", "absent", "absent", 1.0), Judged("dog", "present", "absent", 0.0)]
    assert measure(rows)["curve"] == []


def test_annotations_are_not_judged_by_themselves(run, tmp_path):
    row = {"image_id": "1", "object": "dog", "verdict": "absent", "method": "instances"}
    write_table(run / "verdicts" / "part-00000.parquet", "verdicts", [row])
    text = audit(run, tmp_path / "instances.json")
    assert "no model's verdict to judge: every verdict came from annotations" in text


def test_hand_labels_flow_back(run, tmp_path):
    (tmp_path / "labels.csv").write_text("pair_id,label\np1,yes\np2,no\np4,\nother,yes\n")
    text = audit(run, tmp_path / "instances.json", tmp_path / "labels.csv")
    precision = json.loads((run / "audit.json").read_text())["precision"]
    assert (precision["all"]["k"], precision["all"]["n"]) == (1, 2)
    assert (precision["llm"]["k"], precision["template"]["k"]) == (1, 0)
    assert "1 label belongs to no accepted pair of this run: line 5" in text
    assert "labels.csv: 3 of 4 rows have a label" in text


def test_bad_files_are_sentences(run, tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        audit(run, tmp_path / "none.json")


def test_without_annotations_the_texts_are_measured_and_the_report_shows_what_there_is(run):
    text = audit(run)
    assert "too few groups" in text and "--instances=FILE" in text
    page = write_report(run).read_text()
    assert "Not audited yet" in page and "Do the words betray the truth?" not in page
    result = json.loads((run / "audit.json").read_text())
    word = {"word": "there <is>", "true": 0, "false": 7}
    share = {"k": 3, "n": 4, "rate": 0.75, "low": 0.3, "high": 0.95}
    form = {"form": "llm", "accuracy": share, "chance": 0.5}
    result["leak"] = form | {"leaks": True, "forms": [form], "words": [word]}
    (run / "audit.json").write_text(json.dumps(result))
    page = write_report(run).read_text()
    assert "there &lt;is&gt;" in page and "75" in page and "over 5 points" in page
