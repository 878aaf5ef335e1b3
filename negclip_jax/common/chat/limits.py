"""How many requests a server gets at once and a minute, and when it is left alone."""

import asyncio
import collections
import random
import time

_WINDOW = 16  # answers, at least, between two looks at the latency


class AdaptiveLimit:
    """Requests in flight to one server, found by trying.

    The limit doubles while that raises the throughput (answers per second, from the median
    latency) by a tenth at least, and otherwise goes back to where it was. A 429, a 503 or a
    timeout halves it, once for all requests that were in flight then.
    """

    def __init__(self, start: int, cap: int):
        self.limit = min(start, cap)
        self._cap = cap
        self.in_flight = 0
        self._waiting: collections.deque[asyncio.Future] = collections.deque()
        self._latencies: list[float] = []
        self._best, self._best_limit = 0.0, self.limit  # the best throughput so far, and where
        self._settled = False  # one more doubling did not help
        self._last_cut = 0.0

    async def acquire(self) -> None:
        """Waits until one more request may be in flight; first come, first served."""
        if self.in_flight < self.limit and not self._waiting:
            self.in_flight += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was ours already
                self.release()
            raise

    def release(self) -> None:
        """Gives the place of a finished request to the next."""
        self.in_flight -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self.in_flight < self.limit:
            turn = self._waiting.popleft()
            if not turn.cancelled():
                self.in_flight += 1
                turn.set_result(None)

    def answered(self, latency: float) -> None:
        """Notes an answer after `latency` seconds."""
        self._latencies.append(latency)
        if len(self._latencies) >= max(_WINDOW, self.limit):
            self._look()

    def congested(self, started: float) -> None:
        """Notes a refusal of a request that was sent at `started` (time.monotonic)."""
        if started > self._last_cut:
            self._last_cut = time.monotonic()
            self.limit = max(1, self.limit // 2)
            self._latencies.clear()
            self._best, self._settled = 0.0, True

    def _look(self) -> None:
        latency = sorted(self._latencies)[len(self._latencies) // 2]
        self._latencies.clear()
        throughput = self.limit / max(latency, 1e-6)
        if self._settled:
            # The server may have more room than at the last look: feel for it, slowly.
            self.limit = min(self._cap, self.limit + max(1, self.limit // 16))
        elif throughput > 1.1 * self._best:
            self._best, self._best_limit = throughput, self.limit
            self.limit = min(self._cap, 2 * self.limit)
        else:
            self.limit, self._settled = self._best_limit, True
        self._admit()


class Breaker:
    """Leaves a server alone after failures in a row, then lets a single request try again."""

    def __init__(self, failures: int, pause: float, longest_pause: float = 60.0):
        """Opens after `failures` in a row for `pause` seconds, doubling up to `longest_pause`."""
        self._threshold, self._first_pause, self._longest = failures, pause, longest_pause
        self._failures, self._pause = 0, pause
        self.open_until = 0.0
        self._trying = False
        self.last_success = time.monotonic()

    @property
    def is_open(self) -> bool:
        """Whether requests must not be sent, or not more than one."""
        return self._failures >= self._threshold

    def admits(self, now: float) -> bool:
        """Whether a request may be sent now; while open, a single one after each pause."""
        if not self.is_open:
            return True
        if self._trying or now < self.open_until:
            return False
        self._trying = True
        return True

    def alive(self) -> None:
        """The server answered, though not as one would wish."""
        self._failures, self._pause, self._trying = 0, self._first_pause, False

    def success(self) -> None:
        """The server answered a request."""
        self.alive()
        self.last_success = time.monotonic()

    def failure(self) -> None:
        """The server did not answer at all, or only its proxy did."""
        self._failures += 1
        if self.is_open and (self._trying or self._failures == self._threshold):
            self.open_until = time.monotonic() + self._pause
            self._pause = min(self._longest, 2 * self._pause)
        self._trying = False


class Pace:
    """Spaces requests out where a provider allows only so many a minute."""

    def __init__(self, per_minute: float):
        """`per_minute`: requests; 0 for no limit."""
        self._gap = 60 / per_minute if per_minute else 0.0
        self._next = 0.0

    async def turn(self) -> None:
        """Waits for the next free moment."""
        if self._gap:
            now = time.monotonic()
            moment = max(now, self._next)
            self._next = moment + self._gap
            await asyncio.sleep(moment - now)


_jitter = random.Random(0)


def full_jitter(attempt: int, base: float = 0.5, longest: float = 30.0) -> float:
    """Seconds to wait after failure number `attempt`, from 1: even in 0..base * 2^(attempt - 1).

    After M. Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015).
    """
    return _jitter.uniform(0, min(longest, base * 2 ** (attempt - 1)))
