"""The answers of a run, soon on disk, found by the hash of their request: nothing is asked twice.

SQLite in WAL mode: a killed process loses what it had not committed, at most 256 answers or, as
the runner flushes four times a second, less than a second of them, and nothing else. Answers and
permanent errors are kept; transient errors are not. The file is for one process on a local disk
(WAL does not work over network file systems).
"""

import asyncio
import json
import sqlite3
import time
from pathlib import Path

from data_gen.engines.probe import Engine
from data_gen.settings import CACHE_MODES
from negclip_jax.common.chat.messages import NO_ANSWER, ChatRequest, ChatResult
from negclip_jax.common.errors import InputError

_COMMIT_ROWS = 256
_ERRORS_AT_LEAST = 20  # before a share of errors means anything

_TABLE = """
CREATE TABLE IF NOT EXISTS answers (
  key TEXT PRIMARY KEY, stage TEXT, model TEXT, text TEXT, finish_reason TEXT,
  prompt_tokens INTEGER, completion_tokens INTEGER, cached_tokens INTEGER, top TEXT,
  error TEXT, detail TEXT, latency_ms REAL, attempts INTEGER, host TEXT, time REAL
) WITHOUT ROWID
"""
# Those of a ChatResult, in the order of the table, behind key, stage and model.
_FIELDS = ("text", "finish_reason", "prompt_tokens", "completion_tokens", "cached_tokens")
_FIELDS += ("top", "error", "detail", "latency_ms", "attempts", "host")


class Cache:
    """Answers by key. `mode`: "write" reads and adds, "read" only reads, "off" does neither."""

    def __init__(self, path: Path, mode: str = "write"):
        """Raises InputError for another mode and a file that is no cache or cannot be opened."""
        if mode not in CACHE_MODES:
            raise InputError(f"cache is {mode!r}; choose one of: {', '.join(CACHE_MODES)}")
        self._mode, self._path, self._pending = mode, path, dict[str, tuple]()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(_TABLE)
        except sqlite3.OperationalError as error:  # the disk, or the right to write there
            raise InputError(f"{path} cannot be written ({error}); is the disk full?", 5) from None
        except sqlite3.Error as error:
            raise InputError(
                f"{path} cannot be used as a cache ({error}); remove it, at the price of asking "
                "again, or give another --out"
            ) from None

    def get(self, request: ChatRequest) -> ChatResult | None:
        """The answer to an equal request, if there was one."""
        if self._mode == "off":
            return None
        if row := self._pending.get(request.key):
            found = row[3:-1]
        else:
            wanted = f"SELECT {', '.join(_FIELDS)} FROM answers WHERE key = ?"
            found = self._db.execute(wanted, (request.key,)).fetchone()
        if found is None:
            return None
        values = dict(zip(_FIELDS, found, strict=True))
        if values["top"] is not None:
            top = json.loads(values["top"])
            if isinstance(top, dict):
                values["values"] = {
                    n: [tuple(pair) for pair in v] for n, v in top["values"].items()
                }
                top = top["top"]
            values["top"] = top and [tuple(pair) for pair in top]
        return ChatResult(**values, permanent=values["error"] is not None)

    def put(self, request: ChatRequest, result: ChatResult) -> None:
        """Keeps an answer or a permanent error; others are forgotten.

        Of the request its key, stage and model are looked at.
        """
        if self._mode != "write" or (result.error and not result.permanent):
            return
        values = {name: getattr(result, name) for name in _FIELDS}
        top = result.top if not result.values else {"top": result.top, "values": result.values}
        values["top"] = None if top is None else json.dumps(top)
        about = (request.key, request.stage, request.model)
        self._pending[request.key] = (*about, *values.values(), time.time())
        if len(self._pending) >= _COMMIT_ROWS:
            self.flush()

    def flush(self) -> None:
        """Commits. Raises InputError where the disk does not take it; nothing committed is lost."""
        if not self._pending:
            return
        rows = list(self._pending.values())
        marks = ", ".join("?" * len(rows[0]))
        try:
            self._db.execute("BEGIN")
            self._db.executemany(f"INSERT OR REPLACE INTO answers VALUES ({marks})", rows)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise InputError(
                f"{self._path} does not take more answers ({error}); free some space and run the "
                "same command again: everything committed so far is kept",
                status=5,
            ) from None
        self._pending.clear()

    def forget(
        self, *, errors: str | None = None, stage: str | None = None, since: float = 0.0
    ) -> int:
        """Deletes the errors of one code, or the answers of one stage; returns how many.

        `since`: only those that came after this moment, in seconds of time.time.
        """
        self.flush()
        column, value = ("error", errors) if errors else ("stage", stage)
        where = f"DELETE FROM answers WHERE {column} = ? AND time >= ?"
        return self._db.execute(where, (value, since)).rowcount

    def text(self, key: str) -> str:
        """The text of an answer, "" where it is not known."""
        self.flush()
        found = self._db.execute("SELECT text FROM answers WHERE key = ?", (key,)).fetchone()
        return (found and found[0]) or ""

    def close(self) -> None:
        """Commits and closes."""
        try:
            self.flush()
        finally:
            self._db.close()


