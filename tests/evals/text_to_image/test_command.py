"""The command from end to end: tiny pipelines, a scripted judge, kills and mistakes."""

import json
import shutil
import signal
import subprocess
import sys

import pytest
from fault_server import always
from judge_server import JudgeServer
from tiny_pipelines import text_encoder_2
from tiny_runs import ROOT

from evals.text_to_image import __main__ as text_to_image
from evals.text_to_image.judge import Judge
from evals.text_to_image.pictures import Pictures


@pytest.fixture
def command(sd, prompt_file, tiny_checkpoint, tmp_path, monkeypatch):
    """Function of more arguments to the exit status; `command.out` is the folder."""
    monkeypatch.setattr("negclip_jax.runtime.console.set_up_logging", lambda: None)

    def run(*more, base=sd, model=tiny_checkpoint, count=2):
        arguments = [f"--pipeline={base}", f"--model={model}", f"--out={run.out}", "--device=cpu"]
        if not any(text.startswith(("--prompts", "--data")) for text in more):
            arguments.append(f"--prompts={prompt_file}")
        arguments += ["--steps=2", f"--images-per-prompt={count}", "--judge-tries=2"]
        given = {text.partition("=")[0] for text in more}
        run.arguments = [a for a in arguments if a.partition("=")[0] not in given] + [*more]
        return text_to_image.main(run.arguments)

    run.out = tmp_path / "out"
    return run


def results(out):
    return json.loads((out / "results.json").read_text())


