"""Requests under every fault that servers are known for."""

import asyncio
import dataclasses
import time

import fault_server
import pytest
from fault_server import IMPATIENT, FaultServer, always, first, says
from picky_server import PickyServer, o_series

from negclip_jax.common.chat import client as chat_client
from negclip_jax.common.chat.client import ChatClient, EndpointError, NoAnswer
from negclip_jax.common.chat.messages import ChatImage, ChatRequest, ChatResult
from negclip_jax.common.errors import InputError

HELLO = ChatRequest("propose", "m", (("user", "Say hello."),))
OTHER = ChatRequest("propose", "m", (("user", "Say hello, poisoned."),))


def serve(**faults) -> FaultServer:
    return FaultServer({}, ["dog"], faults={k.replace("_", " "): v for k, v in faults.items()})


def with_image(sha256: str) -> ChatRequest:
    return dataclasses.replace(HELLO, image=ChatImage(sha256, "file", b"1"))


def ask(*urls: str, requests=(HELLO,), key_variable=None, **patience) -> list[ChatResult]:
    async def run():
        client = ChatClient(urls, dataclasses.replace(IMPATIENT, **patience), key_variable)
        try:
            return await asyncio.gather(*(client.generate(request) for request in requests))
        finally:
            await client.close()

    return asyncio.run(run())


def test_an_answer_and_the_key(monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    with serve() as server:
        (result,) = ask(server.url, key_variable="MY_KEY")
    assert result.text == "Hello there" and result.latency_ms > 0
    assert (result.error, result.attempts, result.host) == (None, 1, server.url)
    assert server.keys == ["Bearer secret"]


@pytest.mark.parametrize(
    "fault",
    ["500", "503", "reset", "truncated", "html", "empty", "hang", "429", "deep", "no message"],
)
def test_transient_faults_are_tried_again(fault):
    with serve(**{fault: first(2)}) as server:
        (result,) = ask(server.url)
        assert result.error is None
        assert result.attempts == 3 and server.counts.calls == 3


def test_an_endless_answer_is_not_read_to_its_end(monkeypatch):
    monkeypatch.setattr(chat_client, "_LONGEST_ANSWER", 10**6)
    with serve(endless=first(1)) as server:
        started = time.monotonic()
        (result,) = ask(server.url, timeout=20.0)
        assert result.error is None and result.attempts == 2
        assert time.monotonic() - started < 10


def test_retry_after_is_honoured_by_all_requests():
    with serve(**{"429": first(1)}) as server:
        started = time.monotonic()
        results = ask(server.url, requests=[HELLO, OTHER])
        assert time.monotonic() - started >= 0.2
    assert [result.error for result in results] == [None, None]


def test_a_long_retry_after_is_cut(monkeypatch):
    monkeypatch.setattr(fault_server, "RETRY_AFTER", 30.0)
    with serve(**{"429": first(2)}) as server:
        started = time.monotonic()
        ask(server.url, longest_retry_after=0.05)
        assert time.monotonic() - started < 20  # it was told to wait for a minute


@pytest.mark.parametrize(
    ("fault", "code"), [("html", "bad_response"), ("503", "http_503"), ("429", "http_429")]
)
def test_faults_that_stay_are_errors_of_their_request(fault, code):
    with serve(**{fault: always}) as server:
        (result,) = ask(server.url, tries=2)
    assert result.error == code and result.attempts == 2 and not result.permanent


def test_a_refused_request_is_not_sent_again():
    with serve(**{"400": always}) as server:
        (result,) = ask(server.url)
        assert server.counts.calls == 1
    assert result.error == "refused" and result.permanent
    assert "maximum context length is 4096 tokens" in result.detail


def test_500_for_one_request_among_good_ones_is_its_own_fault():
    with serve(**{"500": says("poisoned")}) as server:
        results = ask(server.url, requests=[OTHER] + [HELLO] * 20, start_concurrency=1)
        assert server.given["500"] == 3
    assert results[0].error == "server_error" and results[0].permanent
    assert all(result.error is None for result in results[1:])


def test_500_for_every_request_is_the_fault_of_none():
    """Else a server that stumbles for a minute would mark what it was asked as wrong for good."""
    with serve(**{"500": always}) as server:
        results = ask(server.url, requests=[HELLO] * 4)
    assert all(result.error == "http_500" and not result.permanent for result in results)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("401", r"refuses the key \(status 401: .*\); set the right API key in MY_KEY$"),
        ("404", r"has no such model or path \(status 404: model not found\); check the address"),
    ],
)
def test_no_request_can_be_answered(fault, said):
    with serve(**{fault: always}) as server, pytest.raises(EndpointError, match=said) as caught:
        ask(server.url, key_variable="MY_KEY")
    assert caught.value.status == 3 and str(caught.value).startswith(server.url)
    assert server.given[fault] == 1


