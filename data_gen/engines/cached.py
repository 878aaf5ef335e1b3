"""An engine that asks nothing twice, and stops the run when too much goes wrong."""

import asyncio

from data_gen.cache import Cache
from data_gen.engines.base import ChatRequest, ChatResult, Engine
from negclip_jax.common.errors import InputError

_ERRORS_AT_LEAST = 20  # before a share of errors means anything


class ErrorShare:
    """Counts answers and errors of a run. Raises InputError (exit 4) above a share of errors."""

    def __init__(self, most: float):
        self._most, self.answers, self.errors = most, 0, 0
        self.last = ""

    def count(self, result: ChatResult) -> None:
        self.answers += 1
        if result.error is None:
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
        return await asyncio.shield(answer)

    async def _ask(self, request: ChatRequest) -> ChatResult:
        result = await self._engine.generate(request)
        self.calls += 1
        self._cache.put(request, result)
        self._errors.count(result)
        return result

    async def close(self) -> None:
        """Ends what nobody waits for any more, then the engine."""
        left = list(self._in_flight.values())
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._engine.close()
