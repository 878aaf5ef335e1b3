"""Bodies as servers expect them, and answers in the forms that servers give."""

import json

import pytest

from negclip_jax.common.chat.messages import (
    CHOICE_DIALECTS,
    ChatImage,
    ChatRequest,
    adjustment,
    body_of,
    result_of,
    without_thoughts,
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
    "tokens",
    [
        ['{"', "1", '":', ' "', "no", '",', ' "', "2", '":', ' "', "yes", '"}'],
        ["```json\n", '{"1"', ": ", '"no', '", "2": "', "yes", '"}', "\n```"],
    ],
)
def test_the_first_token_of_each_text_in_an_object(tokens):
    content = [
        {"token": t, "logprob": -0.1, "top_logprobs": [{"token": t, "logprob": -0.1}]}
        for t in tokens
    ]
    result = result_of(completion({"content": "".join(tokens)}, logprobs={"content": content}))
    found = {name: top[0][0].strip('"') for name, top in result.values.items()}
    assert found == {"1": "no", "2": "yes"}


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


def answer(finish="stop", logprobs=None, **message):
    choice = {"message": message, "finish_reason": finish, "logprobs": logprobs}
    return result_of({"choices": [choice]})


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>\nA dog?\n</think>\n\nNo", "No"),
        ("<think>\n\n</think>\n\nNo", "No"),
        ("A dog? Let me see.\n</think>\nNo", "No"),  # the template opened the thought
        ("<think>a</think>b<think>c</think>No", "No"),
        ("<thinking>x</thinking>No", "No"),
        ("[THINK]x[/THINK]No", "No"),
        ("\u25c1think\u25b7x\u25c1/think\u25b7No", "No"),
        (
            "<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>No"
            "<|return|>",
            "No",
        ),
        ("<think>\nA dog? Let me", ""),
        ("<|channel|>analysis<|message|>A dog?", ""),
        ("No <think>or", ""),
    ],
)
def test_thoughts_are_no_answer(text, answer):
    assert without_thoughts(text) == (answer, True)


def test_a_text_without_thoughts_stays():
    assert without_thoughts(" I think <b>so</b> \n") == (" I think <b>so</b> \n", False)


def test_what_is_no_answer_has_its_name():
    for cut in ({"content": "<think>hm"}, {"content": None, "reasoning_content": "hm"},
                {"content": "", "reasoning": "hm"}):  # fmt: skip
        thinking = answer("length", **cut)
        assert (thinking.error, thinking.permanent, thinking.text) == ("thinking", False, "")
        assert "enable_thinking=false" in thinking.detail
    both = answer(content="No", reasoning_content="hm")
    assert (both.text, both.thinks, both.error) == ("No", True, None)
    refused = answer(content=None, refusal="I can't help with that")
    assert (refused.error, refused.permanent) == ("refusal", True) and "help" in refused.detail
    for finish in ("content_filter", "SAFETY"):
        assert answer(finish, content="A").error == "content_filter"
    parts = [{"type": "thinking", "thinking": [], "text": None}, {"type": "text", "text": "No"}]
    assert answer(content=parts).text == "No"


@pytest.mark.parametrize(
    ("tokens", "place"),
    [(["No"], 0), (["\n", "No"], 1), (["\u010a", "\u0120", "No"], 2), (["\n"], 0),
     (["<think>", "\n\n", "</think>", "\n\n", "No"], 4)],
)  # fmt: skip
def test_the_token_that_answers_is_the_first_that_is_not_blank(tokens, place):
    listed = [
        {"token": t, "logprob": -0.1, "top_logprobs": [{"token": t, "logprob": -0.1}]}
        for t in tokens
    ]
    found = answer(content="No", logprobs={"content": listed})
    assert found.position == place and found.top == ((tokens[place], -0.1),)


@pytest.mark.parametrize(
    ("said", "changes"),
    [
        ("Unsupported parameter: 'max_tokens' ... Use 'max_completion_tokens' instead.",
         {"max_tokens": "max_completion_tokens"}),
        ("Unsupported value: 'temperature' does not support 0.7 with this model.",
         {"temperature": None}),
        ("[{'type': 'extra_forbidden', 'loc': ['body', 'seed'], 'msg': 'Extra inputs are not "
         "permitted'}]", {"seed": None}),
        ('Unknown name "top_p": Cannot find field.', {"top_p": None}),
        ("Requested sample logprobs of 20, which is greater than max allowed: 5",
         {"top_logprobs": 5}),
        ("logprobs is not supported", {"top_logprobs": 5}),
        ("maximum context length is 4096 tokens; reduce max_tokens", {}),
        ("max_tokens is too large: 120", {}),
        ("model not loaded", {}),
    ],
)  # fmt: skip
def test_what_a_refusal_asks_to_change(said, changes):
    sent = json.loads(body_of(request(temperature=0.7, top_logprobs=20)))
    assert adjustment(said, sent) == changes
    after = json.loads(body_of(request(temperature=0.7, top_logprobs=20), changes))
    assert (after == sent) == (not changes)


def test_further_fields_are_in_the_body_and_the_key_and_an_image_may_be_an_address():
    plain, more = request(), request(extra={"chat_template_kwargs": {"enable_thinking": False}})
    assert json.loads(body_of(more))["chat_template_kwargs"] == {"enable_thinking": False}
    assert plain.key == request(extra={}).key != more.key
    without = json.loads(body_of(request(extra={"temperature": None})))
    assert "temperature" not in without and "max_tokens" in without
    image = ChatImage("ab", "url", b"", address="http://h/a%20b.jpg")
    content = json.loads(body_of(request(image=image)))["messages"][-1]["content"]
    assert content[0]["image_url"]["url"] == "http://h/a%20b.jpg"


def test_thoughts_that_are_only_counted():
    """OpenAI's reasoning models show nothing of them."""
    body = {"choices": [{"message": {"content": ""}, "finish_reason": "length"}]}
    assert result_of(body).error is None
    body["usage"] = {"completion_tokens_details": {"reasoning_tokens": 10}}
    assert result_of(body).error == "thinking"