class ErrorShare:
    """Counts answers and errors of a run. Raises InputError (exit 4) above a share of errors."""

    def __init__(self, most: float):
        self._most, self.answers, self.errors = most, 0, 0
        self.last = ""

    def count(self, result: ChatResult) -> None:
        self.answers += 1
        if result.error is None or result.error in NO_ANSWER:  # the server does work
            return
        self.errors += 1
        self.last = f"{result.error}: {result.detail}"
        if self.errors >= _ERRORS_AT_LEAST and self.errors > self._most * self.answers:
            raise InputError(
                f"{self.errors} of {self.answers} requests failed, more than {self._most:.0%} "
                f"(max_errors); the last one with {self.last}. Repair the cause and continue",
                status=4,
            )


class CachedEngine:
    """Answers from the cache, else from the engine; equal requests in flight are one."""

    def __init__(self, engine: Engine, cache: Cache, errors: ErrorShare):
        self._engine, self._cache, self._errors = engine, cache, errors
        self._in_flight: dict[str, asyncio.Future[ChatResult]] = {}
        self.calls = self.hits = 0

    async def generate(self, request: ChatRequest) -> ChatResult:
        known = self._cache.get(request)
        if known is not None:
            self.hits += 1
            return known
        same = self._in_flight.get(request.key)
        if same is not None:
            return await asyncio.shield(same)
        answer = asyncio.ensure_future(self._ask(request))
        self._in_flight[request.key] = answer
        answer.add_done_callback(lambda _: self._in_flight.pop(request.key, None))
        # Where no image waits any more, asyncio would print what was raised.
        answer.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(answer)

    async def _ask(self, request: ChatRequest) -> ChatResult:
        result = await self._engine.generate(request)
        self.calls += 1
        self._cache.put(request, result)
        self._errors.count(result)
        return result

    async def close(self) -> None:
        """Cancels requests that no image waits for any more, then closes the engine."""
        left = list(self._in_flight.values())
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._engine.close()


def read_statistics(path: Path) -> dict[str, dict]:
    """Per stage: answers, errors, tokens, attempts and latencies, from a cache that may be in use.

    Latencies are milliseconds of the calls that got an answer: p50 and p95.
    """
    if not path.is_file():
        return {}
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    totals = ("prompt_tokens", "completion_tokens", "cached_tokens", "attempts")
    sums, summary = ", ".join(f"SUM({name})" for name in totals), dict[str, dict]()
    try:
        found = f"SELECT stage, COUNT(*), {sums} FROM answers GROUP BY stage ORDER BY stage"
        for stage, calls, *numbers in database.execute(found).fetchall():
            of_stage = "FROM answers WHERE stage = ?"
            errors = f"SELECT error, COUNT(*) {of_stage} AND error > '' GROUP BY error"
            summary[stage] = {"calls": calls, "errors": dict(database.execute(errors, (stage,)))}
            summary[stage] |= dict(zip(totals, numbers, strict=True))
            nth = f"SELECT latency_ms {of_stage} ORDER BY latency_ms LIMIT 1 OFFSET ?"
            for share in (50, 95):
                place = min(calls * share // 100, calls - 1)
                (latency,) = database.execute(nth, (stage, place)).fetchone()
                summary[stage][f"latency_ms_p{share}"] = round(latency, 1)
        return summary
    except sqlite3.Error as error:
        raise InputError(f"{path} cannot be read ({error})") from None
    finally:
        database.close()