def pictures(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*.png")}


def tuned_is_better(wanted):
    """A script by which every picture of `wanted` is right, and the others have the thing."""

    def script(image, question):
        return "yes" if "Is this" in question or image not in wanted else "no"

    return script


@pytest.mark.slow
def test_the_old_flag_works_with_a_warning(command, capsys):
    """What was --base is --pipeline: the same command, which finds its own pictures."""
    assert command() == 0
    drawn, content = pictures(command.out), results(command.out)
    capsys.readouterr()
    old = [argument.replace("--pipeline=", "--base=") for argument in command.arguments]
    assert old != command.arguments and text_to_image.main(old) == 0
    assert pictures(command.out) == drawn and results(command.out)["models"] == content["models"]
    told = "warning: --base is now --pipeline; the old flag works until the next release\n"
    assert capsys.readouterr().err.startswith(told)


def test_a_published_list_that_was_cut_is_told(command, caplog):
    file = command.out.parent / "prompts_with_questions.json"
    questions = {"Question1": "Is this a room?", "Question2": "Is there a window?"}
    file.write_text(json.dumps([{"Prompt": "a room with no window", **questions}]))
    assert command(f"--prompts={file}") == 0
    told = "has 1 of the 107 published prompts"
    assert told in caplog.text and told in (command.out / "report.html").read_text()


def test_draws_judges_and_reports(command, capsys):
    assert command() == 0  # draws, with nobody to judge
    assert "12 pictures, judged by nobody" in capsys.readouterr().out
    rows = [json.loads(line) for line in (command.out / "images.jsonl").open()]
    tuned = {row["sha256"] for row in rows if row["model"] == "tuned"}
    before = pictures(command.out)
    assert len(before) == len({row["sha256"] for row in rows}) == 12
    with JudgeServer(tuned_is_better(tuned)) as server:
        assert command(f"--judge={server.url}") == 0
        assert len(server.asked) == 28
        assert command(f"--judge={server.url}") == 0
        assert len(server.asked) == 28
    found = results(command.out)
    assert found["judge"]["label"] == "VQA judge loopback"
    both = {model: found["scores"][model]["both"]["value"] for model in ("base", "tuned")}
    assert both == {"base": 0, "tuned": 1} and found["difference"]["both"]["difference"] == 1
    assert found["scores"]["base"]["affirmative"]["value"] == 1
    assert found["settings"]["steps"] == 2 and found["environment"]["packages"]["diffusers"]
    assert pictures(command.out) == before
    out = capsys.readouterr().out
    assert "VQA judge loopback: 12 of 12 pictures judged" in out and "tuned 100.0 [" in out
    page = (command.out / "report.html").read_text()
    assert page.count('class="right"') == page.count('class="wrong"') == 6
    assert "&lt;b&gt;window" in page and "<b>window" not in page


@pytest.mark.slow
def test_a_stand_in_is_labelled_in_every_output(command, tiny_checkpoint, one_device_mesh, capsys):
    assert command(f"--stand-in={tiny_checkpoint}", count=1) == 0
    label = "CLIP stand-in, not a VQA judge"
    assert f"{label}: 6 of 6 pictures judged" in capsys.readouterr().out
    assert results(command.out)["judge"]["label"] == label
    assert label in (command.out / "report.html").read_text()


def test_sdxl_with_the_second_encoder(command, sdxl, tmp_path):
    text_encoder_2(seed=5).save_pretrained(tmp_path / "tuned")
    assert command(base=sdxl, model=tmp_path / "tuned", count=1) == 0
    found = results(command.out)
    assert found["settings"]["replaced"] == "text_encoder_2" and found["drawn"] == 6
    assert len(pictures(command.out)) == 6 and not found["blank"]


def test_stopped_and_started_again_it_makes_the_same(command, monkeypatch, capsys):
    assert command() == 0
    whole, command.out = command.out, command.out.parent / "stopped"
    kept = []

    def stop(self, picture, image, keep=Pictures._keep):
        if len(kept) == 3:
            raise KeyboardInterrupt
        kept.append(picture.file)
        keep(self, picture, image)

    with monkeypatch.context() as patch:
        patch.setattr(Pictures, "_keep", stop)
        assert command() == 130
    assert f"the same command continues in {command.out}" in capsys.readouterr().err
    assert len(pictures(command.out)) == 3
    assert command() == 0
    assert pictures(command.out) == pictures(whole)
    assert results(command.out)["prompts"] == results(whole)["prompts"]


KILLED_AT_THE_THIRD = """
import os, signal, sys, types
from evals.text_to_image import __main__ as command
from evals.text_to_image.pictures import Pictures

keep, kept = Pictures._keep, []

def keep_or_die(self, picture, image):
    kept.append(picture)
    if len(kept) == 3:
        self._lines = types.SimpleNamespace(append=lambda row: os.kill(os.getpid(), signal.SIGKILL))
    keep(self, picture, image)

Pictures._keep = keep_or_die
command.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_killed_without_warning_it_draws_what_is_missing(command, tmp_path):
    """SIGKILL when the third picture is there and its line is not."""
    (tmp_path / "one.txt").write_text("a man with no hat\n")
    more = (f"--prompts={tmp_path}/one.txt", "--steps=2")
    assert command(*more, count=3) == 0
    whole, command.out = pictures(command.out), tmp_path / "killed"
    arguments = [*command.arguments[:2], f"--out={command.out}", *command.arguments[3:]]
    died = subprocess.run(
        [sys.executable, "-c", KILLED_AT_THE_THIRD, *arguments],
        cwd=ROOT,
        capture_output=True,
        timeout=120,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    survivors = {path: path.stat().st_mtime_ns for path in command.out.rglob("[!.]*.png")}
    listed = (command.out / "images.jsonl").read_text().count("\n")
    assert len(survivors) == 3 and listed == 2
    assert command(*more, count=3) == 0
    assert pictures(command.out) == whole
    again = [path for path, changed in survivors.items() if path.stat().st_mtime_ns != changed]
    assert len(again) == 1  # the one whose line was not written


@pytest.mark.slow
def test_other_settings_other_folder(command, capsys):
    assert command(count=1) == 0
    before = pictures(command.out)
    assert command("--guidance=3", count=1) == 1
    assert "other settings: guidance (7.5 there, 3.0 now): give another" in capsys.readouterr().err
    assert pictures(command.out) == before


def test_a_judge_that_goes_down_leaves_a_page_and_a_message(command, capsys):
    left = [5]

    def down(body):
        left[0] -= 1
        return left[0] < 0

    with JudgeServer(faults={"503": down}) as server:
        more = (f"--judge={server.url}", "--judge-concurrency=1")
        assert command(*more) == 1
        shown = capsys.readouterr()
        assert "23 answers are missing" in shown.err and server.url in shown.err
        assert "Traceback" not in shown.err and shown.err.count("\n") == 1
        assert "2 of 12 pictures judged" in shown.out
        assert "2 of 12 pictures are judged" in (command.out / "report.html").read_text()
        left[0] = 1000
        assert command(*more) == 0
        assert results(command.out)["judged"] == 12 and len(server.asked) == 28


@pytest.mark.slow
def test_stopped_while_judging_it_leaves_a_page(command, monkeypatch, capsys):
    kept = []

    def stop(self, picture, question, answer, keep=Judge._keep):
        if len(kept) == 9:
            raise KeyboardInterrupt
        kept.append(question)
        keep(self, picture, question, answer)

    with JudgeServer() as server:
        with monkeypatch.context() as patch:
            patch.setattr(Judge, "_keep", stop)
            assert command(f"--judge={server.url}") == 130
        assert "Unfinished" in (command.out / "report.html").read_text()
        assert len((command.out / "answers.jsonl").read_text().splitlines()) == 9
        assert command(f"--judge={server.url}") == 0
    assert results(command.out)["judged"] == 12


def test_prose_fails_is_counted_and_shown(command, capsys):
    with JudgeServer(lambda image, question: f"<b>Well</b>, {question}") as server:
        assert command(f"--judge={server.url}", count=1) == 0
    found = results(command.out)
    assert found["scores"]["tuned"]["both"]["value"] == 0
    assert found["answers"] == {m: {"plain": 0, "other": 7} for m in ("base", "tuned")}
    assert "base: 7 of 7 answers were no plain yes or no" in capsys.readouterr().out
    page = (command.out / "report.html").read_text()
    assert page.count("4 answers that are no plain yes or no") == 2
    assert "&lt;b&gt;Well&lt;/b&gt;, Is this a man?" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pipeline=nowhere"], "nowhere has no model_index.json: --pipeline is the directory of"),
        (["--model=nowhere"], "nowhere"),
        (["--prompts=nowhere.json"], "nowhere.json cannot be read"),
        (["--data=."], "prompts_with_questions.json is not below .: get it from github.com/sep"),
        (["--judge=somewhere"], "--judge='somewhere' is no server address"),
        (["--stand-in=nowhere"], "nowhere"),
        (["--size=20"], "--size=20 is not a multiple of 8"),
    ],
)
def test_mistakes_are_messages(command, arguments, message, capsys, monkeypatch, tmp_path):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert command(*arguments) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and message in shown and "Traceback" not in shown
    assert not command.out.exists()


@pytest.mark.parametrize("package", ["diffusers", "torch", "transformers"])
def test_a_missing_extra_is_one_line(command, package, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    assert command() == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: drawing pictures needs the package {package}")
    assert "pip install -e '.[diffusers]'" in shown and shown.count("\n") == 1


def test_a_tower_of_another_width(command, sd_of_width_48, capsys):
    assert command(base=sd_of_width_48) == 1
    shown = capsys.readouterr().err
    assert "is 32 wide and does not fit" in shown and "reads states of width 48" in shown


@pytest.fixture
def sd_of_width_48(sd, tmp_path):
    base = tmp_path / "wide"
    shutil.copytree(sd, base)
    for file, key in (("text_encoder", "hidden_size"), ("unet", "cross_attention_dim")):
        path = base / file / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: 48}))
    return base


def test_without_prompts_it_says_where_they_are(sd, tiny_checkpoint, tmp_path, capsys):
    arguments = [f"--pipeline={sd}", f"--model={tiny_checkpoint}", f"--out={tmp_path}"]
    assert text_to_image.main(arguments) == 1
    assert "github.com/sepehrkr/SpaceVLM" in capsys.readouterr().err


def test_a_judge_that_is_down(command, capsys):
    with JudgeServer(faults={"reset": always}) as server:
        assert command(f"--judge={server.url}", count=1) == 1
        assert f"{server.url} did not answer in 2 tries" in capsys.readouterr().err
