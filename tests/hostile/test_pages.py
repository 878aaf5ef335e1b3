"""Markup in captions, names and answers stays text: a page has the same tags whatever they say."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import handmade_run
import numpy as np
import pytest
from PIL import Image

from data_gen.report import write_report
from evals import report
from evals.benchmark import Benchmark, Published
from evals.choices import Choice, choice_problem
from evals.images import DataRoots, ImageRef
from evals.results import Results
from quickstart.questions import ROWS
from quickstart.report import RUNS, render

HOSTILE = [
    "<script>evil()</script>",
    "</script><script>evil()</script>",
    "</style><style>*{background:url(http://evil)}</style>",
    '"><img src=x onerror=evil()>',
    "' onmouseover='evil()",
    '" onload="evil()" x="',
    "javascript:evil()",
    "</title></h1></p></td></table><iframe src=//evil>",
    "<!-- ",
    "]]><svg/onload=evil()>",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;b&gt;&#60;script&#62;",
    "<a href=javascript:evil()>x</a>",
]
# The same words, so that whatever counts them counts the same.
HARMLESS = [re.sub(r"[<>\"'&{}]", "-", text) for text in HOSTILE]


class Tags(HTMLParser):
    """Tags with the names of their attributes, the values of some, and the visible text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.addresses, self.styles, self.text = [], [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, [name for name, _ in attrs]))
        self.addresses += [value for name, value in attrs if name in ("href", "src", "srcset")]
        self.styles += [value for name, value in attrs if name == "style"]

    def handle_endtag(self, tag):
        self.tags.append((f"/{tag}", []))

    def handle_data(self, data):
        self.text += data


def data_gen_page(tmp_path, monkeypatch, texts: list[str]) -> str:
    monkeypatch.setattr(handmade_run, "NASTY", " ".join(texts))
    run = handmade_run.make_run(tmp_path)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest |= {"run_id": texts[0], "git": texts[1], "python": texts[2]}
    manifest["capabilities"] = {"mllm": {"model": texts[3]}}
    manifest["roles"] = {"propose": texts[4], "verify": texts[5], "rewrite": texts[6]}
    (run / "manifest.json").write_text(json.dumps(manifest))
    return write_report(run).read_text()


def evals_page(tmp_path, monkeypatch, texts: list[str]) -> str:
    tmp_path.mkdir(parents=True)
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.png")
    roots = DataRoots((tmp_path,))
    items = [
        Choice(f"{i} {text}", (ImageRef("a.png"),), (text, f"not {text}"), groups={"kind": text})
        for i, text in enumerate(texts)
    ]
    problem = choice_problem(
        roots, tmp_path / "items.json", items, rule="argmax", breakdowns={"kind": texts[0]}
    )
    problem = dataclasses.replace(problem, file=texts[1], notes=texts)
    published = (Published(texts[2], "accuracy", 0.5, texts[3]),)
    benchmark = Benchmark(
        name="tiny", title=texts[0], source=texts[4], licence=texts[5], download="x",
        load=lambda roots: problem, published=published, task=texts[6],
    )  # fmt: skip
    names = [f"{i} {text}" for i, text in enumerate(texts[:2])]
    described = {name: {"facts": {"weights": texts[0]}, "fingerprint": name} for name in names}
    environment = {
        "command": texts, "python": texts[7], "packages": {texts[8]: texts[9]},
        "devices": [texts[10]], "git_revision": texts[11],
    }  # fmt: skip
    results = Results(tmp_path / "out", {"models": described, "seed": 0}, environment)
    results.begin(benchmark, problem)
    for seed, name in enumerate(names):
        rng = np.random.default_rng(seed)
        unit = [rng.standard_normal((len(x), 8)) for x in (problem.images, range(2 * len(texts)))]
        unit[1] = unit[1][: len(problem.texts)]
        results.add("tiny", name, problem, problem.score(*unit))
    results.fail("tiny", names[0], texts[12])
    return report.write(tmp_path / "out", roots, gallery=8).read_text()


def quickstart_page(tmp_path, monkeypatch, texts: list[str]) -> str:
    images = tmp_path / "world" / "heldout" / "images"
    images.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(images / "1.jpg")
    lines = [{"step": 0, "val/loss": 4.0}, *({"step": i, "loss": 4.0 / i} for i in range(1, 5))]
    for name in RUNS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    cell = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "n": 9, "tied": 3}
    groups = {"unseen_cues": {f"{i} {text}": cell for i, text in enumerate(texts)}}
    model = {"rows": dict.fromkeys(ROWS, cell), "groups": groups}
    names = ("base", "published", "tuned")
    scores = dict.fromkeys(names, 0.5)
    evaluation = {
        "models": dict.fromkeys(names, model),
        "gallery": [
            {
                "image": "1.jpg",
                "captions": [{"text": t, "true": True, "scores": scores} for t in texts],
            }
        ],
        "examples": {row: [texts] for row in ROWS},
    }
    commands = [(text, 1.0) for text in texts]
    return render(evaluation, tmp_path, commands=commands, seconds=1.0)


PAGES = {"data_gen": data_gen_page, "evals": evals_page, "quickstart": quickstart_page}


@pytest.fixture(scope="module", params=PAGES)
def pages(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        made = [
            PAGES[request.param](tmp_path_factory.mktemp("page") / "run", patch, texts)
            for texts in (HOSTILE, HARMLESS)
        ]
    return SimpleNamespace(hostile=Tags(made[0]), harmless=Tags(made[1]), source=made[0])


def test_the_tags_are_those_of_a_page_of_harmless_captions(pages):
    assert len(pages.hostile.tags) > 100
    assert pages.hostile.tags == pages.harmless.tags


def test_nothing_runs_and_nothing_is_fetched(pages):
    tags = {tag for tag, _ in pages.hostile.tags}
    active = {"script", "iframe", "object", "embed", "base", "form", "link", "template"}
    assert not tags & active
    assert not [name for _, names in pages.hostile.tags for name in names if name.startswith("on")]
    own = re.compile(r"data:image/jpeg;base64,[\w+/=]+|#[\w-]+")
    assert all(own.fullmatch(address) for address in pages.hostile.addresses)
    assert not [style for style in pages.hostile.styles if "evil" in style or "url(" in style]


def test_every_hostile_text_is_shown_as_it_is(pages):
    shown = " ".join(pages.hostile.text.split())
    assert sum(" ".join(text.split()) in shown for text in HOSTILE) >= 8
    assert "{{ 7 * 7 }}" in shown and "49" not in shown.split()
