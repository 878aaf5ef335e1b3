"""`launch.py` as it is, with a clock on its parts; `bench.paper` runs it in a process of its own.

python -m bench.timed_launch SPANS.json --config=... --workdir=...   (the flags of launch.py)
"""

import atexit
import collections
import contextlib
import json
import runpy
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LAUNCH = Path(__file__).resolve().parent.parent / "launch.py"
# What XLA and the making of its input take, wherever a program is compiled.
_COMPILING = ("/jax/core/compile/backend_compile_duration",)
_COMPILING += ("/jax/core/compile/jaxpr_to_mlir_module_duration",)


class Clock:
    """Seconds by part. What a part calls that is a part itself counts there alone."""

    def __init__(self):
        # Of the parts of the main thread no second counts twice.
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self.calls: collections.Counter = collections.Counter()
        self._inner: list[float] = []  # seconds of the parts inside each running one
        self._lock = threading.Lock()

    def part(self, owner: Any, method: str, name: str) -> None:
        """Makes `owner.method`, which the main thread calls, a part."""

        @contextlib.contextmanager
        def timed() -> Iterator[None]:
            began = time.perf_counter()
            self._inner.append(0.0)
            try:
                yield
            finally:
                self.calls[name] += 1
                whole = time.perf_counter() - began
                self.seconds[name] += whole - self._inner.pop()
                self.inside(whole)

        setattr(owner, method, timed()(getattr(owner, method)))

    def inside(self, seconds: float) -> None:
        """Says that so many seconds of the running part belong to another one."""
        if self._inner:
            self._inner[-1] += seconds

    def threads(self, owner: Any, method: str, name: str) -> None:
        """Adds up the seconds of processor that any threads spend in `owner.method`."""

        @contextlib.contextmanager
        def timed() -> Iterator[None]:
            began = time.thread_time()
            try:
                yield
            finally:
                with self._lock:
                    self.seconds[name] += time.thread_time() - began

        setattr(owner, method, timed()(getattr(owner, method)))

    def on_event(self, event: str, seconds: float, **_: Any) -> None:
        """Listener of `jax.monitoring`."""
        if event in _COMPILING and threading.current_thread() is threading.main_thread():
            self.seconds["compilation"] += seconds
            self.inside(seconds)


def _watch(clock: Clock) -> None:
    import jax

    from negclip_jax.checkpoints.manager import Checkpoints
    from negclip_jax.data.images import ImageRef, Preprocessor
    from negclip_jax.training import image_features, loop
    from negclip_jax.training.evaluation import ValidationLoss

    clock.part(loop, "prepare", "start-up")
    clock.part(image_features, "use_cache", "feature cache")
    clock.part(loop, "_loop", "epochs")
    clock.part(ValidationLoss, "__call__", "validation")
    clock.part(Checkpoints, "save", "saving")
    clock.part(Checkpoints, "wait", "saving (waiting)")
    clock.threads(ImageRef, "open", "decoding")  # one at a time would take this long
    clock.threads(Preprocessor, "uint8", "decoding")
    jax.monitoring.register_event_duration_secs_listener(clock.on_event)


def _write(path: Path, clock: Clock) -> None:
    import jax

    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    result = {"seconds": clock.seconds, "calls": clock.calls, "device": device}
    path.write_text(json.dumps(result))


def main() -> None:
    path, sys.argv = Path(sys.argv[1]), [str(_LAUNCH), *sys.argv[2:]]
    clock = Clock()
    _watch(clock)
    atexit.register(_write, path, clock)
    runpy.run_path(str(_LAUNCH), run_name="__main__")


if __name__ == "__main__":
    main()
