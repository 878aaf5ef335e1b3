"""The numbers of the report against tables made by hand."""

import pytest
from handmade_run import make_run

from data_gen.findings import Findings, histogram
from negclip_jax.common.errors import InputError


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return Findings(make_run(tmp_path_factory.mktemp("findings")))


def test_funnel_and_reasons_agree_with_the_tables(findings):
    assert [(name, n) for name, n, _ in findings.funnel()] == [
        ("captions", 5),
        ("proposed", 6),
        ("usable", 5),
        ("absent", 3),
        ("rewritten", 3),
        ("accepted", 3),
    ]
    assert findings.filter_reasons() == [("mentioned", 1)]
    assert findings.ingest_codes() == [("image_missing", 1)]
    assert dict(findings.verdict_counts()) == {"absent": 3, "present": 1, "unsure": 1}
    reasons = findings.reasons()
    assert [(r["code"], r["n"]) for r in reasons] == [("affirmed", 1), ("no_cue", 1)]
    assert reasons[0]["examples"][0]["negated_caption"] == "A bus 3 with a lamp"


def test_shares_and_objects(findings):
    assert findings.rewriters() == [("template", 2), ("llm", 1)]
    assert findings.cues() == [("no", 3)]
    assert findings.lengths() == [12, 12, 12]
    cat = next(row for row in findings.objects() if row["name"] == "cat")
    assert (cat["pairs"], cat["absent"].k, cat["absent"].n) == (1, 1, 2)
    variety = findings.variety()
    assert variety["objects"] == 3 and variety["repeated"] == 0
    assert variety["perplexity"] == pytest.approx(3)


def test_doubtful_pairs_come_first(findings):
    assert [row["pair_id"] for row in findings.doubtful()] == ["p2", "p4", "p1"]


def test_cost_follows_the_prices(findings):
    assert findings.calls()[0]["cost"] == pytest.approx(4.000006)


def test_no_run_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        Findings(tmp_path).funnel()


@pytest.mark.parametrize("content", ["[]", "{", '{"run_id": "x"}', "[" * 10_000])
def test_another_manifest_is_a_sentence(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match="holds no run of data_gen"):
        Findings(tmp_path).manifest  # noqa: B018 it is read when it is asked for


def test_a_damaged_audit_is_a_sentence(tmp_path):
    (tmp_path / "audit.json").write_text("{")
    with pytest.raises(InputError, match=r"audit\.json cannot be read .*run `audit` again"):
        Findings(tmp_path).audit  # noqa: B018


def test_histogram_keeps_everything():
    assert histogram([0, 0.05, 0.5, 1.0, 2.0, -1], 0, 1, 10) == [3, 0, 0, 0, 0, 1, 0, 0, 0, 2]
