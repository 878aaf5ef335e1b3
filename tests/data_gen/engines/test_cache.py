"""Answers on disk: found again, nothing asked twice; a full disk or too many errors end the run."""

import asyncio
import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time

import pytest
from scripted_engine import ScriptedEngine

from data_gen.engines.cache import Cache, CachedEngine, ErrorShare, read_statistics
from negclip_jax.common.chat.messages import ChatRequest, ChatResult
from negclip_jax.common.errors import InputError


def request(i: int, stage: str = "verify") -> ChatRequest:
    return ChatRequest(stage, "m", (("user", str(i)),))


RESULT = ChatResult(
    "No",
    "stop",
    prompt_tokens=10,
    completion_tokens=1,
    cached_tokens=4,
    top=[("No", -0.1), ("Yes", -2.5)],
    latency_ms=12.5,
    attempts=2,
    host="http://h/v1",
)


@pytest.mark.parametrize("flush", [False, True])
def test_everything_of_an_answer_comes_back(tmp_path, flush):
    cache = Cache(tmp_path / "c.sqlite")
    cache.put(request(1), RESULT)
    if flush:
        cache.flush()
    assert cache.get(request(1)) == RESULT
    assert cache.get(request(2)) is None
    each = dataclasses.replace(RESULT, top=None, values={"1": [("no", -0.2)], "2": [("yes", 0.0)]})
    cache.put(request(3), each)
    if flush:
        cache.flush()
    assert cache.get(request(3)) == each


def test_modes(tmp_path):
    Cache(tmp_path / "c.sqlite").close()
    writing = Cache(tmp_path / "c.sqlite")
    writing.put(request(1), RESULT)
    writing.close()
    reading = Cache(tmp_path / "c.sqlite", "read")
    reading.put(request(2), RESULT)
    assert reading.get(request(1)) == RESULT and reading.get(request(2)) is None
    assert Cache(tmp_path / "c.sqlite", "off").get(request(1)) is None
    with pytest.raises(InputError, match="choose one of: write, read, off"):
        Cache(tmp_path / "c.sqlite", "on")


def test_forgetting_by_error_and_by_stage(tmp_path):
    cache = Cache(tmp_path / "c.sqlite")
    for i in range(3):
        cache.put(request(i), RESULT)
    cache.put(request(3), ChatResult(error="server_error", permanent=True))
    assert cache.forget(errors="server_error") == 1 and cache.get(request(3)) is None
    assert cache.forget(stage="verify") == 3


