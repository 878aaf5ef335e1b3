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
from data_gen.report import THUMBNAIL, percent, write_report


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


def test_percent():
    assert (percent(0.1234), percent(None)) == ("12.3 %", "–")