def test_a_server_that_is_down_stops_the_run_after_a_while():
    with serve() as server:
        url = server.url
    with pytest.raises(EndpointError, match="has not answered for"):
        ask(url, requests=[HELLO] * 8, max_outage_seconds=0.3, breaker_failures=3)


def test_an_outage_costs_no_request():
    """While no request is answered, tries are not counted: all requests wait for the server."""
    with serve(reset=first(12)) as server:
        results = ask(
            server.url, requests=[HELLO] * 8, breaker_failures=3, max_outage_seconds=20.0, tries=8
        )
        assert [result.error for result in results] == [None] * 8
    assert server.given["reset"] == 12


def test_questions_about_an_image_share_a_server_and_move_when_it_is_down():
    with serve() as one, serve() as two:
        for sha256 in ("00000000ab", "00000002cd"):
            ask(one.url, two.url, requests=[with_image(sha256)])
        ask(one.url, two.url, requests=[with_image("00000001ab")])
        assert (one.counts.calls, two.counts.calls) == (2, 1)
    with serve(reset=always) as broken, serve() as good:
        requests = [with_image("00")] * 4
        patience = {"breaker_failures": 2, "breaker_pause": 9}
        results = ask(broken.url, good.url, requests=requests, **patience)
        assert [result.error for result in results] == [None] * 4
        assert good.counts.calls == 4


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "http://"])
def test_addresses_are_checked(url):
    with pytest.raises(InputError, match="is no server address; one looks like http://HOST:8000"):
        ChatClient([url], IMPATIENT)


def models(url: str, tries: int = 1) -> list[dict]:
    async def run():
        client = ChatClient([url], IMPATIENT)
        try:
            return await client.models(tries)
        finally:
            await client.close()

    return asyncio.run(run())


def test_the_models_of_a_server():
    with serve() as server:
        assert [model["id"] for model in models(server.url)] == ["loopback"]
        with pytest.raises(NoAnswer, match="status 404"):
            models(server.url + "/elsewhere")
    with pytest.raises(NoAnswer, match="Cannot connect"):
        models(server.url, tries=3)


def test_a_server_is_asked_in_the_way_that_it_wants():
    """Each refusal that names a field changes it for all further requests."""
    sampled = dataclasses.replace(HELLO, temperature=0.7, top_logprobs=20)
    with PickyServer({}, ["dog"], refuses=o_series) as server:
        results = ask(server.url, requests=[sampled, HELLO, OTHER])
    assert [result.error for result in results] == [None] * 3
    names = {"temperature", "top_p", "seed", "max_tokens"}
    assert not any(names & body.keys() for body in server.bodies)
    assert server.bodies[-1]["max_completion_tokens"] == 64
    assert {body.get("top_logprobs") for body in server.bodies} == {5, None}
    assert server.counts.calls <= 3 * 6


def test_a_refusal_that_no_change_helps_is_one():
    with PickyServer({}, ["dog"], refuses=lambda body: "Unsupported: max_tokens, max_completion_"
                     "tokens, temperature") as server:  # fmt: skip
        (result,) = ask(server.url)
    assert result.error == "refused" and server.counts.calls <= 5


def test_a_content_filter_has_its_name():
    said = "The response was filtered due to the prompt triggering the content management policy"
    with PickyServer({}, ["dog"], refuses=lambda body: said) as server:
        (result,) = ask(server.url)
    assert (result.error, result.permanent) == ("content_filter", True)


def test_milliseconds_to_wait():
    wait = chat_client._retry_after
    assert wait({"retry-after-ms": "250", "Retry-After": "7"}) == 0.25
    assert wait({"Retry-After": "7"}) == 7 and wait({}) == wait({"Retry-After": "soon"}) == 0
