"""Ctrl-C and SIGTERM ask the loop to save and stop; a second one stops at once."""

import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

from negclip_jax.common import signals

T = TypeVar("T")


class _CutShort(BaseException):
    """Ends what `StopSignal.unless_asked` runs."""


class StopSignal:
    """Context manager that turns SIGINT and SIGTERM into a flag, and restores them afterwards.

    Attributes:
      received: the signal that asks to stop, or None.
    """

    def __init__(self):
        self.received: int | None = None
        self._is_heard = False
        self._cuts_short = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        # Only the main thread may install handlers; elsewhere (a notebook server) there are none.
        if threading.current_thread() is threading.main_thread():
            for signum in signals.SIGNALS:
                self._previous[signum] = signal.signal(signum, self._handle)
            signals.add_listener(self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous:
            signals.remove_listener(self._hear)
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def unless_asked(self, work: Callable[[], T]) -> T | None:
        """What `work` returns; None where a signal came before its end, which ends it at once.

        For work that may take longer than the time between SIGTERM and SIGKILL, and that may end
        anywhere: it is as if it had never begun.
        """
        try:
            self._cuts_short = True
            result = work() if self.received is None else None
            self._cuts_short = False
        except _CutShort:
            return None
        return result

    def _hear(self, signum: int) -> bool:
        is_first, self._is_heard = not self._is_heard, True
        if is_first:
            logging.warning(
                "%s: finishing this step, then saving; once more stops at once",
                signal.Signals(signum).name,
            )
        return is_first

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise signals.Stopped(signum)
        self.received = signum
        if not signals.is_watched():
            self._hear(signum)
        if self._cuts_short:
            self._cuts_short = False
            raise _CutShort
