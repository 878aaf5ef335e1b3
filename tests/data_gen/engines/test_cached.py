"""Nothing is asked twice, and too many errors stop a run."""

import asyncio

import pytest

from data_gen.cache import Cache
from data_gen.engines.base import ChatRequest, ChatResult
from data_gen.engines.cached import CachedEngine, ErrorShare
from data_gen.engines.scripted import ScriptedEngine
from negclip_jax.common.errors import InputError


def request(text: str, **changes) -> ChatRequest:
    return ChatRequest("propose", "m", (("user", text),), **changes)


def ask(engine, *requests) -> list[ChatResult]:
    async def run():
        return await asyncio.gather(*(engine.generate(r) for r in requests))

    return asyncio.run(run())


def test_equal_requests_are_one_call_now_and_later(tmp_path):
    scripted = ScriptedEngine(lambda r: r.messages[0][1].upper())
    cache = Cache(tmp_path / "c.sqlite")
    engine = CachedEngine(scripted, cache, ErrorShare(1.0))
    answers = ask(engine, request("a"), request("a"), request("b"))
    assert [a.text for a in answers] == ["A", "A", "B"] and len(scripted.requests) == 2
    cache.close()
    again = CachedEngine(scripted, Cache(tmp_path / "c.sqlite"), ErrorShare(1.0))
    assert [a.text for a in ask(again, request("b"), request("a"))] == ["B", "A"]
    assert len(scripted.requests) == 2 and (again.hits, again.calls) == (2, 0)


def test_permanent_errors_are_kept_and_transient_ones_are_not(tmp_path):
    def answer(r):
        bad = r.messages[0][1] == "bad"
        return ChatResult(error="refused" if bad else "timeout", permanent=bad)

    scripted = ScriptedEngine(answer)
    engine = CachedEngine(scripted, Cache(tmp_path / "c.sqlite"), ErrorShare(1.0))
    for _ in range(2):
        ask(engine, request("bad"))
        ask(engine, request("slow"))
    assert [r.messages[0][1] for r in scripted.requests] == ["bad", "slow", "slow"]


def test_too_many_errors_stop_the_run(tmp_path):
    scripted = ScriptedEngine(lambda r: ChatResult(error="timeout", detail="no answer in 5 s"))
    engine = CachedEngine(scripted, Cache(tmp_path / "c.sqlite"), ErrorShare(0.05))
    with pytest.raises(InputError, match=r"20 of 20 requests failed.*no answer in 5 s") as caught:
        for i in range(30):
            ask(engine, request(str(i)))
    assert caught.value.status == 4


def test_a_few_errors_do_not(tmp_path):
    errors = ErrorShare(0.05)
    for i in range(1000):
        errors.count(ChatResult(error="timeout" if i % 25 == 0 else None))
    assert errors.errors == 40
