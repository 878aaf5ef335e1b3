"""A thread that ends this process when another one of the run has failed.

A collective cannot be called off: a process that waits in one for a process that has failed waits
for ever (GPU, TPU), or learns only that a connection broke. So each process has this thread. It
reads a board that all share, and ends its own process, main thread and all, as soon as a reason
stands there. Nothing is lost: checkpoints appear whole or not at all, and logs are cut back to the
checkpoint when the run continues. The board lies in process 0: when that is killed, JAX ends the
others from C++ before this thread could, and says that the leader died.

    news/failure   the first failure: process and reason
    news/suspicion a collective broke, so that some process may have vanished
    news/stop      a signal that one process received: process and number
    news/stop_at   the step after which all stop
    beat/I         a count that goes up as long as process I lives
    at/I           the step that process I had started when it heard of the signal
    heard/I        process I knows why it ends
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from negclip_jax.runtime import console
from negclip_jax.runtime.coordinator import Board, Unreachable

_POLL_SECONDS = 0.5  # between two looks; longer where many processes look at one board
_POLLED_SO_BY = 64
_SUSPECT_SECONDS, _SUSPECT_POLLS = 5.0, 6  # silence that counts once a collective has broken
_FAREWELL_SECONDS = 10.0  # that process 0, which holds the board, waits for the others to read it


class Watch:
    """Beats, listens, and ends this process with the others."""

    def __init__(self, board: Board, *, index: int, count: int, timeout: float, silence: float):
        """Not started yet.

        Args:
          board: of all processes.
          index, count: number of this process, and how many there are.
          timeout: seconds that `within_time` allows.
          silence: seconds without a beat after which a process counts as dead.
        """
        self._board, self._index, self._count = board, index, count
        self._timeout, self._silence = timeout, silence
        self._poll = _POLL_SECONDS * max(1.0, count / _POLLED_SO_BY)
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._beats, self._answered = 0, time.monotonic()
        self._last: dict[int, tuple[int, float]] = {}
        self._deadline: tuple[float, str] | None = None
        # Held while a step to stop at is agreed on, so that no process runs past it meanwhile.
        self._pace = threading.Lock()
        self._step, self._asked = 0, False
        self._signum: int | None = None
        self._stop_at: int | None = None

    @property
    def is_running(self) -> bool:
        """Whether it was started and not stopped."""
        return self._thread is not None and not self._over.is_set()

    def start(self) -> None:
        """Starts the thread, after `stop` once more."""
        self._answered = time.monotonic()
        self._last = {i: (0, self._answered) for i in self._watched}
        self._over.clear()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread: what the other processes do no longer matters."""
        self._over.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_FAREWELL_SECONDS)

    def fail(self, reason: str, *, suspicious: bool) -> None:
        """Tells all processes why this one ends, and returns when they know.

        If another process has failed before, ends this process at once with that reason.

        Args:
          reason: a sentence.
          suspicious: whether a process that vanished may be the true reason: that is found out
            first, by its silence.
        """
        if suspicious:
            with contextlib.suppress(Unreachable):
                self._board.put("news/suspicion", self._index)
            self._look_sharp()
            time.sleep(self._silence + 8 * self._poll)  # in which the thread may end us
        self.stop()
        with contextlib.suppress(Unreachable):
            failure = {"process": self._index, "reason": reason}
            first = failure
            if not self._board.put_first("news/failure", failure):
                first = self._board.get("news/failure")
            if first["process"] != self._index:
                self._end(first)
            self._farewell(first)  # also where this process tells it a second time

    def agreed_stop(self, step: int, received: int | None) -> int | None:
        """The signal after which all processes stop at this step; None where they go on.

        Args:
          step: that this process has just started; the loop calls this once for each.
          received: signal that this process received.
        """
        if received is not None and not self._asked:
            self._asked = True
            with contextlib.suppress(Unreachable):  # the thread deals with that
                self._board.put_first("news/stop", {"process": self._index, "signal": received})
        with self._pace:
            self._step = step
            reached = self._stop_at is not None and step >= self._stop_at
            return self._signum if reached else None

    @contextlib.contextmanager
    def within_time(self, what: str) -> Iterator[Callable[[], None]]:
        """Ends the run when the block takes too long; calling what it yields starts anew."""

        def again() -> None:
            self._deadline = (time.monotonic() + self._timeout, what)

        again()
        try:
            yield again
        finally:
            self._deadline = None

    @property
    def _watched(self) -> range:
        # Process 0 looks at all and the others at it: no more work for each, the more there are.
        return range(1, self._count) if self._index == 0 else range(1)

    def _run(self) -> None:
        while not self._over.wait(self._poll):
            try:
                self._look()
                self._answered = time.monotonic()
            except Unreachable as error:
                silent = time.monotonic() - self._answered
                if silent > self._silence and not self._over.is_set():
                    reason = f"the coordinator has not answered for {silent:.0f} s ({error})"
                    self._end({"process": 0, "reason": reason})

    def _look(self) -> None:
        self._beats += 1
        self._board.put(f"beat/{self._index}", self._beats)
        news = self._board.folder("news")
        if "failure" in news and not self._over.is_set():
            self._end(news["failure"])
        if "suspicion" in news:
            self._look_sharp()
        if "stop" in news and self._stop_at is None:
            self._settle(news)
        self._listen()
        deadline = self._deadline
        if deadline is not None and time.monotonic() > deadline[0]:
            reason = f"waited longer than {self._timeout:g} s (runtime.timeout) for {deadline[1]}"
            self._accuse(self._index, f"{reason}; is a disk slow or gone?")

    def _look_sharp(self) -> None:
        suspect = max(_SUSPECT_SECONDS, _SUSPECT_POLLS * self._poll)
        self._silence = min(self._silence, suspect)

    def _listen(self) -> None:
        """Accuses processes whose count has stood still for too long."""
        whole = self._index == 0
        beats = self._board.folder("beat") if whole else {"0": self._board.get("beat/0")}
        now = time.monotonic()
        for process in self._watched:
            beat = beats.get(str(process)) or 0
            if beat != self._last[process][0]:
                self._last[process] = (beat, now)
            silent = now - self._last[process][1]
            if silent > self._silence:
                words = f"no sign of life for {silent:.0f} s: killed, crashed, or its host is gone"
                self._accuse(process, f"{words}; its own log may say more")

    def _accuse(self, process: int, reason: str) -> None:
        """Puts a failure on the board; every thread, this one too, acts when it reads it."""
        self._board.put_first("news/failure", {"process": process, "reason": reason})

    def _settle(self, news: dict[str, Any]) -> None:
        """Takes part in finding the step after which all stop: one more than any has started."""
        if self._signum is None:
            self._pace.acquire()
            self._signum = news["stop"]["signal"]
            self._board.put(f"at/{self._index}", self._step)
            name = signal.Signals(self._signum).name
            logging.warning("process %d received %s: all stop", news["stop"]["process"], name)
        if self._index == 0:
            steps = self._board.folder("at")
            if len(steps) == self._count:
                self._board.put_first("news/stop_at", max(steps.values()) + 1)
        stop_at = self._board.get("news/stop_at")
        if stop_at is not None:
            self._stop_at = stop_at
            self._pace.release()

    def _end(self, failure: dict[str, Any]) -> None:
        """Ends this process with the reason of another; does not return."""
        reason, who = failure["reason"], f"process {failure['process']}"
        reason = reason if reason.startswith(who) else f"{who}: {reason}"
        console.fail(reason)
        logging.error(reason, extra={"file_only": True})
        with contextlib.suppress(Unreachable):
            self._farewell(failure)
        leave(1)

    def _farewell(self, failure: dict[str, Any]) -> None:
        """Says that this process knows; process 0 waits until all do, for it takes the board away.

        The one that failed does not answer any more.
        """
        self._board.put(f"heard/{self._index}", True)
        if self._index != 0:
            return
        until = time.monotonic() + max(_FAREWELL_SECONDS, 3 * self._poll)
        others = {str(i) for i in range(self._count)} - {str(failure["process"])}
        while time.monotonic() < until and others - self._board.folder("heard").keys():
            time.sleep(0.1)
        time.sleep(self._poll)  # from hearing to being gone


def leave(status: int) -> None:
    """Ends this process at once: an orderly exit would wait for the other processes."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
