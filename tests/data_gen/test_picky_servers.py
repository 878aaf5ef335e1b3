"""Servers that people run: models that think, fields that are refused, answers of no use."""

import json
import math

import pytest
from fault_server import POOL, arguments, table, tables, world
from picky_server import PickyServer, o_series, thinks_aloud, thinks_apart, thinks_without_end

from data_gen import pipeline
from data_gen.cli import main

IMAGES = 6


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "w"
    return folder, world(folder, IMAGES)


def serve(scene, **manners) -> PickyServer:
    return PickyServer(scene[1], POOL, **manners)


def probe(server, *more) -> int:
    return main(["probe", f"--llm-url={server.url}", f"--mllm-url={server.url}", *more])


@pytest.fixture(scope="module")
def calm(scene, tmp_path_factory):
    out = tmp_path_factory.mktemp("calm") / "run"
    with serve(scene, logprobs=False) as server:
        assert main(arguments(scene[0], out, server)) == 0
    return out


def test_thoughts_are_left_out(scene, calm, tmp_path, capsys):
    with serve(scene, says=thinks_aloud, logprobs=False) as server:
        assert probe(server) == 0
        said = capsys.readouterr().out
        assert "thinks" in said and "in this image? (there is one) 'no'" in said
        assert main(arguments(scene[0], tmp_path / "run", server)) == 0
    pairs = table(tmp_path / "run", "pairs")
    assert pairs and [p["negated_caption"] for p in pairs] == [
        p["negated_caption"] for p in table(calm, "pairs")
    ]


@pytest.mark.parametrize("says", [thinks_without_end, thinks_apart])
@pytest.mark.parametrize("variant", ["per_image", "per_caption"])
def test_a_model_that_only_thinks(scene, tmp_path, capsys, says, variant):
    more = (f"--config=:{variant}", "--config.max_errors=1.0")
    with serve(scene, says=says) as server:
        assert probe(server) == 3
        said = capsys.readouterr().out
        assert "cannot be used: neither yes nor no to 'Is there a red circle" in said
        assert "its rewrite is no caption: the model only thought" in said
        assert "extra_body.chat_template_kwargs.enable_thinking=false" in said
        command = arguments(scene[0], tmp_path / "run", server, *more)
        assert main(command) == 3
    assert "no pair was accepted (candidates: thinking" in capsys.readouterr().err
    assert main(["status", f"--out={tmp_path / 'run'}"]) == 0
    assert "errors      thinking (" in capsys.readouterr().out
    assert main(["export", f"--out={tmp_path / 'run'}"]) == 2


def test_further_fields_reach_the_server_and_a_run_goes_on_with_them(scene, tmp_path, capsys):
    def without(body):
        thinks = body.get("chat_template_kwargs", {}).get("enable_thinking", True)
        return None if thinks else "quiet"

    class Thinker(PickyServer):
        def _answer(self, body):
            self._says = None if without(body) else thinks_apart
            return super()._answer(body)

    with Thinker(scene[1], POOL) as server:
        command = arguments(scene[0], tmp_path / "run", server, "--config.max_errors=1.0")
        assert main(command) == 3
        quiet = "--config.engine.extra_body.chat_template_kwargs.enable_thinking=false"
        assert main([*command, quiet]) == 0
        assert probe(server, '--config.engine.extra_body={"chat_template_kwargs": '
                     '{"enable_thinking": false}}') == 0  # fmt: skip
    kept = json.loads((tmp_path / "run" / "manifest.json").read_text())["capabilities"]
    assert kept["mllm"]["extra_body"] == {"chat_template_kwargs": {"enable_thinking": False}}
    assert main(["probe", "--llm-url=http://127.0.0.1:1/v1", "--config.engine.extra_body=7"]) == 2
    assert "is a JSON object of fields" in capsys.readouterr().err


