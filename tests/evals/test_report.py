"""The page says what the results say, escapes captions, and fits a phone in a real browser."""

import html
import json
import re
import shutil

import browser
import numpy as np
import pytest
import tiny_benchmark
from tiny_benchmark import HTML

from evals import registry, report
from evals.images import DataRoots
from evals.results import Results
from negclip_jax.common.statistics import change_text

CAPTION = "<img src=x onerror=\"document.title='taken over'\"> & 'no' dog"


@pytest.fixture(scope="module")
def evaluated(photos, tmp_path_factory):
    """Folder with results of three models and a control that no network has seen."""
    from tiny_benchmark import write_items

    data = tmp_path_factory.mktemp("data")
    (data / "photos").symlink_to(photos.data / "photos")
    write_items(data, images=12)
    items = json.loads((data / "tiny.json").read_text())
    for item in items:
        item["texts"][0] = CAPTION
    (data / "tiny.json").write_text(json.dumps(items))
    out = tmp_path_factory.mktemp("out")
    roots = DataRoots((data,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "BENCHMARKS", {"tiny": lambda: tiny_benchmark.BENCHMARK})
        benchmark = registry.get("tiny")
    problem = benchmark.load(roots)
    names = ["before", "control", "a model with quite a long name and <b>markup</b>"]
    described = {name: {"facts": {"activation": "gelu"}, "fingerprint": name} for name in names}
    described["control"]["facts"] = {"activation": "gelu", "training": "original captions"}
    settings = {"models": described, "seed": 0}
    environment = {
        "command": ["evals", "--out=x"],
        "python": "3.11",
        "packages": {"jax": "0.9", "absent": None},
        "devices": ["cpu 0"],
        "git_revision": None,
    }
    results = Results(out, settings, environment)
    results.begin(benchmark, problem)
    rng = np.random.default_rng(0)
    for name in names:
        unit = [rng.standard_normal((len(x), 8)) for x in (problem.images, problem.texts)]
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in unit]
        results.add("tiny", name, problem, problem.score(*unit))
    for title, control in problem.controls.items():
        results.add("tiny", title, problem, control(), control=True)
    report.write(out, roots, gallery=8)
    return out, roots


@pytest.fixture(scope="module")
def page(evaluated) -> str:
    return (evaluated[0] / "report.html").read_text()


def text_of(page: str) -> str:
    """What a reader sees."""
    plain = re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(plain).split())


def test_numbers_are_those_of_the_results(evaluated, page):
    entry = json.loads((evaluated[0] / "results.json").read_text())["benchmarks"]["tiny"]
    seen = text_of(page)
    for row in ("before", "control"):
        found = entry["rows"][row]["metrics"]["accuracy"]
        low, high = (f"{100 * found[key]:.1f}" for key in ("low", "high"))
        assert f"{100 * found['value']:.1f} % [{low}, {high}]" in seen
    change = entry["comparisons"]["before -> control"]["metrics"]["accuracy"]
    assert f"({change['gained']} up, {change['lost']} down, not separable)" in seen
    assert "takes the first : accuracy 100.0 %" in seen
    assert "published: somebody's 75.0" in seen and "activation gelu" in seen


def test_the_control_is_named_and_compared_with_what_was_tuned(evaluated, page):
    seen = text_of(page)
    assert "control original captions" in seen
    entry = json.loads((evaluated[0] / "results.json").read_text())["benchmarks"]["tiny"]
    (pair,) = (c for c in entry["comparisons"].values() if c["before"] == "control")
    change = change_text(pair["metrics"]["accuracy"])
    assert f"control → {pair['after']}: accuracy {change}" in seen


def test_captions_notes_and_names_are_escaped(page):
    assert "<script>" not in page and "onerror=&#34;" in page
    assert "<img src=x" not in page and "<b>markup" not in page
    assert html.escape(HTML, quote=True).replace("&#x27;", "&#39;") in page


def test_galleries_show_losses_first_with_every_model(page):
    seen = text_of(page)
    assert seen.index("Lost: right before, wrong after") < seen.index("Won: wrong before, right")
    cards = re.findall(r'<figure class="card">\s*<div class="photos">.*?</figure>', page, re.DOTALL)
    assert len(cards) == 8
    for card in cards:
        assert card.count("data:image/jpeg;base64") == 1 and card.count("✓") == 1
        assert all(card.count(f"var(--m{i})") == 2 for i in range(3))


def test_the_page_needs_no_network(page):
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert links and all(link.startswith(("data:", "#")) for link in links)


def test_photos_that_are_gone_are_named(evaluated, tmp_path, page):
    out = shutil.copytree(evaluated[0], tmp_path / "copy")
    report.write(out, DataRoots((tmp_path,)), gallery=4)
    assert "is not there" in (out / "report.html").read_text() and "is not there" not in page


