"""How far long work is and how long it takes still, as lines on stderr."""

import sys
import time
from collections.abc import Collection, Iterator
from typing import TypeVar

from negclip_jax.common.errors import say

FIRST_SECONDS, EVERY_SECONDS = 5.0, 10.0
T = TypeVar("T")


def told(items: Collection[T], what: str) -> Iterator[T]:
    """The items; after five seconds, and then each ten, "WHAT: 1,000 of 4,000, ETA 0:36"."""
    started = time.monotonic()
    due = started + FIRST_SECONDS
    for number, item in enumerate(items):
        now = time.monotonic()
        if number and now >= due:
            due = now + EVERY_SECONDS
            say(f"{what}: {estimate(number, len(items), now - started)}", sys.stderr)
        yield item


def estimate(done: int, total: int | None, seconds: float, before: int = 0) -> str:
    """ "1,000 of 4,000, ETA 0:36", by the rate without the `before`; "1,000" for no known total."""
    if total is None:
        return f"{done:,}"
    eta = seconds / max(done - before, 1) * (total - done)
    return f"{done:,} of {total:,}, ETA {human_seconds(eta)}"


def human_seconds(seconds: float) -> str:
    """ "1:02:03" or "2:03"; days are written as hours."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
