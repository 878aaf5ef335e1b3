"""The page: complete, escaped, and without the network."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
from handmade_run import NASTY, make_run
from PIL import Image

from data_gen.audit import audit
from data_gen.records import write_table
from data_gen.report import THUMBNAIL, RunSummary, bar_rows, write_report
from negclip_jax.common.errors import InputError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    run = make_run(folder)
    audit(run, folder / "instances.json")
    write_report(run)
    return run


@pytest.fixture(scope="module")
def page(run):
    return (run / "report.html").read_text()


def test_texts_are_escaped(page):
    assert "<script" not in page
    assert NASTY not in page
    assert "&lt;script&gt;" in page and "{{ 7 * 7 }}" in page


def test_nothing_comes_from_the_network(page):
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "http" not in re.sub(r'src="data:[^"]*"', "", page)
    assert "url(" not in page


def test_thumbnails_are_small_and_missing_photos_are_said(page):
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(found) >= 2
    for text in found:
        image = Image.open(io.BytesIO(base64.b64decode(text)))
        assert max(image.size) <= THUMBNAIL
    assert "no photo" in page  # 3.jpg is gone


def test_the_page_tells_everything(page):
    text = re.sub(r"<[^>]+>", " ", page)
    for expected in (
        "3 negation pairs from 5 captions of 3 photos",
        "image_missing",
        "it says that the object is there",
        "A bus 3 with a lamp",
        "said absent, but there",
        "50.0 % [9.5, 90.5] (1 of 2)",
        "2,000,000",
        "timeout",
        "4.00",
        "tiny-llava",
        "abc123",
        "147,000",
        "The most doubtful",
    ):
        assert expected in text, expected


def test_tags_are_balanced(page):
    class Balance(HTMLParser):
        void = ("meta", "br", "img", "rect", "line")

        def __init__(self):
            super().__init__()
            self.stack = []

        def handle_starttag(self, tag, attrs):
            if tag not in self.void:
                self.stack.append(tag)

        def handle_endtag(self, tag):
            if tag not in self.void:
                assert self.stack.pop() == tag

    parser = Balance()
    parser.feed(page)
    assert parser.stack == []


def test_same_run_same_page(run, page):
    write_report(run)
    assert (run / "report.html").read_text() == page


def test_an_unaudited_run_without_pairs_has_a_page(tmp_path):
    run = make_run(tmp_path)
    write_table(run / "pairs" / "part-00000.parquet", "pairs", [])
    text = write_report(run).read_text()
    assert "0 negation pairs" in text and "Not audited yet" in text
    assert (run / "audit_sample.csv").read_text().count("\n") == 1


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    return RunSummary(make_run(tmp_path_factory.mktemp("summary")))


def test_funnel_and_reasons_agree_with_the_tables(summary):
    assert [(name, n) for name, n, _ in summary.funnel()] == [
        ("captions", 5),
        ("proposed", 6),
        ("usable", 5),
        ("absent", 3),
        ("rewritten", 3),
        ("accepted", 3),
    ]
    assert summary.filter_reasons() == [("mentioned", 1)]
    assert summary.ingest_codes() == [("image_missing", 1)]
    assert dict(summary.verdict_counts()) == {"absent": 3, "present": 1, "unsure": 1}
    reasons = summary.reasons()
    assert [(r["code"], r["n"]) for r in reasons] == [("affirmed", 1), ("no_cue", 1)]
    assert reasons[0]["examples"][0]["negated_caption"] == "A bus 3 with a lamp"


def test_shares_and_objects(summary):
    assert summary.rewriters() == [("template", 2), ("llm", 1)]
    assert summary.counted("cue") == [("no", 3)]
    assert summary.lengths() == [12, 12, 12]
    cat = next(row for row in summary.objects() if row["name"] == "cat")
    assert (cat["pairs"], cat["absent"].k, cat["absent"].n) == (1, 1, 2)
    variety = summary.variety()
    assert variety["objects"] == 3 and variety["repeated"] == 0
    assert variety["perplexity"] == pytest.approx(3)


def test_doubtful_pairs_come_first(summary):
    assert [row["pair_id"] for row in summary.doubtful()] == ["p2", "p4", "p1"]


def test_cost_follows_the_prices(summary):
    assert summary.calls()[0]["cost"] == pytest.approx(4.000006)


def test_no_run_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        RunSummary(tmp_path).funnel()


@pytest.mark.parametrize("content", ["[]", "{", '{"run_id": "x"}', "[" * 10_000])
def test_another_manifest_is_a_sentence(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match="holds no run of data_gen"):
        RunSummary(tmp_path).manifest  # noqa: B018 it is read when it is asked for


def test_a_damaged_audit_is_a_sentence(tmp_path):
    (tmp_path / "audit.json").write_text("{")
    with pytest.raises(InputError, match=r"audit\.json cannot be read .*run `audit` again"):
        RunSummary(tmp_path).audit  # noqa: B018


def test_bars_are_as_wide_as_their_numbers():
    assert bar_rows([("a", 3), ("b", 1)]) == [
        {"name": "a", "n": 3, "note": "75.0 %", "width": 100.0},
        {"name": "b", "n": 1, "note": "25.0 %", "width": 33.3},
    ]
    assert bar_rows([("a", 0, "of none")]) == [{"name": "a", "n": 0, "note": "of none", "width": 0}]
    assert bar_rows([]) == []