def test_a_killed_process_loses_nothing_that_was_committed(tmp_path):
    program = f"""
        import os, signal, sys
        from data_gen.engines.cache import Cache
        from negclip_jax.common.chat.messages import ChatRequest, ChatResult
        cache = Cache(__import__("pathlib").Path({str(tmp_path / "c.sqlite")!r}))
        for i in range(300):  # 256 are committed by number, the rest is not
            cache.put(ChatRequest("verify", "m", (("user", str(i)),)), ChatResult("No"))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False)
    assert done.returncode == -signal.SIGKILL
    cache = Cache(tmp_path / "c.sqlite")
    assert [cache.get(request(i)) is not None for i in (0, 255, 256)] == [True, True, False]


def test_what_is_no_cache_is_refused(tmp_path):
    path = tmp_path / "c.sqlite"
    path.write_text("this is not a database, but long enough to look at" * 40)
    with pytest.raises(InputError, match="cannot be used as a cache"):
        Cache(path)


def test_a_full_disk_is_a_sentence_and_keeps_what_there_was(tmp_path):
    path = tmp_path / "c.sqlite"
    cache = Cache(path)
    cache.put(request(0), RESULT)
    cache.flush()
    cache._db.execute("PRAGMA max_page_count=5")  # SQLite's own way to say: the disk is full
    with pytest.raises(InputError, match="does not take more answers") as caught:
        for i in range(1, 400):
            cache.put(request(i), RESULT)
    assert caught.value.status == 5
    assert sqlite3.connect(path).execute("SELECT count(*) FROM answers").fetchone() == (1,)
    assert os.path.getsize(path) > 0


def test_statistics_of_a_cache_in_use(tmp_path):
    cache = Cache(tmp_path / "c.sqlite")
    for i in range(3):
        cache.put(request(i), RESULT)
    cache.put(request(9, "propose"), ChatResult(error="refused", permanent=True))
    cache.flush()
    found = read_statistics(tmp_path / "c.sqlite")
    assert found["verify"]["calls"] == 3 and found["verify"]["prompt_tokens"] == 30
    assert found["verify"]["latency_ms_p95"] == 12.5 and found["verify"]["attempts"] == 6
    assert found["propose"]["errors"] == {"refused": 1}
    assert read_statistics(tmp_path / "none.sqlite") == {}


def question(text: str) -> ChatRequest:
    return ChatRequest("propose", "m", (("user", text),))


def ask(engine, *requests) -> list[ChatResult]:
    async def run():
        return await asyncio.gather(*(engine.generate(r) for r in requests))

    return asyncio.run(run())


def test_equal_requests_are_one_call_now_and_later(tmp_path):
    scripted = ScriptedEngine(lambda r: r.messages[0][1].upper())
    cache = Cache(tmp_path / "c.sqlite")
    engine = CachedEngine(scripted, cache, ErrorShare(1.0))
    answers = ask(engine, question("a"), question("a"), question("b"))
    assert [a.text for a in answers] == ["A", "A", "B"] and len(scripted.requests) == 2
    cache.close()
    again = CachedEngine(scripted, Cache(tmp_path / "c.sqlite"), ErrorShare(1.0))
    assert [a.text for a in ask(again, question("b"), question("a"))] == ["B", "A"]
    assert len(scripted.requests) == 2 and (again.hits, again.calls) == (2, 0)


def test_permanent_errors_are_kept_and_transient_ones_are_not(tmp_path):
    def answer(r):
        bad = r.messages[0][1] == "bad"
        return ChatResult(error="refused" if bad else "timeout", permanent=bad)

    scripted = ScriptedEngine(answer)
    engine = CachedEngine(scripted, Cache(tmp_path / "c.sqlite"), ErrorShare(1.0))
    for _ in range(2):
        ask(engine, question("bad"))
        ask(engine, question("slow"))
    assert [r.messages[0][1] for r in scripted.requests] == ["bad", "slow", "slow"]


def test_too_many_errors_stop_the_run(tmp_path):
    scripted = ScriptedEngine(lambda r: ChatResult(error="timeout", detail="no answer in 5 s"))
    engine = CachedEngine(scripted, Cache(tmp_path / "c.sqlite"), ErrorShare(0.05))
    with pytest.raises(InputError, match=r"20 of 20 requests failed.*no answer in 5 s") as caught:
        for i in range(30):
            ask(engine, question(str(i)))
    assert caught.value.status == 4


def test_a_few_errors_do_not(tmp_path):
    errors = ErrorShare(0.05)
    for i in range(1000):
        errors.count(ChatResult(error="timeout" if i % 25 == 0 else None))
    assert errors.errors == 40


def test_answers_that_are_none_are_no_failures_and_thoughts_are_asked_again(tmp_path):
    cache, errors = Cache(tmp_path / "c.sqlite"), ErrorShare(0.05)
    codes = {"thinking": False, "refusal": True, "content_filter": True}
    for code, permanent in codes.items():
        result = ChatResult(error=code, permanent=permanent)
        for _ in range(30):
            errors.count(result)
        cache.put(request(code), result)
        assert (cache.get(request(code)) is not None) == permanent
    assert errors.errors == 0


def test_answers_of_a_session_are_forgotten(tmp_path):
    cache = Cache(tmp_path / "c.sqlite")
    cache.put(request("before"), ChatResult("a"))
    cache.flush()
    moment = time.time()
    cache.put(request("after"), ChatResult("b"))
    assert cache.text(request("after").key) == "b" and cache.text("none") == ""
    assert cache.forget(stage=request("after").stage, since=moment) == 1
    assert cache.get(request("before")).text == "a" and cache.get(request("after")) is None
