"""The page says what the results say, escapes captions, and fits a phone in a real browser."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import tiny_benchmark
from PIL import Image
from tiny_benchmark import HTML

from evals import registry, report
from evals.images import DataRoots
from evals.results import Results
from negclip_jax.common.statistics import change_text

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
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


WIDTHS = (390, 1100)  # a phone and a desk, as frames of one page
PROBE = """<script>addEventListener('load', () => {
document.title = JSON.stringify([...document.querySelectorAll('iframe')].map(frame => {
  const page = frame.contentDocument;
  return {title: page.title, scroll: page.documentElement.scrollWidth,
          photos: [...page.images].map(image => image.naturalWidth)} })) })</script>"""


@pytest.fixture(scope="module")
def browsed(evaluated, tmp_path_factory):
    """What a browser makes of the page in frames of `WIDTHS`: the document and a picture."""
    if BROWSER is None:
        pytest.skip("no Chromium here")
    folder = tmp_path_factory.mktemp("browser")
    page = (evaluated[0] / "report.html").read_text().replace(' loading="lazy"', "")
    (folder / "page.html").write_text(page)
    frame = '<iframe src="page.html" style="border:0; height:1500px; width:{}px"></iframe>'
    frames = "".join(map(frame.format, WIDTHS))
    (folder / "frames.html").write_text(f'<body style="margin:0; display:flex">{frames}{PROBE}')
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--allow-file-access-from-files", f"--user-data-dir={folder / 'profile'}"]
    command += [f"--window-size={sum(WIDTHS)},1500", f"--screenshot={folder / 'shot.png'}"]
    command += ["--dump-dom", (folder / "frames.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout, np.asarray(Image.open(folder / "shot.png").convert("RGB"))


def test_it_fits_shows_its_photos_and_runs_no_caption(browsed):
    title = re.search(r"<title>(.*?)</title>", browsed[0])[1]
    for found, width in zip(json.loads(html.unescape(title)), WIDTHS, strict=True):
        assert found["title"] == "negclip_jax evaluation"
        assert found["scroll"] == width, "wider than the screen"
        assert len(found["photos"]) == 8 and min(found["photos"]) > 0


def test_it_is_drawn(browsed):
    pixels = browsed[1].astype(np.int32) @ [1 << 16, 1 << 8, 1]
    for part in (pixels[:, : WIDTHS[0]], pixels[:, WIDTHS[0] :]):
        assert len(np.unique(part)) > 500  # colours of photos, plots and text


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
    document["settings"]["models"] = {"a": None}
    assert report.verdict(document) == []
