"""Ctrl-C and SIGTERM ask the loop to stop after the current step; a second one stops at once."""

import logging
import signal
import threading
from types import FrameType, TracebackType


class Interrupted(Exception):
    """The run was asked to stop and has saved; `signum` says by which signal."""

    def __init__(self, signum: int, step: int):
        super().__init__(f"stopped by {signal.Signals(signum).name} after step {step}")
        self.signum = signum
        self.step = step


class StopSignal:
    """Context manager that turns SIGINT and SIGTERM into a flag, and restores them afterwards."""

    def __init__(self):
        self.received: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        # Only the main thread may install handlers; elsewhere (a notebook server) there are none.
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signum
        logging.warning(
            "%s: finishing this step, then saving; once more stops at once",
            signal.Signals(signum).name,
        )
