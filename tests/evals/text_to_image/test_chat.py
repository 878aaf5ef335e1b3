"""One question to a server that is well, slow, down, or something else."""

import asyncio
import time

import pytest
from fault_server import always, first
from judge_server import JudgeServer

from evals.text_to_image.chat import Answer, Chat, JudgeError, Patience
from negclip_jax.common.errors import InputError

IMPATIENT = Patience(timeout=0.4, tries=3, wait=0.01)
QUESTION = "Is this a man? Answer with one word: yes or no."
PNG = b"\x89PNG picture"


def ask(server, *questions, key=None, patience=IMPATIENT):
    """Answers to the questions, one after the other."""

    async def run():
        async with Chat(server.url, key, patience) as chat:
            return [await chat.ask("loopback", PNG, question) for question in questions]

    return asyncio.run(run())


def always_yes(image, question):
    return "yes"


def test_an_answer_and_the_key():
    with JudgeServer(always_yes) as server:
        assert ask(server, QUESTION, key="secret") == [Answer("yes")]
        assert server.keys == ["Bearer secret"]
        ask(server, QUESTION)
        assert server.keys[-1] is None


@pytest.mark.parametrize("fault", ["429", "500", "503", "hang", "reset", "truncated"])
def test_what_may_pass_is_tried_again(fault):
    with JudgeServer(always_yes, faults={fault: first(2)}) as server:
        assert ask(server, QUESTION) == [Answer("yes")]
        assert server.given[fault] == 2


def test_it_waits_as_long_as_the_server_asks():
    with JudgeServer(always_yes, faults={"429": first(2)}) as server:
        started = time.monotonic()
        ask(server, QUESTION)
        assert time.monotonic() - started >= 0.4  # Retry-After: 0.2, twice
    with JudgeServer(always_yes, faults={"429": first(2)}) as server:
        started = time.monotonic()
        ask(server, QUESTION, patience=Patience(timeout=1, tries=3, wait=0.01, longest=0.05))
        assert time.monotonic() - started < 0.35


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("503", r"did not answer in 3 tries \(last: status 503: .*no"),
        ("hang", r"did not answer in 3 tries \(last: nothing in 0\.4 s"),
        ("reset", r"did not answer in 3 tries \(last: "),
        ("401", r"refuses the key \(status 401: .*invalid api key.*\): set OPENAI_API_KEY"),
        ("404", r"has no such model or path \(status 404: .*model not found.*--judge-model"),
        ("400", r"no chat completion \(status 400: .*maximum context"),
        ("html", r"no chat completion \(no chat completion: <html>Bad gateway</html>\): check"),
        ("empty", r"no chat completion: nothing"),
        ("no message", "no chat completion"),
    ],
)
def test_a_server_that_never_answers_is_one_sentence_with_its_address(fault, words):
    with JudgeServer(always_yes, faults={fault: always}) as server:
        with pytest.raises(JudgeError, match=words) as caught:
            ask(server, QUESTION)
        assert server.url in str(caught.value) and "\n" not in str(caught.value)
        assert server.given[fault] == (1 if fault in ("400", "401", "404") else 3)


@pytest.mark.parametrize(("fault", "asked"), [("html", 3), ("no message", 3), ("400", 1)])
def test_a_bad_answer_among_good_ones_is_kept_as_one(fault, asked):
    def second_time(body):
        return "dog" in str(body)

    with JudgeServer(always_yes, faults={fault: second_time}) as server:
        good, bad = ask(server, QUESTION, QUESTION.replace("man", "dog"))
        assert good == Answer("yes")
        assert bad.text == "" and ("status 400" in bad.problem or "no chat comp" in bad.problem)
        assert server.given[fault] == asked


def test_nobody_listens():
    async def run():
        async with Chat("http://127.0.0.1:9/v1", None, IMPATIENT) as chat:
            await chat.ask("m", PNG, QUESTION)

    with pytest.raises(JudgeError, match=r"http://127\.0\.0\.1:9/v1 did not answer in 3 tries"):
        asyncio.run(run())


def test_models():
    async def names(server):
        async with Chat(server.url, None, IMPATIENT) as chat:
            return await chat.models()

    with JudgeServer(model="gemma") as server:
        assert asyncio.run(names(server)) == ["gemma"]


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "http://"])
def test_no_address(url):
    with pytest.raises(InputError, match="is no server address; one looks like http://HOST"):
        Chat(url, None, IMPATIENT)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("yes", "yes"),
        (None, ""),
        ([{"type": "text", "text": "y"}, {"type": "text", "text": "es"}], "yes"),
        (7, ""),
    ],
)
def test_contents_in_the_forms_that_servers_send(content, text):
    class Server(JudgeServer):
        def _answer(self, body):
            return {"choices": [{"message": {"role": "assistant", "content": content}}]}

    with Server() as server:
        assert ask(server, QUESTION) == [Answer(text)]
