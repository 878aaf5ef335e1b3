"""Bodies as servers expect them, and answers in the forms that servers give."""

import json

import pytest

from negclip_jax.common.chat.messages import (
    CHOICE_DIALECTS,
    ChatImage,
    ChatRequest,
    body_of,
    result_of,
)

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
    image = ChatImage("ab", "file", b"\xff\xd8jpeg")
    body = json.loads(body_of(request(image=image)))
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
    image, same = (ChatImage("ab", "file", data) for data in (b"1", b"2"))
    assert request(image=image).key == request(image=same).key
    others = [
        request(max_tokens=1),
        request(temperature=0.5),
        request(sample=1),
        request(image=image),
        request(top_logprobs=5),
        request(choice=("yes",), choice_by="regex"),
        ChatRequest("rewrite", "m", TURNS),
        ChatRequest("verify", "n", TURNS),
        ChatRequest("verify", "m", TURNS[1:]),
    ]
    assert len({base.key, *(other.key for other in others)}) == 1 + len(others)


def test_keys_are_those_of_every_earlier_version():
    """The answers that a run has got are found in its cache by these keys."""
    assert request().key == "097fb53633559e17ef7e7c352941c5f0"
    everything = request(
        image=ChatImage("ab" * 32, "jpeg90-672", b"1"),
        max_tokens=1,
        temperature=0.7,
        top_p=0.9,
        top_logprobs=20,
        choice=("yes", "no"),
        choice_by="regex",
        schema={"type": "object"},
        sample=1,
    )
    assert everything.key == "fb9ef44eb5dea759617ba77fd0acbc94"
    assert everything.seed == 2110749223


def completion(message, **choice) -> dict:
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": None}
    return {"choices": [{"message": message, "finish_reason": "stop", **choice}], "usage": usage}


def test_an_answer_with_everything():
    top = [{"token": "No", "logprob": -0.1}, {"token": "Yes", "logprob": -2.5}]
    logprobs = {"content": [{"token": "No", "logprob": -0.1, "top_logprobs": top}]}
    result = result_of(completion({"content": "No"}, logprobs=logprobs))
    assert (result.text, result.prompt_tokens, result.completion_tokens) == ("No", 7, 2)
    assert list(result.top) == [("No", -0.1), ("Yes", -2.5)]


@pytest.mark.parametrize(
    ("content", "text"),
    [(None, ""), ([{"type": "text", "text": "a"}], "a"), (5, ""), ("half \ud800 é", "half ? é")],
)
def test_answers_without_plain_text(content, text):
    assert result_of(completion({"content": content})).text == text


@pytest.mark.parametrize("logprobs", [None, {}, {"content": []}, {"content": None}, "x"])
def test_ignored_logprobs_are_none(logprobs):
    assert result_of(completion({"content": "No"}, logprobs=logprobs)).top is None


@pytest.mark.parametrize(
    "body", [{}, {"choices": []}, {"choices": [{"text": "x"}]}, {"choices": 3}]
)
def test_an_answer_without_a_message_is_an_error(body):
    with pytest.raises(ValueError, match="the answer has no message"):
        result_of(body)