def test_refused_fields_are_found_once_and_kept(scene, tmp_path, capsys):
    with serve(scene, refuses=o_series) as server:
        assert probe(server) == 0
        said = capsys.readouterr().out
        for words in ("no system turn", "no earlier turns", "no temperature", "top_logprobs as 5",
                      "max_tokens as max_completion_tokens"):  # fmt: skip
            assert words in said
        command = arguments(scene[0], tmp_path / "run", server)
        assert main(command) == 0
        kept = json.loads((tmp_path / "run" / "manifest.json").read_text())["capabilities"]["llm"]
        assert kept["adjusted"]["max_tokens"] == "max_completion_tokens" and not kept["turns"]
        whole = tables(tmp_path / "run")
        (tmp_path / "run" / "done" / "part-00001.json").unlink()
        before, answered = server.counts.calls, len(server.bodies)
        server.shows = {}  # another process would be refused nothing
        assert main(["retry", "--stage=verify", *command[1:]]) in (0, 3)
        assert server.counts.calls - before == len(server.bodies) - answered > 0
    assert whole


@pytest.mark.parametrize("empty_thought", [False, True])
def test_the_answer_is_the_first_token_that_is_not_blank(scene, calm, tmp_path, empty_thought):
    before = ["<think>", "\n\n", "</think>", "\n\n"] if empty_thought else ["\n"]
    with serve(scene, tokens=lambda text: [*((t, -0.01) for t in before), (text, -0.1)]) as server:
        assert main(arguments(scene[0], tmp_path / "run", server)) == 0
    verdicts = table(tmp_path / "run", "verdicts")
    assert {row["method"] for row in verdicts} == {"logprobs"}
    assert max(row["mass"] for row in verdicts) == pytest.approx(math.exp(-0.1))
    found = {(r["image_id"], r["object"]): r["verdict"] for r in verdicts}
    known = {(r["image_id"], r["object"]): r["verdict"] for r in table(calm, "verdicts")}
    assert all(known[key] == verdict for key, verdict in found.items() if key in known)


def test_probabilities_of_no_answer_are_not_used(scene, tmp_path):
    with serve(scene, tokens=lambda text: [("<think>", -0.001)]) as server:
        assert main(arguments(scene[0], tmp_path / "run", server)) == 0
    assert {row["method"] for row in table(tmp_path / "run", "verdicts")} == {"text"}


def test_a_list_of_answers_that_the_server_does_not_keep_to(scene, tmp_path, capsys):
    with serve(scene, logprobs=False) as server:
        wished = "--config.verify.method=choice"
        assert main(arguments(scene[0], tmp_path / "run", server, wished)) == 2
    said = capsys.readouterr().err
    assert "verify.method=choice: " in said and "Traceback" not in said


def test_a_run_stops_after_useless_answers_and_goes_on_after_a_repair(
    scene, calm, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(pipeline, "FIRST_ANSWERS", 8)
    with serve(scene, logprobs=False) as server:
        more = (
            "--config.verify.method=text",
            "--config.shard_images=1",
            "--config.engine.window=1",
        )
        command = arguments(scene[0], tmp_path / "run", server, *more)
        server._says = lambda text: {"content": "Hm?" if text in ("yes", "no") else text}
        assert main(command) == 4
        said = capsys.readouterr().err
        assert "none of the first" in said and "answers of the stage verify can be used" in said
        assert "unsure" in said and "'Hm?'" in said
        asked = server.counts.by_stage["verify"]
        server._says = None
        assert main(command) == 0
        kept = json.loads((tmp_path / "run" / "capabilities.json").read_text())
        assert not kept["mllm"]["problems"]  # it was probed again
        assert server.counts.by_stage["verify"] > asked
    verdicts = table(tmp_path / "run", "verdicts")
    assert {row["verdict"] for row in verdicts} == {"absent", "present"}


@pytest.mark.parametrize("by", ["url", "file"])
def test_photos_by_their_address(scene, tmp_path, by):
    seen = []

    def see(body):
        content = body["messages"][-1]["content"]
        if not isinstance(content, str):
            seen.append(content[0]["image_url"]["url"])
        return False

    start = "http://h/photos/" if by == "url" else (scene[0] / "photos").as_uri()
    more = [f"--config.images.by={by}", "--config.images.url=http://h/photos/"]
    with serve(scene, faults={"500": see}) as server:
        answer = server._text  # it knows photos by their bytes alone
        server._text = lambda body: ("no", "verify") if start in str(body) else answer(body)
        main(arguments(scene[0], tmp_path / "run", server, *more, "--limit=1"))
    assert {url for url in seen if not url.startswith("data:")} == {f"{start.rstrip('/')}/000.jpg"}
    assert main([*arguments(scene[0], tmp_path / "other", server), "--config.images.by=url"]) == 2