def test_it_fits_shows_its_photos_and_runs_no_caption(evaluated):
    """On a phone the contents are folded at the top, on a desk they stand at the side."""
    script = """{title: page.title, scroll: page.documentElement.scrollWidth,
      photos: [...page.images].map(image => image.naturalWidth),
      contents: [...page.querySelectorAll('.contents')].map(e => e.getBoundingClientRect()),
      open: page.querySelector('details.contents').open,
      main: page.querySelector('main').getBoundingClientRect().left}"""
    found, pixels = browser.measure(evaluated[0] / "report.html", script, height=1500)
    phone, desk = found
    for each, width in zip(found, browser.WIDTHS, strict=True):
        assert each["title"] == "negclip_jax evaluation"
        assert each["scroll"] == width, "wider than the screen"
        assert len(each["photos"]) == 8 and min(each["photos"]) > 0
    side, top = phone["contents"]
    assert side["width"] == 0 and 300 < top["width"] < 390 and top["height"] < 60
    assert not phone["open"]
    side, top = desk["contents"]
    assert top["width"] == 0 and 0 < side["right"] < desk["main"] and side["top"] < 60
    colours = pixels.astype(np.int32) @ [1 << 16, 1 << 8, 1]
    for part in (colours[:, : browser.WIDTHS[0]], colours[:, browser.WIDTHS[0] :]):
        assert len(np.unique(part)) > 500  # of photos, plots and text


def test_the_page_fits_in_both_schemes(evaluated):
    browser.check_fit(evaluated[0] / "report.html")


def test_contents_name_every_section(page):
    listed = re.findall(r'<li><a href="#([^"]*)">(.*?)</a>', page)
    assert len(listed) == 2 * 4 and ("tiny", "Tiny") in [(i, t[:4]) for i, t in listed]
    assert {anchor for anchor, _ in listed} == set(re.findall(r'<h2 id="([^"]*)"', page))


def row(scored: int, size: int | None, official: float, strict: float) -> dict:
    """A `metric_row` of two models, the second without a strict number."""
    values = {"low": 0, "high": 1, "n": scored, "chance": 0.5, "ties": 0}
    metrics = {"accuracy": {"value": official, **values}}
    both = metrics | {"accuracy_strict": {"value": strict, **values}}
    entry = {
        "rows": {"a": {"metrics": both}, "b": {"metrics": metrics}},
        "comparisons": {},
        "published": [{"model": "CLIP", "metric": "accuracy", "value": 0.7, "source": "s"}],
        "scored": scored,
        "total": scored,
        "size": size,
    }
    return report.metric_row("x", entry, "accuracy", ["a", "b"])


def test_the_strict_number_stands_beside_the_official_one_where_they_differ():
    assert row(10, None, 0.5, 0.45)["strict"] == [0.45, None]
    assert row(10, None, 0.5, 0.50001)["strict"] == [None, None]


def test_published_values_of_a_larger_set_are_marked():
    whole, part = row(534, 534, 0.5, 0.5), row(505, 534, 0.5, 0.5)
    assert whole["published_of"] is None and part["published_of"] == 534
    assert "for all 534 items" in part["plot"] and "for all" not in whole["plot"]


def test_the_summary_shows_strict_numbers_and_marks_published_ones(evaluated, tmp_path):
    out = shutil.copytree(evaluated[0], tmp_path / "copy")
    document = json.loads((out / "results.json").read_text())
    entry = document["benchmarks"]["tiny"]
    metrics = entry["rows"]["before"]["metrics"]
    metrics["accuracy_strict"]["value"] = metrics["accuracy"]["value"] + 0.123
    entry["size"] = 4321
    (out / "results.json").write_text(json.dumps(document))
    report.write(out, evaluated[1], gallery=0)
    seen = text_of((out / "report.html").read_text())
    summary = seen.partition("0 to 100 % ")[2].partition(" Dashed: ")[0]
    strict = 100 * metrics["accuracy_strict"]["value"]
    assert f"strict {strict:.1f} %" in summary and summary.count("strict ") == 1
    assert "published for all 4,321 items : somebody's 75.0" in summary


def test_the_verdict_says_what_rose_fell_and_cannot_be_told_apart():
    def entry(title: str, difference: float, separable: bool, retention: bool = False) -> dict:
        change = {"difference": difference, "separable": separable}
        rows = {"a": {"metrics": {"accuracy": {"headline": True}}}}
        pair = {"a -> c": {"metrics": {"accuracy": change}}}
        return {"title": title, "retention": retention, "rows": rows, "comparisons": pair}

    entries = [entry("V", 0.123, True), entry("W", -0.05, True), entry("X", 0.02, False)]
    entries.append(entry("I", -0.01, False, retention=True))
    document = {
        "settings": {"models": dict.fromkeys("abc")},
        "benchmarks": {str(i): each for i, each in enumerate(entries)},
    }
    assert report.verdict(document) == [
        "Negation rose: V (+12.3); fell: W (-5.0); cannot be told apart: X (+2.0).",
        "Retention cannot be told apart: I (-1.0).",
    ]
    del document["benchmarks"]["3"]
    assert report.verdict(document)[1:] == ["No benchmark of retention was scored."]
    document["settings"]["models"] = {"a": None}
    assert report.verdict(document) == []
