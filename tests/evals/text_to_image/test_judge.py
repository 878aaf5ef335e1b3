"""Verdicts from answers, and answers that are asked for once."""

import dataclasses
import json
import logging

import pytest
from fault_server import always, first
from judge_server import JudgeServer

from evals.text_to_image.judge import (
    ANSWERS,
    Judge,
    JudgeError,
    count_answers,
    patience,
    plain,
)
from evals.text_to_image.prompts import Prompt
from negclip_jax.common.errors import InputError


def judge_of(out, prompts, server, *, model="", tries=2, timeout=1, concurrency=8):
    settings = patience(timeout=timeout, tries=tries, concurrency=concurrency, backoff=0.01)
    return Judge(out, prompts, server.url, model=model, settings=settings)


def verdicts_of(judge, pictures):
    return {picture: judge.verdict(picture) for picture in pictures if judge.verdict(picture)}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("yes", "yes"),
        (" Yes.\n", "yes"),
        ("NO!", "no"),
        ('"no."', "no"),
        ("**Yes**", "yes"),
        ("Yes, there is.", ""),
        ("yes no", ""),
        ("I think there might be something.", ""),
        ("<html>yes</html>", ""),
        ("", ""),
        ("nope", ""),
        ("yes\nno", ""),
        ("是", ""),
    ],
)
def test_plain_answers(text, word):
    assert plain(text) == word


@pytest.mark.parametrize(
    ("answers", "affirmative", "negation", "other"),
    [
        ({"Is this": "Yes.", "Does": "no", "there": "no", "wearing": "No"}, 1, 1, 0),
        ({"Is this": "no", "Does": "no", "there": "no", "wearing": "no"}, 0, 1, 0),
        ({"Is this": "yes", "Does": "yes", "there": "yes", "wearing": "yes"}, 1, 0, 0),
        ({"Is this": "Yes, a man.", "Does": "", "there": "<p>no</p>", "wearing": "?"}, 0, 0, 1),
    ],
)
def test_the_first_question_wants_yes_and_the_others_no(
    drawn, prompts, answers, affirmative, negation, other
):
    out, pictures = drawn

    def script(image, question):
        return next(answer for words, answer in answers.items() if words in question)

    with JudgeServer(script) as server:
        judge = judge_of(out, prompts, server)
        judge.look(pictures)
    verdicts = verdicts_of(judge, pictures)
    assert len(verdicts) == 12
    for verdict in verdicts.values():
        assert (verdict.affirmative, verdict.negation) == (affirmative, negation)
        assert verdict.both == bool(affirmative and negation)
    assert count_answers(verdicts) == {"plain": (1 - other) * 28, "other": other * 28}


def test_of_two_denied_things_each_must_be_absent(drawn, prompts):
    out, pictures = drawn
    with JudgeServer(
        lambda image, q: "yes" if "clothes" in q or "Is this" in q else "no"
    ) as server:
        judge = judge_of(out, prompts, server)
        judge.look(pictures)
    for picture in pictures:
        verdict = judge.verdict(picture)
        assert verdict.affirmative and verdict.negation == ("collar" not in picture.prompt)


def test_nothing_is_asked_twice(drawn, prompts):
    out, pictures = drawn
    with JudgeServer() as server:
        judge = judge_of(out, prompts, server)
        judge.look(pictures)
        asked = list(server.asked)
        assert len(asked) == len(set(asked)) == 28  # 12 pictures: two questions, or three
        again = judge_of(out, prompts, server)
        again.look(pictures)
        assert server.asked == asked and again.label == "VQA judge loopback"
        assert verdicts_of(again, pictures) == verdicts_of(judge, pictures)
        judge_of(out, prompts, server, model="another").look(pictures)
        assert len(server.asked) == 2 * len(asked)


def test_equal_pictures_are_asked_about_once(drawn, prompts):
    out, pictures = drawn
    same = [dataclasses.replace(p, sha256=pictures[0].sha256) for p in pictures]
    with JudgeServer() as server:
        judge_of(out, prompts, server).look(same)
        assert len(server.asked) == 7


