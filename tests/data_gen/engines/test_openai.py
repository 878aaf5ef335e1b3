"""Bodies as servers expect them, and answers in the forms that servers give."""

import json

import pytest

from data_gen.engines.base import ChatRequest
from data_gen.engines.openai import CHOICE_DIALECTS, body_of, result_of
from data_gen.engines.transport import Reply
from data_gen.images import Photo

TURNS = (("system", "Be brief."), ("user", 'Is there a dog? {braces} "quotes" \u00e9'))


def request(**changes) -> ChatRequest:
    return ChatRequest("verify", "m", TURNS, **changes)


def test_a_greedy_text_request():
    body = json.loads(body_of(request(max_tokens=5)))
    assert body == {
        "model": "m",
        "messages": [{"role": role, "content": text} for role, text in TURNS],
        "max_tokens": 5,
        "temperature": 0.0,
    }


def test_the_photo_goes_before_the_question():
    photo = Photo("ab", 1, 1, "file", b"\xff\xd8jpeg")
    body = json.loads(body_of(request(photo=photo)))
    picture, text = body["messages"][-1]["content"]
    assert picture == {
        "type": "image_url",
        "image_url": {"url": "data:image/jpeg;base64,/9hqcGVn"},
    }
    assert text["text"] == TURNS[1][1]


def test_sampling_logprobs_schema_and_choice():
    sampled = json.loads(body_of(request(temperature=0.7, top_p=0.9)))
    assert sampled["top_p"] == 0.9 and 0 <= sampled["seed"] < 2**31
    assert json.loads(body_of(request(top_logprobs=20)))["top_logprobs"] == 20
    schema = json.loads(body_of(request(schema={"type": "object"})))["response_format"]
    assert schema["json_schema"]["schema"] == {"type": "object"}
    for dialect in CHOICE_DIALECTS:
        body = json.loads(body_of(request(choice=("yes", "no"), choice_by=dialect)))
        assert "yes" in str(body[dialect]) and "no" in str(body[dialect])


def test_the_key_depends_on_what_decides_the_answer_and_on_nothing_else():
    base = request()
    assert base.key == request().key and len(base.key) == 32
    photo, same = (Photo("ab", w, 1, "file", b"1") for w in (1, 2))
    assert request(photo=photo).key == request(photo=same).key
    others = [
        request(max_tokens=1),
        request(temperature=0.5),
        request(sample=1),
        request(photo=photo),
        request(top_logprobs=5),
        request(choice=("yes",), choice_by="regex"),
        ChatRequest("rewrite", "m", TURNS),
        ChatRequest("verify", "n", TURNS),
        ChatRequest("verify", "m", TURNS[1:]),
    ]
    assert len({base.key, *(other.key for other in others)}) == 1 + len(others)


def reply(message, **choice) -> Reply:
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": None}
    body = {"choices": [{"message": message, "finish_reason": "stop", **choice}], "usage": usage}
    return Reply(body, latency_ms=3, attempts=2, host="h")


def test_an_answer_with_everything():
    top = [{"token": "No", "logprob": -0.1}, {"token": "Yes", "logprob": -2.5}]
    logprobs = {"content": [{"token": "No", "logprob": -0.1, "top_logprobs": top}]}
    result = result_of(reply({"content": "No"}, logprobs=logprobs))
    assert (result.text, result.prompt_tokens, result.completion_tokens) == ("No", 7, 2)
    assert list(result.top) == [("No", -0.1), ("Yes", -2.5)]
    assert (result.attempts, result.host, result.latency_ms) == (2, "h", 3)


@pytest.mark.parametrize(
    ("content", "text"),
    [(None, ""), ([{"type": "text", "text": "a"}], "a"), (5, ""), ("half \ud800 é", "half ? é")],
)
def test_answers_without_plain_text(content, text):
    assert result_of(reply({"content": content})).text == text


@pytest.mark.parametrize("logprobs", [None, {}, {"content": []}, {"content": None}, "x"])
def test_ignored_logprobs_are_none(logprobs):
    assert result_of(reply({"content": "No"}, logprobs=logprobs)).top is None


@pytest.mark.parametrize(
    "body", [{}, {"choices": []}, {"choices": [{"text": "x"}]}, {"choices": 3}]
)
def test_an_answer_without_a_message_is_an_error(body):
    result = result_of(Reply(body))
    assert result.error == "bad_response" and not result.permanent
