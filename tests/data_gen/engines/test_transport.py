"""Requests under every fault that servers are known for."""

import asyncio
import dataclasses
import time

import pytest
from fault_server import IMPATIENT, FaultServer, always, first, says

from data_gen.engines import transport
from data_gen.engines.base import EndpointError
from data_gen.engines.transport import Reply, Transport
from negclip_jax.common.errors import InputError

BODY = b'{"messages": [{"role": "user", "content": "Say hello."}]}'
OTHER = BODY.replace(b"hello.", b"hello, poisoned.")


def serve(**faults) -> FaultServer:
    return FaultServer({}, ["dog"], faults={k.replace("_", " "): v for k, v in faults.items()})


def post(*urls: str, bodies=(BODY,), key=None, affinity=None, **patience) -> list[Reply]:
    async def run():
        settings = dataclasses.replace(IMPATIENT, **patience)
        servers = Transport(list(urls), key, settings)
        try:
            asked = (servers.post("/chat/completions", lambda b=b: b, affinity) for b in bodies)
            return await asyncio.gather(*asked)
        finally:
            await servers.close()

    return asyncio.run(run())


def test_an_answer_and_the_key():
    with serve() as server:
        (reply,) = post(server.url, key="secret")
    assert reply.body["choices"][0]["message"]["content"] == "Hello there"
    assert (reply.error, reply.attempts, reply.host) == (None, 1, server.url)
    assert server.keys == ["Bearer secret"]


@pytest.mark.parametrize(
    "fault", ["500", "503", "reset", "truncated", "html", "empty", "hang", "429", "deep"]
)
def test_transient_faults_are_tried_again(fault):
    with serve(**{fault: first(2)}) as server:
        (reply,) = post(server.url)
        assert reply.error is None
        assert reply.attempts == 3 and server.counts.calls == 3


def test_an_endless_answer_is_not_read_to_its_end(monkeypatch):
    monkeypatch.setattr(transport, "_LONGEST_ANSWER", 10**6)
    with serve(endless=first(1)) as server:
        started = time.monotonic()
        (reply,) = post(server.url, timeout=20.0)
        assert reply.error is None and reply.attempts == 2
        assert time.monotonic() - started < 10


def test_retry_after_is_honoured_by_all_requests():
    with serve(**{"429": first(1)}) as server:
        started = time.monotonic()
        replies = post(server.url, bodies=[BODY, OTHER])
        assert time.monotonic() - started >= 0.2
    assert [reply.error for reply in replies] == [None, None]


@pytest.mark.parametrize(
    ("fault", "code"), [("html", "bad_response"), ("503", "http_503"), ("429", "http_429")]
)
def test_faults_that_stay_are_errors_of_their_request(fault, code):
    with serve(**{fault: always}) as server:
        (reply,) = post(server.url, tries=2)
    assert reply.error == code and reply.attempts == 2 and not reply.permanent


def test_a_refused_request_is_not_sent_again():
    with serve(**{"400": always}) as server:
        (reply,) = post(server.url)
        assert server.counts.calls == 1
    assert reply.error == "refused" and reply.permanent
    assert "maximum context length is 4096 tokens" in reply.detail


def test_500_for_one_request_among_good_ones_is_its_own_fault():
    with serve(**{"500": says("poisoned")}) as server:
        replies = post(server.url, bodies=[OTHER] + [BODY] * 20, start_concurrency=1)
        assert server.given["500"] == 3
    assert replies[0].error == "server_error" and replies[0].permanent
    assert all(reply.error is None for reply in replies[1:])


def test_500_for_everybody_is_no_requests_own_fault():
    """Else a server that stumbles for a minute would mark what it was asked as wrong for good."""
    with serve(**{"500": always}) as server:
        replies = post(server.url, bodies=[BODY] * 4)
    assert all(reply.error == "http_500" and not reply.permanent for reply in replies)


@pytest.mark.parametrize(("fault", "said"), [("401", "refuses the key"), ("404", "no such model")])
def test_nobody_can_be_answered(fault, said):
    with serve(**{fault: always}) as server, pytest.raises(EndpointError, match=said) as caught:
        post(server.url)
    assert caught.value.status == 3


def test_a_server_that_is_down_stops_the_run_after_a_while():
    with serve() as server:
        url = server.url
    with pytest.raises(EndpointError, match="has not answered for"):
        post(url, bodies=[BODY] * 8, max_outage_seconds=0.3, breaker_failures=3)


def test_an_outage_costs_no_request():
    """While nobody is answered, tries are not counted: all requests wait for the server."""
    with serve(reset=first(12)) as server:
        replies = post(
            server.url, bodies=[BODY] * 8, breaker_failures=3, max_outage_seconds=20.0, tries=8
        )
        assert [reply.error for reply in replies] == [None] * 8
    assert server.given["reset"] == 12


def test_affine_requests_share_a_server_and_move_when_it_is_down():
    with serve() as one, serve() as two:
        for affinity in ("00000000ab", "00000002cd"):
            post(one.url, two.url, affinity=affinity)
        post(one.url, two.url, affinity="00000001ab")
        assert (one.counts.calls, two.counts.calls) == (2, 1)
    with serve(reset=always) as broken, serve() as good:
        bodies = [BODY] * 4
        replies = post(
            broken.url, good.url, bodies=bodies, affinity="00", breaker_failures=2, breaker_pause=9
        )
        assert [reply.error for reply in replies] == [None] * 4
        assert good.counts.calls == 4


def test_addresses_are_checked():
    with pytest.raises(InputError, match="looks like http://HOST:8000/v1"):
        Transport(["localhost:8000"], None, IMPATIENT)