def test_a_server_that_goes_down_keeps_what_it_said(drawn, prompts):
    out, pictures = drawn
    left = [10]

    def down(body):
        left[0] -= 1
        return left[0] < 0

    with JudgeServer(faults={"503": down}) as server:
        judge = judge_of(out, prompts, server, concurrency=1)
        message = r"did not answer in 2 tries .*; 18 answers are missing: those that came are kept"
        with pytest.raises(JudgeError, match=message) as caught:
            judge.look(pictures)
        assert server.url in str(caught.value)
    assert len((out / ANSWERS).read_text().splitlines()) == 10
    assert judge.verdict(pictures[0]) is not None and judge.verdict(pictures[-1]) is None
    with JudgeServer() as server:
        judge = judge_of(out, prompts, server)
        judge.look(pictures)
        assert len(server.asked) == 18
    assert len(verdicts_of(judge, pictures)) == 12


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("503", r"did not answer in 3 tries \(last: status 503: no\)"),
        ("500", r"did not answer in 3 tries \(last: status 500: CUDA error\)"),
        ("hang", r"did not answer in 3 tries \(last: no answer in 0\.4 s\)"),
        ("reset", r"did not answer in 3 tries \(last: the connection failed"),
        ("401", r"refuses the key \(status 401: .*\); set the right API key in OPENAI_API_KEY"),
        ("404", r"has no such model or path \(status 404: .*\); check the address, which usually"),
        (
            "400",
            r"given no chat completion \(status 400: .*maximum context.*the model takes images",
        ),
        (
            "html",
            r"has given no chat completion \(.*<html>Bad gateway</html>'\): check the address",
        ),
        (
            "empty",
            r"has given no chat completion \(the answer is no JSON object: ''\): check the address",
        ),
        ("no message", r"has given no chat completion \(the answer has no message"),
    ],
)
def test_a_server_that_never_answers_is_one_line_with_its_address(drawn, prompts, fault, said):
    out, pictures = drawn
    with JudgeServer(faults={fault: always}) as server:
        judge = judge_of(out, prompts, server, model="m", tries=3, timeout=0.4, concurrency=1)
        with pytest.raises(JudgeError, match=f"^the judge {server.url} .*{said}") as caught:
            judge.look(pictures)
        assert server.given[fault] == (1 if fault in ("400", "401", "404") else 3)
    message = str(caught.value)
    assert "28 answers are missing: those that came are kept" in message and "\n" not in message


@pytest.mark.parametrize("fault", ["429", "503", "hang", "reset", "truncated", "html"])
def test_what_may_pass_is_tried_again(drawn, prompts, fault):
    out, pictures = drawn
    with JudgeServer(faults={fault: first(2)}) as server:
        judge_of(out, prompts, server, tries=3, timeout=0.4, concurrency=1).look(pictures)
        assert server.given[fault] == 2 and len(server.asked) == 28


def test_a_server_that_is_no_longer_there(drawn, prompts):
    out, pictures = drawn
    with JudgeServer() as server:
        gone = judge_of(out, prompts, server, tries=3)
    with pytest.raises(JudgeError, match=r"does not list its models \(Cannot connect.*check the"):
        gone.look(pictures)
    gone.model = "m"
    with pytest.raises(JudgeError, match=r"did not answer in 3 tries .*Cannot connect"):
        gone.look(pictures)


def test_the_key(drawn, prompts, monkeypatch):
    out, pictures = drawn
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with JudgeServer() as server:
        judge_of(out, prompts, server).look(pictures)
        assert set(server.keys) == {"Bearer secret"}
    assert "secret" not in (out / ANSWERS).read_text()


def test_an_answer_that_no_model_gave_fails_its_question_and_is_shown(drawn, prompts):
    out, pictures = drawn
    answered = []

    def page(body):
        answered.append("hat?" in str(body))
        return len(answered) > 1 and answered[-1]

    # The first question is answered, so that a page among the others is no wrong address.
    with JudgeServer(lambda image, question: "yes", faults={"html": page}) as server:
        judge = judge_of(out, prompts, server, concurrency=1)
        judge.look(pictures)
    verdict = judge.verdict(pictures[0])
    assert verdict.affirmative and not verdict.negation
    asked, answer, holds, was_plain = verdict.reasons[1]
    assert "hat?" in asked and "<html>Bad gateway</html>" in answer
    assert not holds and not was_plain
    assert count_answers(verdicts_of(judge, pictures))["other"] == 4


def test_several_models_or_none(drawn, prompts):
    out, pictures = drawn

    class Server(JudgeServer):
        async def _models(self, request):
            from aiohttp import web

            return web.json_response({"data": [{"id": "a"}, {"id": "b"}]})

    with Server() as server:
        with pytest.raises(JudgeError, match=r"offers 2 models \(a, b\): give --judge-model"):
            judge_of(out, prompts, server).look(pictures)
        judge_of(out, prompts, server, model="a").look(pictures)


def test_prompts_without_questions(tmp_path):
    with pytest.raises(
        InputError, match="1 of 1 prompts have no questions for a judge, such as 'a dog'"
    ):
        Judge(tmp_path, [Prompt("a dog")], "http://host/v1")


def test_damaged_answers_are_asked_for_again(drawn, prompts, caplog):
    out, pictures = drawn
    with JudgeServer() as server:
        judge_of(out, prompts, server).look(pictures)
        lines = (out / ANSWERS).read_text().splitlines()
        lines[3] = json.dumps({"other": 1})
        (out / ANSWERS).write_text("\n".join(lines) + '\n{"judge": "loop')
        with caplog.at_level(logging.WARNING):
            judge_of(out, prompts, server).look(pictures)
        assert len(server.asked) == 29


def test_answers_of_earlier_versions_are_read(drawn, prompts):
    out, pictures = drawn
    row = {"judge": "m", "image": pictures[0].sha256, "question": "Is this a man?"}
    lines = [row | {"answer": "Yes.", "problem": ""}, row | {"question": "?", "other": 1}]
    (out / ANSWERS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    judge = Judge(out, prompts, "http://host/v1", model="m")
    assert judge._answers == {("m", pictures[0].sha256, "Is this a man?"): ("Yes.", "")}
