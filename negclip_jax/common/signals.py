"""SIGINT and SIGTERM (Ctrl-C; preemption, `scancel`, `kubectl delete`) end a command soon.

Python runs signal handlers between two instructions of the main thread, which may spend minutes
inside a compiler or wait for a device. So a thread of its own hears signals as well: it gives the
main thread a moment to clean up after itself, and then ends the process with a one-line message.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_UNWIND_SECONDS = 3.0
_IMPORT_SECONDS = 0.05  # until a signal that came during an import is tried again

# Takes a signal that it hears first and returns True, or leaves it to end the process.
Listener = Callable[[int], bool]

_listeners: list[Listener] = []
_ending = threading.Lock()
_is_watched = False


class Interrupted(Exception):
    """A run was asked to stop and has saved what is done.

    Attributes:
      signum: the signal that asked.
      step: the last step that was done, None where there are no steps.
    """

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

    For the first lines of a command, which catches `Stopped` and calls `end`.

    Args:
      say: prints what it is given, and how to go on. It may run in another thread.
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


def add_listener(listener: Listener) -> None:
    """The newest listener hears signals first, in the watching thread."""
    _listeners.append(listener)


def remove_listener(listener: Listener) -> None:
    """Undoes `add_listener`."""
    _listeners.remove(listener)


def is_watched() -> bool:
    """Whether `end_on_signals` was called in this process, so that listeners are heard."""
    return _is_watched


def _watch(reader: int, say: Callable[[str], None]) -> None:
    while True:
        signum = os.read(reader, 1)[0]
        if signum in SIGNALS and not (_listeners and _listeners[-1](signum)):
            break
    time.sleep(_UNWIND_SECONDS)
    end(signum, say)
