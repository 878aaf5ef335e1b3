"""The page: complete, escaped, and without the network."""

import base64
import html
import io
import json
import re
from html.parser import HTMLParser

import browser
import pytest
from handmade_run import NASTY, make_run
from PIL import Image

from data_gen.audit import audit
from data_gen.manifest import left_out
from data_gen.records import read_table, write_table
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
    assert not re.search(r'(src|href)="(?!data:|#)', page)
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


def change(run, table: str, **columns: object) -> None:
    """Gives columns of a table new values; no rows without columns."""
    rows = read_table(run, table).to_pylist() if columns else []
    path = run / table / "part-00000.parquet"
    write_table(path, table, [row | columns for row in rows])


def seen(run) -> str:
    """What a reader of the run's page sees."""
    page = re.sub(r"<style>.*?</style>", "", write_report(run).read_text(), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def test_an_unaudited_run_without_pairs_has_a_page(tmp_path):
    run = make_run(tmp_path)
    change(run, "pairs")
    text = seen(run)
    assert "0 negation pairs" in text and "Not audited yet" in text
    assert "Nothing was rewritten" in text and "broke a rule" not in text
    assert (run / "audit_sample.csv").read_text().count("\n") == 1


def test_no_pair_is_said_with_its_cause(tmp_path):
    run = make_run(tmp_path)
    change(run, "pairs", accepted=False)
    assert "“accepted”; no rewrite could be used: affirmed 1, no_cue 1" in seen(run)
    change(run, "pairs")
    change(run, "verdicts", verdict="unsure")
    text = seen(run)
    none = "No pair was accepted: none of the captions came to "
    assert f"{none}“something absent”; verdicts: unsure 5" in text
    assert "What the pairs look like" not in text
    change(run, "verdicts")
    change(run, "candidates", reject_reason="unparsable")
    assert f"{none}“object to ask about”; proposals: unparsable 6" in seen(run)


def test_photos_unknown_to_the_boxes_failed_requests_and_what_is_not_done_are_shown(tmp_path):
    run = make_run(tmp_path)
    change(run, "candidates", reject_reason="not_annotated")
    change(run, "verdicts", verdict="error", error_code="http_500")
    mark = {"fingerprint": "x", "rows": {"images": 2}, "sha256": {}}
    (run / "done" / "part-00000.json").write_text(json.dumps(mark))
    text = seen(run)
    assert "In progress: 2 of 3 photos are done." in text
    assert "−5: 3 photos not in the box file, 1 photo image_missing, 1 photo not done yet" in text
    assert "Requests that failed http_500 5 · 100.0 % python -m data_gen retry" in text
    assert "not_annotated 3" in text


def test_what_stopped_a_run_and_photos_without_boxes_are_said(tmp_path):
    run = make_run(tmp_path)
    line = {"time": "", "status": "InputError", "seconds": 1.0, "message": "20 of 20 <requests>"}
    (run / "sessions.jsonl").write_text(json.dumps(line) + "\n")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["inputs"].pop("instances", None)
    (run / "manifest.json").write_text(json.dumps(manifest))
    text = seen(run)
    assert "The last session stopped: 20 of 20 <requests>" in text and "The box file" not in text
    manifest["inputs"]["instances"] = {"path": "i.json", "sha256": "x"}
    (run / "manifest.json").write_text(json.dumps(manifest))
    labels = read_table(run, "labels").to_pylist()
    boxed = {row["image_id"] for row in labels if row["source"] == "boxes"}
    lacking = {row["image_id"] for row in read_table(run, "items").to_pylist()} - boxed
    assert (f"The box file knows nothing of {len(lacking)} photo" in seen(run)) == bool(lacking)


def test_an_early_stop_is_no_loss(tmp_path):
    run = make_run(tmp_path)
    rows = read_table(run, "candidates").to_pylist()
    more = {"image_id": "1", "object": "kite", "source": "llm"}
    named = {"image_id": "1", "object": "bus", "source": "caption", "reject_reason": "mentioned"}
    write_table(run / "candidates" / "part-00000.parquet", "candidates", [*rows, more, named])
    summary = RunSummary(run)
    assert dict(summary.asked.not_asked) == {"mentioned": 1, "not needed: enough is absent": 1}
    assert [row["n"] for row in summary.funnel()] == [5, 5, 5, 5, 4, 3]


def test_foils_stand_with_what_says_so_and_requests_with_their_time(page):
    foils = re.findall(r'<div class="foil">✗ (.*?) <span class="source.*?">(.*?)</span>', page)
    assert ("A foil with no bus", "caption") in foils  # of photos in which nothing is known to be
    assert ("A dog is visible", "verdict") in foils
    assert {source for _, source in foils} == {"caption", "verdict"}
    assert "more statements</summary>" in page
    assert (
        "2.33" in page and "retries included; 666,667 prompt tokens a pair; 61 s in all" in page
    )  # 7 requests for 3 pairs
    assert "What says so, of 7 false texts" in page


def test_it_fits_and_the_first_example_is_above_the_fold(run):
    script = """[page.querySelector(".pair .negated").getBoundingClientRect().bottom,
      Math.max(...[...page.querySelectorAll(".flow > .card, .facts > .card")].map(
        card => card.offsetHeight))]"""
    (narrow, wide), _ = browser.measure(run / "report.html", script)
    assert wide[0] < 900 and narrow[0] < 900
    assert max(wide[1], narrow[1]) < 400, "a tall card with little in it"
    browser.check_fit(run / "report.html")


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    return RunSummary(make_run(tmp_path_factory.mktemp("summary")))


def test_funnel_and_reasons_agree_with_the_tables(summary):
    assert [(row["name"], row["n"]) for row in summary.funnel()] == [
        ("captions", 5),
        ("usable photo", 5),
        ("object to ask about", 5),
        ("something absent", 5),
        ("absent object given", 4),
        ("accepted", 3),
    ]
    notes = [row["note"] for row in summary.funnel()]
    assert (
        notes[:4] == [""] * 4 and notes[5] == "−1: no rewrite could be used: affirmed 1, no_cue 1"
    )
    assert notes[4].startswith("−1: fewer things are absent than there are captions")
    assert summary.asked.not_asked == {"mentioned": 1}
    assert left_out(summary.run) == {"image_missing": 1} and summary.unfinished() == 0
    assert dict(summary.asked.verdicts) == {"absent": 3, "present": 1, "unsure": 1}
    reasons = summary.reasons()
    assert [(r["code"], r["n"]) for r in reasons] == [("affirmed", 1), ("no_cue", 1)]
    assert reasons[0]["examples"][0]["negated_caption"] == "A bus 3 with a lamp"


def test_shares_and_objects(summary):
    assert summary.counted("rewriter") == [("template", 2), ("llm", 1)]
    assert summary.counted("cue") == [("no", 3)]
    assert list(summary.rewrites.lengths) == [12, 12, 12]
    cat = next(row for row in summary.objects() if row["name"] == "cat")
    assert (cat["pairs"], cat["absent"].k, cat["absent"].n) == (1, 1, 2)
    variety = summary.variety()
    assert variety["objects"] == 3 and variety["repeated"] == 0
    assert variety["perplexity"] == pytest.approx(3)


def test_doubtful_pairs_come_first(summary):
    assert [row["pair_id"] for row in summary.rewrites.doubtful] == ["p2", "p4", "p1"]


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
    assert bar_rows([("a", 0)]) == [{"name": "a", "n": 0, "note": "–", "width": 0}]
    assert bar_rows([]) == []
