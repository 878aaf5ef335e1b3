"""Verdicts from answers, and answers that are asked for once."""

import dataclasses
import json
import logging

import pytest
from fault_server import always
from judge_server import JudgeServer

from evals.text_to_image.chat import JudgeError, Patience
from evals.text_to_image.judge import ANSWERS, Judge, count_answers, plain
from evals.text_to_image.prompts import Prompt
from negclip_jax.common.errors import InputError

IMPATIENT = Patience(timeout=1, tries=2, wait=0.01)


def judge_of(out, prompts, server, **options):
    return Judge(out, prompts, server.url, patience=IMPATIENT, **options)


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


def test_a_server_that_is_down_from_the_start(drawn, prompts):
    out, pictures = drawn
    with JudgeServer(faults={"hang": always}) as server:
        judge = Judge(out, prompts, server.url, model="m", patience=Patience(0.1, 2, 0.01))
        with pytest.raises(JudgeError, match=r"nothing in 0\.1 s.*28 answers are missing"):
            judge.look(pictures)


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
