import html.parser
import json
import re

import browser
import pytest
from PIL import Image

from negclip_jax.interop import export
from quickstart import __main__ as driver
from quickstart.questions import HOLD_OUT, REQUIRED, ROWS
from quickstart.report import RUNS, write_report, write_summary

EVIL = "<script>alert('no')</script> & \"quotes\""


@pytest.fixture
def page(tmp_path):
    """The page of a quickstart in `tmp_path`."""
    images = tmp_path / "world" / "heldout" / "images"
    images.mkdir(parents=True)
    Image.new("RGB", (48, 48), "red").save(images / "1.jpg")
    for name in RUNS:
        lines = [{"step": 0, "val/loss": 4.0}]
        lines += [{"step": i, "loss": 4.0 / i} for i in range(1, 200)]
        (tmp_path / name).mkdir()
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / name / "metrics.jsonl").write_text(text)

    def model(accuracy):
        tied = 7 if accuracy == 0.02 else 0
        cell = {"accuracy": accuracy, "low": accuracy / 2, "high": accuracy, "n": 48, "tied": tied}
        groups = {"unseen_cues": {"new word": cell, EVIL: cell}}
        axes = {"alpha": -0.02, "beta": 0.01, "gamma": accuracy / 10}
        return {"rows": {row: cell for row in ROWS}, "groups": groups, "axes": axes}

    names = ("base", "published", "tuned")
    captions = [
        {"text": text, "true": true, "scores": dict.fromkeys(names, score)}
        for text, true, score in ((EVIL, True, 0.9), ("a false one", False, 0.1))
    ]
    evaluation = {
        "models": {name: model(a) for name, a in zip(names, (0.02, 0.5, 0.97), strict=True)},
        "gallery": [{"image": "1.jpg", "captions": captions}],
        "examples": {row: [[[EVIL, "x"]]] for row in ROWS},
        "probe": {
            s: {"existence": {"accuracy": a}} for s, a in (("train", 0.99), ("heldout", 0.61))
        },
    }
    (tmp_path / "generation").mkdir()
    leak = {"accuracy": {"rate": 0.484, "n": 20000}, "chance": 0.5}
    (tmp_path / "generation" / "audit.json").write_text(json.dumps({"leak": leak}))
    commands = [(f"python -m quickstart.world --out='{EVIL}'", 1.5)]
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    write_report(tmp_path, commands, 123.4)
    return (tmp_path / "report.html").read_text()


