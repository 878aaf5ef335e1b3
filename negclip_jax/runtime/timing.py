"""Wall-clock accounting that cannot flatter: windows are closed by a read of the device."""

import contextlib
import time
from collections.abc import Callable, Iterator


class Chrono:
    """Times windows of training steps, apart from pauses (evaluation, saving).

    A window ends when the metrics of its last step have been read, so no step that is merely
    queued counts as done.
    """

    def __init__(self, pairs_per_step: int, clock: Callable[[], float] = time.perf_counter):
        self._pairs_per_step = pairs_per_step
        self._clock = clock
        self._start = clock()
        self._waited = 0.0
        self._paused = 0.0
        self._step: int | None = None
        self._rate: float | None = None  # pairs a second, smoothed

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent here counts as waiting for data."""
        start = self._clock()
        yield
        self._waited += self._clock() - start

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time spent here does not count as training."""
        start = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - start

    def begin(self, step: int) -> None:
        """Starts the first window: `step` updates are done."""
        self._step = step
        self._reset()

    def window(self, step: int, total_steps: int) -> dict[str, float]:
        """Closes the window at `step` updates done.

        Returns `pairs_per_second`, `data_wait_share` (of the window, 0 to 1), `seconds_per_step`
        and `eta_seconds` (at the smoothed rate); empty when no step was done.
        """
        steps = step - self._step
        seconds = max(self._clock() - self._start - self._paused, 1e-9)
        if steps <= 0:
            return {}
        rate = steps * self._pairs_per_step / seconds
        self._rate = rate if self._rate is None else 0.7 * self._rate + 0.3 * rate
        timing = {
            "pairs_per_second": rate,
            "data_wait_share": min(1.0, self._waited / seconds),
            "seconds_per_step": seconds / steps,
            "eta_seconds": (total_steps - step) * self._pairs_per_step / self._rate,
        }
        self._step = step
        self._reset()
        return timing

    def _reset(self) -> None:
        self._start, self._waited, self._paused = self._clock(), 0.0, 0.0


def human_seconds(seconds: float) -> str:
    """ "1:02:03" or "2:03"; days are written as hours."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
