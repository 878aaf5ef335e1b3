"""Templates: escaped, complete, and one base for every command's page."""

import re
from pathlib import Path

import jinja2
import pytest

from negclip_jax.common.page import charts
from negclip_jax.common.page.template import plural, render, sections, shortened, write_page

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def template(tmp_path):
    """Function of a page's content to its template."""

    def make(content: str) -> Path:
        path = tmp_path / "page.html"
        blocks = "{% block kicker %}a page{% endblock %}{% block content %}"
        path.write_text('{% extends "base.html" %}' + blocks + content + "{% endblock %}")
        return path

    return make


def test_values_are_escaped_and_the_base_is_around_them(template):
    page = render(template("{{ text }}"), text="<script>&'\"")
    assert "<script" not in page and "&lt;script&gt;&amp;&#39;&#34;" in page
    assert page.startswith("<!doctype html>") and "<title>a page</title>" in page
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page


def test_a_value_that_is_missing_is_an_error(template):
    with pytest.raises(jinja2.UndefinedError, match="'text' is undefined"):
        render(template("{{ text }}"))


def test_filters_and_charts(template):
    content = (
        "{{ 1234|number }} {{ 0.1234|percent }} {{ 2|plural('photo') }} {{ charts.colour(7) }}"
    )
    content += " {{ charts.colour(7) }}"
    assert "1,234 12.3 2 photos var(--m1)" in render(template(content))


def test_a_page_replaces_the_former_one_whole(template, tmp_path):
    out = tmp_path / "report.html"
    write_page(out, template("{{ text }}"), text="old")
    assert write_page(out, template("{{ text }}"), text="a\udcff.jpg") == out
    assert r"a\udcff.jpg" in out.read_text()
    with pytest.raises(jinja2.UndefinedError):
        write_page(out, template("{{ text }}"))
    assert r"a\udcff.jpg" in out.read_text() and len(list(tmp_path.iterdir())) == 2


def test_sections_are_named_and_listed_without_badges():
    content = '<h2 id="a">A <i>b</i> &amp; c <span class="badge">1 of 2</span></h2><h2>Next</h2>'
    html, listed = sections(content)
    assert listed == [("a", "A b & c"), ("section-2", "Next")]
    assert html == content.replace("<h2>", '<h2 id="section-2">')


def test_a_page_of_many_sections_has_contents_and_one_of_few_has_none(template):
    few, many = (render(template("<h2>&lt;b&gt;</h2>" * n)) for n in (3, 4))
    assert 'class="contents"' not in few and '<h2 id="section-3">' in few
    assert many.count('<a href="#section-4">&lt;b&gt;</a>') == 2  # at the side and folded
    assert '<details class="contents"><summary>' in many and 'class="listed"' in many


def test_a_shortened_text_keeps_both_ends():
    assert shortened("IMG_2041.jpg") == "IMG_2041.jpg"
    text = shortened("IMG_20240102_night_in_the_city_final.jpg", 28)
    assert text == "IMG_20240102_…city_final.jpg" and len(text) == 28
    assert shortened("abcdef", 5) == "ab…ef" and shortened("abcdef", 4) == "a…ef"


def contrast(one: str, other: str) -> float:
    """WCAG 2.2 contrast of two colours."""
    lights = []
    for colour in (one, other):
        digits = colour.lstrip("#")
        digits = digits if len(digits) == 6 else "".join(2 * d for d in digits)
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        parts = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        lights.append(0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_texts_and_charts_are_readable_in_both_schemes():
    css = (ROOT / "negclip_jax" / "common" / "page" / "page.css").read_text()
    light, dark = css.split("prefers-color-scheme: dark")
    for part in (light, dark.partition("* {")[0]):
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]+)", part))
        assert len(colours) == 16
        for back in ("page", "card", "rightbg", "wrongbg", "warnbg"):
            assert contrast(colours["ink"], colours[back]) > 7, back
            assert contrast(colours["soft"], colours[back]) > 4.5, back
        for place in range(charts.COLOURS):
            assert contrast(colours[f"m{place}"], colours["card"]) > 3, place
        assert contrast(colours["right"], colours["rightbg"]) > 4.5
        assert contrast(colours["wrong"], colours["wrongbg"]) > 4.5


def test_plural():
    assert plural(1, "query", "queries") == "1 query"
    assert plural(1200, "query", "queries") == "1,200 queries"
    assert plural(0, "photo") == "0 photos"


def test_every_template_stands_on_the_base_and_switches_no_escaping_off():
    templates = [
        path
        for room in ("evals", "data_gen", "quickstart", "negclip_jax")
        for path in (ROOT / room).rglob("*.html")
    ]
    assert len(templates) == 11
    for path in templates:
        text = path.read_text()
        if path.parent != ROOT / "negclip_jax" / "common" / "page":
            assert text.startswith('{% extends "base.html" %}'), path
        assert not re.search(r"\|\s*safe|autoescape|https?://|@import|url\(", text), path