class Page(html.parser.HTMLParser):
    """Collects tags, attributes and visible text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


def test_captions_are_escaped(page):
    parsed = Page(page)
    assert "script" not in parsed.tags
    assert EVIL in " ".join("".join(parsed.text).split())


def test_the_page_needs_no_network(page):
    parsed = Page(page)
    assert not {"link", "script", "iframe"} & set(parsed.tags)
    links = [value for key, value in parsed.attributes if key in ("src", "href", "srcset")]
    assert links and all(value.startswith(("data:image/jpeg;base64,", "#")) for value in links)
    assert not re.search(r"https?://|@import|url\(", page)


def test_the_page_shows_numbers_curves_and_a_phone_layout(page):
    assert "97.0" in page and "2.0" in page
    assert page.count("<polyline") == 3
    assert "existence <b>61.0</b>" in page and "(training scenes 99.0)" in page
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page


def test_the_page_fits_in_both_schemes(page, tmp_path):
    browser.check_fit(tmp_path / "report.html")


def test_results_json(page, tmp_path):
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["seconds"] == 123.4
    for side in ("before", "after"):
        assert set(REQUIRED) <= set(content[side])
        for cell in content[side].values():
            assert set(cell) == {"accuracy", "low", "high", "n", "tied"}
    assert content["before"]["existence"]["accuracy"] == 0.02
    assert content["after"]["existence"]["accuracy"] == 0.97


def test_the_driver_runs_public_commands_and_holds_the_cues_out():
    commands = [arguments for _, arguments in driver.commands("runs/x")]
    assert [a[0] for a in commands].count("launch.py") >= 2
    writer = next(a for a in commands if a[1:3] == ["data_gen", "run"])
    assert f"--config.rewrite.hold_out={','.join(HOLD_OUT)}" in writer
    for arguments in commands:
        if "--config.data.pairs" in " ".join(arguments):
            assert "heldout" not in " ".join(arguments)


def test_every_command_of_a_hard_run_is_in_its_world():
    easy, hard = (driver.commands("runs/x", *kind) for kind in ((), ("hard",)))
    changed = [b for (_, a), (_, b) in zip(easy, hard, strict=True) if a != b]
    made, nouns = changed[:2], changed[2]
    assert [words[1] for words in made] == ["quickstart.world", "quickstart.tiny_clip"]
    assert all(words[-1] == "--world=hard" for words in made)
    assert len(changed) == 3, "one recipe for all worlds"
    assert nouns[1:3] == ["data_gen", "nouns"] and "--rows=2000" in nouns


def test_exports_miss_nothing_but_the_run(tmp_path, capsys):
    """Each is refused for the run that is not there, and for no flag."""
    folder = tmp_path / "run"
    commands = [words for _, words in driver.commands(str(folder))]
    exports = [words[2:] for words in commands if words[1] == "negclip_jax.interop.export"]
    assert len(exports) == 3
    for arguments in exports:
        assert export.main(arguments) == 1
        said = capsys.readouterr().err
        assert str(folder) in said and "usage:" not in said


def test_another_seed_has_other_texts_and_runs_on_the_same_base():
    first = [words for _, words in driver.commands("runs/x")]
    other = [words for _, words in driver.commands("runs/y", "easy", 4, "runs/x")]
    assert len(other) == len(first) - 4
    for before, after in zip(first[4:], other, strict=True):
        moved = [word.replace("runs/x", "runs/y") for word in before]
        seeds = [word for word in after if word not in (*before, *moved)]
        is_fixed = before[1:3] in (["data_gen", "export"], ["data_gen", "audit"])
        is_fixed |= before[1] in ("negclip_jax.interop.export", "quickstart.evaluate")
        assert seeds in ([] if is_fixed else ["--seed=4"], ["--config.seed=4"]), after
        kept = [word for word in after if "runs/x" in word]
        assert all("/world" in word or "/base" in word for word in kept)
        assert not any("runs/y/world" in word or "runs/y/base" in word for word in after)


def test_several_seeds_have_mean_and_range(tmp_path):
    for seed, value in enumerate((0.5, 0.7, 0.9)):
        cell = {"accuracy": value}
        rows = {row: cell for row in ROWS}
        models = {name: {"rows": rows} for name in ("base", "published", "tuned")}
        probe = {"heldout": {"existence": {"accuracy": 1 - value}}}
        folder = tmp_path / f"seed{seed}"
        folder.mkdir()
        (folder / "evaluation.json").write_text(json.dumps({"models": models, "probe": probe}))
    text = write_summary(tmp_path, [tmp_path / f"seed{seed}" for seed in range(3)])
    (line,) = (line for line in text.splitlines() if line.strip().startswith("existence"))
    assert line.split("]")[0].split() == ["existence", "70.0", "[50.0,", "90.0"]
    assert line.split()[-1] == "50.0", "the probe is of the base, which is the same"
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["seeds"] == 3
    assert found["rows"]["mcq"]["tuned"] == pytest.approx({"mean": 0.7, "low": 0.5, "high": 0.9})
    page = (tmp_path / "report.html").read_text()
    assert 'href="seed0/report.html"' in page and "50.0 to 90.0" in page


def test_a_failing_command_is_named(capfd):
    with pytest.raises(driver.Failed, match="status 3"):
        driver.run("Try", ["-c", "raise SystemExit(3)"])
    assert "raise SystemExit(3)" in capfd.readouterr().out


def test_only_an_earlier_quickstart_is_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "world").mkdir()
    with pytest.raises(driver.Failed, match="no quickstart wrote"):
        driver.start_afresh(tmp_path / "mine")
    assert (tmp_path / "mine" / "world").is_dir()
    driver.start_afresh(tmp_path / "run")
    (tmp_path / "run" / "old.json").touch()
    driver.start_afresh(tmp_path / "run")
    assert not (tmp_path / "run" / "old.json").exists()


def test_every_variant_is_a_known_configuration():
    from configs import common, quickstart

    keys = set(common.base().to_dict())
    for variant in ("pretrain", "published", "finetune"):
        config = quickstart.get_config(variant)
        assert set(config.to_dict()) == keys
        assert config.optim.freeze == (() if variant == "pretrain" else common.base().optim.freeze)
    with pytest.raises(ValueError, match="pretrain, published"):
        quickstart.get_config("nope")


def test_axes_and_leak_are_said(page):
    text = " ".join(" ".join(Page(page).text).split())
    assert "α -0.020, β +0.010, γ +0.097" in text
    assert "48.4 % of 20,000 groups; chance is 50.0 %" in text


def test_ties_are_said(page):
    text = " ".join(Page(page).text)
    assert "7 of" in text and "answers of existence tie" in " ".join(text.split())
