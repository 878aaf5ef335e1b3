"""Templates: escaped, complete, and one base for every command's page."""

import re
from pathlib import Path

import jinja2
import pytest

from negclip_jax.common.page.template import plural, render, write_page

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
    assert len(templates) == 10
    for path in templates:
        text = path.read_text()
        if path.parent != ROOT / "negclip_jax" / "common" / "page":
            assert text.startswith('{% extends "base.html" %}'), path
        assert not re.search(r"\|\s*safe|autoescape|https?://|@import|url\(", text), path
