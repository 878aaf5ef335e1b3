"""Answers on disk: found again, committed in time, refused by a full disk with a sentence."""

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap

import pytest

from data_gen.cache import Cache, read_statistics
from data_gen.engines.base import ChatRequest, ChatResult
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
        from data_gen.cache import Cache
        from data_gen.engines.base import ChatRequest, ChatResult
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
