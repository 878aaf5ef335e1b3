"""SIGINT and SIGTERM (Ctrl-C; preemption, `scancel`, `kubectl delete`) end a command soon.

Python runs signal handlers between two instructions of the main thread, which may spend minutes
inside a compiler or wait for a device. So a thread of its own hears signals as well: it gives the
main thread a moment to clean up after itself, and then ends the process with a one-line message.
A training loop asks for the signal instead (`StopSignal`): it saves and stops at the next step.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_UNWIND_SECONDS = 3.0
_IMPORT_SECONDS = 0.05  # until a signal that came during an import is tried again

T = TypeVar("T")

# The newest hears signals first, in the watching thread: it takes one and returns True, or leaves
# it to end the process.
_listeners: list[Callable[[int], bool]] = []
_ending = threading.Lock()
_is_watched = False


class Interrupted(Exception):
    """A run was asked to stop and has saved what is done, up to `step` where there are steps."""

    def __init__(self, signum: int, step: int | None = None):
        after = "" if step is None else f" after step {step}"
        super().__init__(f"stopped by {signal.Signals(signum).name}{after}")
        self.signum, self.step = signum, step


class Stopped(KeyboardInterrupt):
    """Raised in the main thread by a signal that ends the process; `signum` says which."""

    def __init__(self, signum: int):
        super().__init__(f"stopped at once by {signal.Signals(signum).name}")
        self.signum = signum


def end_on_signals(say: Callable[[str], None]) -> None:
    """From now on a signal raises `Stopped` in the main thread, and soon ends the process anyhow.

    For the first lines of a command, which catches `Stopped` and calls `end`. `say` prints what it
    is given, and how to go on; it may run in another thread.
    """
    global _is_watched
    _is_watched = True
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for signum in SIGNALS:
        signal.signal(signum, raise_stopped)
    threading.Thread(target=_watch, args=(reader, say), daemon=True, name="signals").start()


def end(signum: int, say: Callable[[str], None]) -> None:
    """Ends the process with status 128 + `signum`; does not return."""
    _ending.acquire()  # never released: the watching thread must not say it a second time
    if sys.stderr.isatty():
        print("\x1b[?25h", end="", file=sys.stderr)  # a progress bar may have hidden the cursor
    say(str(Stopped(signum)))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(128 + signum)  # threads may be anywhere: an orderly exit can crash or hang


def raise_stopped(signum: int, frame: FrameType | None) -> None:
    """The handler of `end_on_signals`."""
    if not _is_importing(frame):
        raise Stopped(signum)
    # Extension modules, jaxlib among them, crash where an exception comes while they are loaded.
    main = threading.main_thread().ident
    again = threading.Timer(_IMPORT_SECONDS, signal.pthread_kill, [main, signum])
    again.daemon = True
    again.start()


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def _watch(reader: int, say: Callable[[str], None]) -> None:
    while True:
        signum = os.read(reader, 1)[0]
        if signum in SIGNALS and not (_listeners and _listeners[-1](signum)):
            break
    time.sleep(_UNWIND_SECONDS)
    end(signum, say)


class _CutShort(BaseException):
    """Ends what `StopSignal.unless_asked` runs."""


class StopSignal:
    """Context manager that turns SIGINT and SIGTERM into a flag, and restores them afterwards."""

    def __init__(self):
        self.received: int | None = None  # the signal that asks to stop
        self._is_heard = False
        self._cuts_short = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        # Only the main thread may install handlers; elsewhere (a notebook server) there are none.
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                self._previous[signum] = signal.signal(signum, self._handle)
            _listeners.append(self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous:
            _listeners.remove(self._hear)
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
            raise Stopped(signum)
        self.received = signum
        if not _is_watched:  # else that thread has heard it
            self._hear(signum)
        if self._cuts_short:
            self._cuts_short = False
            raise _CutShort
