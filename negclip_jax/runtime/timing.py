"""Wall-clock time of training, in windows that end with a read of the device."""

import contextlib
import time
from collections.abc import Callable, Iterator

# Dense bfloat16 FLOP/s of one device, by the beginning of its name in JAX, from the makers' pages:
# https://cloud.google.com/tpu/docs/v6e (and v5e, v5p, v4) and NVIDIA's data sheets (SXM modules).
_PEAK_BFLOAT16 = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str, devices: int, dtype: str) -> float | None:
    """FLOP/s that so many devices can do at most; None where that is not known.

    Only bfloat16 has a peak that one can aim at: float32 runs at full precision here, which no
    data sheet states for TPUs.
    """
    kinds = [kind for kind in _PEAK_BFLOAT16 if device_kind.startswith(kind)]
    if dtype != "bfloat16" or not kinds:
        return None
    return devices * _PEAK_BFLOAT16[max(kinds, key=len)]


class Chrono:
    """Times windows of training steps, apart from pauses (evaluation, saving).

    A window ends when the metrics of its last step have been read, so no step that is merely
    queued counts as done.
    """

    def __init__(
        self,
        pairs_per_step: int,
        peak_flops: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """`peak_flops` is what all devices can do in a second, see `peak_flops`."""
        self._pairs_per_step = pairs_per_step
        self._peak_flops = peak_flops
        self._clock = clock
        self._work: list[tuple[int, float]] = []
        self._step: int | None = None
        self._rate: float | None = None  # pairs a second, smoothed
        self._start, self._waited, self._paused = clock(), 0.0, 0.0

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

    def work(self, step: int, flops: float) -> None:
        """Says that the update that ends at `step` takes this many floating-point operations."""
        self._work.append((step, flops))

    def begin(self, step: int) -> None:
        """Starts the first window: `step` updates are done."""
        self._step = step
        self._start, self._waited, self._paused = self._clock(), 0.0, 0.0

    def window(self, step: int, total_steps: int) -> dict[str, float]:
        """Closes the window at `step` updates done.

        Returns `pairs_per_second`, `data_wait_share` (of the window, 0 to 1), `seconds_per_step`,
        `eta_seconds` (at the smoothed rate), `teraflops_per_second` on real tokens (over all
        devices) and, where `peak_flops` is known, `mfu`, its share of that; empty when no step was
        done.
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
        flops = sum(f for s, f in self._work if self._step < s <= step)
        timing["teraflops_per_second"] = flops / seconds / 1e12
        if self._peak_flops is not None:
            timing["mfu"] = flops / seconds / self._peak_flops
        self._work = [(s, f) for s, f in self._work if s > step]
        self.begin(step)
        return timing
