"""Concurrency by feedback, the breaker, and back-off."""

import asyncio
import time

from negclip_jax.common.chat.client import AdaptiveLimit, Breaker, Pace, full_jitter


def answers(limit: AdaptiveLimit, latency, windows: int) -> None:
    """Windows of answers whose latency is a function of the limit."""
    for _ in range(windows):
        for _ in range(max(16, limit.limit)):
            limit.answered(latency(limit.limit))


def test_the_limit_grows_to_the_cap_while_latency_stays():
    limit = AdaptiveLimit(8, 256)
    answers(limit, lambda n: 0.1, 8)
    assert limit.limit == 256


def test_the_limit_settles_where_latency_grows_with_it():
    limit = AdaptiveLimit(8, 256)
    answers(limit, lambda n: max(0.1, n / 320), 4)  # the server serves 32 at once
    assert 16 <= limit.limit <= 64


def test_congestion_halves_once_for_all_requests_of_that_moment():
    limit = AdaptiveLimit(64, 256)
    for _ in range(10):
        limit.congested(started=1.0)
    assert limit.limit == 32


def test_no_more_in_flight_than_the_limit():
    async def run():
        limit, peak = AdaptiveLimit(3, 3), 0

        async def work():
            nonlocal peak
            await limit.acquire()
            peak = max(peak, limit.in_flight)
            await asyncio.sleep(0)
            limit.release()

        await asyncio.gather(*(work() for _ in range(20)))
        return peak, limit.in_flight

    assert asyncio.run(run()) == (3, 0)


def test_a_cancelled_waiter_keeps_no_place():
    async def run():
        limit = AdaptiveLimit(1, 1)
        await limit.acquire()
        waiting = asyncio.ensure_future(limit.acquire())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        limit.release()
        await asyncio.wait_for(limit.acquire(), 1)

    asyncio.run(run())


def test_requests_a_minute():
    async def run(per_minute):
        pace, started = Pace(per_minute), time.monotonic()
        await asyncio.gather(*(pace.turn() for _ in range(6)))
        return time.monotonic() - started

    assert asyncio.run(run(6000)) >= 0.05  # five gaps of 10 ms
    assert asyncio.run(run(0)) < 1  # no limit, not one a minute


def test_the_breaker_lets_one_request_try_after_the_pause():
    breaker = Breaker(failures=2, pause=10)
    assert breaker.admits(0)
    breaker.failure()
    breaker.failure()
    later = breaker.open_until + 1
    assert not breaker.admits(breaker.open_until - 1)
    assert breaker.admits(later) and not breaker.admits(later)
    breaker.failure()
    assert breaker.open_until - later > 5  # the second pause is twice as long
    assert breaker.admits(breaker.open_until + 1)
    breaker.success()
    assert breaker.admits(0) and not breaker.is_open


def test_full_jitter_stays_below_its_doubling_bound():
    for attempt in range(1, 12):
        draws = [full_jitter(attempt, 0.5, 30) for _ in range(200)]
        assert min(draws) >= 0 and max(draws) <= min(30, 0.5 * 2 ** (attempt - 1))
        assert max(draws) > 0.8 * min(30, 0.5 * 2 ** (attempt - 1))
