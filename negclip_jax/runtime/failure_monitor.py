"""A background thread that detects failed or hung processes and ends this one with them.

Collectives have no time-out and do not say why they hang: a process that waits in one for a failed
process waits forever (GPU, TPU), or learns only that a connection broke. So each process runs this
thread. It polls the coordinator's key-value store, and exits its own process, main thread included,
with the first failure that is reported there. Nothing is lost: checkpoints are atomic, and logs are
cut back to the checkpoint when the run resumes. The store lives in process 0: when that is killed,
JAX ends the others from C++ before this thread could, and says that the leader died.

    news/failure     the first failure: process and reason
    news/suspicion   a collective broke, so that some process may have vanished
    news/stop        a signal that one process received: process and number
    news/stop_at     the step after which all stop
    heartbeat/I      a count that goes up as long as process I lives
    at/I             the step that process I had started when it learned of the signal
    acknowledged/I   process I has read the failure, and exits
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
from negclip_jax.runtime.coordinator import CoordinatorStore, Unreachable

_POLL_SECONDS = 0.5  # longer where more processes than this poll one store:
_POLLED_SO_BY = 64
# The heartbeat time-out once a collective has broken.
_SUSPECT_SECONDS, _SUSPECT_POLLS = 5.0, 6
_ACKNOWLEDGE_SECONDS = 10.0  # that process 0, which holds the store, waits for the others to read


class FailureMonitor:
    """Sends heartbeats, checks those of others, and ends this process when one has failed."""

    def __init__(
        self,
        store: CoordinatorStore,
        *,
        index: int,
        count: int,
        timeout: float,
        heartbeat_timeout: float,
    ):
        """Not started yet; `index` is this process of so many as `count`.

        `timeout`: seconds that `within_time` allows, and agreements take at most;
        `heartbeat_timeout`: seconds without one after which a process counts as dead.
        """
        self.store, self.index, self._count = store, index, count
        self.timeout, self._heartbeat_timeout = timeout, heartbeat_timeout
        self._rounds = 0  # of agreements; all processes come to them in the same order
        self._poll = _POLL_SECONDS * max(1.0, count / _POLLED_SO_BY)
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._heartbeats, self._answered = 0, time.monotonic()
        self._last: dict[int, tuple[int, float]] = {}
        self._deadline: tuple[float, str] | None = None
        # Held while a step to stop at is agreed on, so that no process runs past it meanwhile.
        self._pace = threading.Lock()
        self._step, self._asked = 0, False
        self._signum: int | None = None
        self._stop_at: int | None = None

    def once(self, what: str) -> str:
        """A key of the store that is used once, however often `what` is agreed on."""
        self._rounds += 1
        return f"round/{self._rounds}/{what}"

    @property
    def is_running(self) -> bool:
        """Whether it was started and not stopped."""
        return self._thread is not None and not self._over.is_set()

    def start(self) -> None:
        """Starts the thread, after `stop` once more."""
        self._answered = time.monotonic()
        self._last = {i: (0, self._answered) for i in self._watched}
        self._over.clear()
        self._thread = threading.Thread(target=self._run, name="failure monitor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread: what the other processes do no longer matters."""
        self._over.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_ACKNOWLEDGE_SECONDS)

    def fail(self, reason: str, *, suspicious: bool) -> None:
        """Tells all processes why this one ends, and returns when they know.

        If another process has failed before, ends this process at once with that reason.

        `reason` is a message of one line; `suspicious`: a process that vanished may be the true
        one, whose missing heartbeats are waited for first.
        """
        if suspicious:
            with contextlib.suppress(Unreachable):
                self.store.put("news/suspicion", self.index)
            self._shorten_timeout()
            time.sleep(self._heartbeat_timeout + 8 * self._poll)  # in which the thread may end us
        self.stop()
        with contextlib.suppress(Unreachable):
            failure = {"process": self.index, "reason": reason}
            first = failure
            if not self.store.put_first("news/failure", failure):
                first = self.store.get("news/failure")
            if first["process"] != self.index:
                self._end(first)
            self._acknowledge(first)  # also where this process tells it a second time

    def agreed_stop(self, step: int, received: int | None) -> int | None:
        """The signal after which all processes stop at this step; None where they go on.

        `step` is the one that this process has just started, `received` a signal that it received;
        the loop calls this once for each step.
        """
        if received is not None and not self._asked:
            self._asked = True
            with contextlib.suppress(Unreachable):  # the thread deals with that
                self.store.put_first("news/stop", {"process": self.index, "signal": received})
        with self._pace:
            self._step = step
            reached = self._stop_at is not None and step >= self._stop_at
            return self._signum if reached else None

    @contextlib.contextmanager
    def within_time(self, what: str) -> Iterator[Callable[[], None]]:
        """Ends the run when the block takes too long; calling what it yields starts anew."""

        def keep_alive() -> None:
            self._deadline = (time.monotonic() + self.timeout, what)

        keep_alive()
        try:
            yield keep_alive
        finally:
            self._deadline = None

    @property
    def _watched(self) -> range:
        # Process 0 checks all, the others check it: their work does not grow with their number.
        return range(1, self._count) if self.index == 0 else range(1)

    def _run(self) -> None:
        while not self._over.wait(self._poll):
            try:
                self._poll_once()
                self._answered = time.monotonic()
            except Unreachable as error:
                silent = time.monotonic() - self._answered
                if silent > self._heartbeat_timeout and not self._over.is_set():
                    reason = f"the coordinator has not answered for {silent:.0f} s ({error})"
                    self._end({"process": 0, "reason": reason})

    def _poll_once(self) -> None:
        self._heartbeats += 1
        self.store.put(f"heartbeat/{self.index}", self._heartbeats)
        news = self.store.folder("news")
        if "failure" in news and not self._over.is_set():
            self._end(news["failure"])
        if "suspicion" in news:
            self._shorten_timeout()
        if "stop" in news and self._stop_at is None:
            self._agree_on_stop(news)
        if self.index == 0:
            beats = self.store.folder("heartbeat")
        else:
            beats = {"0": self.store.get("heartbeat/0")}
        now = time.monotonic()
        for process in self._watched:
            beat = beats.get(str(process)) or 0
            if beat != self._last[process][0]:
                self._last[process] = (beat, now)
            silent = now - self._last[process][1]
            if silent > self._heartbeat_timeout:
                reason = f"no sign of life for {silent:.0f} s: killed, crashed, or its host is gone"
                self._report_failure(process, f"{reason}; its own log may say more")
        deadline = self._deadline
        if deadline is not None and time.monotonic() > deadline[0]:
            reason = f"waited longer than {self.timeout:g} s (runtime.timeout) for {deadline[1]}"
            self._report_failure(self.index, f"{reason}; is a disk slow or gone?")

    def _shorten_timeout(self) -> None:
        suspect = max(_SUSPECT_SECONDS, _SUSPECT_POLLS * self._poll)
        self._heartbeat_timeout = min(self._heartbeat_timeout, suspect)

    def _report_failure(self, process: int, reason: str) -> None:
        """Writes a failure to the store; every monitor, this one too, acts when it reads it."""
        self.store.put_first("news/failure", {"process": process, "reason": reason})

    def _agree_on_stop(self, news: dict[str, Any]) -> None:
        """Takes part in choosing the step after which all stop: one more than any has started.

        `_pace` is held from telling this process's step until the choice is known, so that
        `agreed_stop` cannot let it start another step in between.
        """
        if self._signum is None:
            self._pace.acquire()
            self._signum = news["stop"]["signal"]
            self.store.put(f"at/{self.index}", self._step)
            name = signal.Signals(self._signum).name
            logging.warning("process %d received %s: all stop", news["stop"]["process"], name)
        if self.index == 0:
            steps = self.store.folder("at")
            if len(steps) == self._count:
                self.store.put_first("news/stop_at", max(steps.values()) + 1)
        stop_at = self.store.get("news/stop_at")
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
            self._acknowledge(failure)
        leave(1)

    def _acknowledge(self, failure: dict[str, Any]) -> None:
        """Tells that this process has read the failure; process 0, which holds the store, waits
        until all others have. The one that failed does not answer any more."""
        self.store.put(f"acknowledged/{self.index}", True)
        if self.index != 0:
            return
        until = time.monotonic() + max(_ACKNOWLEDGE_SECONDS, 3 * self._poll)
        others = {str(i) for i in range(self._count)} - {str(failure["process"])}
        while time.monotonic() < until and others - self.store.folder("acknowledged").keys():
            time.sleep(0.1)
        time.sleep(self._poll)  # from reading it to having exited


def leave(status: int) -> None:
    """Ends this process at once: an orderly exit would wait for the other processes."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
