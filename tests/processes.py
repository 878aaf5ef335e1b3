"""Processes of real commands, for tests of training: one, or several of `launch.py` on loopback.

They are started by a nursery (see `nursery.py`), write a log each, and none outlives its time.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tiny_runs import ROOT

CONFIG = f"--config={ROOT}/configs/negationclip.py"


@dataclasses.dataclass(frozen=True)
class Ended:
    """One process: its exit status (None: it hung and was killed), output and seconds."""

    status: int | None
    output: str
    seconds: float


class Forked:
    """A process of a nursery, with what tests use of `subprocess.Popen`."""

    def __init__(self, nursery: "Nursery", pid: int):
        self._nursery, self.pid = nursery, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._nursery.ask(poll=self.pid)["status"]
        return self.returncode

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.01)
        return self.returncode

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


class Nursery:
    """Starts processes that have imported what training needs."""

    def __init__(self, folder: Path):
        """`folder` receives the logs."""
        self._folder, self._groups, self._asking = folder, itertools.count(), threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, ROOT / "tests" / "nursery.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment(devices=None),
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """The reply to a request; see `nursery.py`."""
        with self._asking:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())

    def start(
        self,
        argv: Sequence[Any],
        log: Path,
        *,
        devices: int = 8,
        cwd: Path = ROOT,
        env: dict[str, str] | None = None,
        events: dict[str, Any] | None = None,
    ) -> Forked:
        """Starts one process; `argv` is what a command line has behind `python`."""
        argv, places = [str(each) for each in argv], {"log": str(log), "cwd": str(cwd)}
        env = environment(devices=None) | (env or {})
        request = {"argv": argv, "devices": devices, "env": env, "events": events or {}}
        return Forked(self, self.ask(**request, **places)["pid"])

    def run(
        self,
        settings: dict[str, Any],
        workdir: Path,
        *,
        processes: int,
        devices: int,
        events: dict[int, dict[str, Any]] | None = None,
        differing: dict[int, dict[str, Any]] | None = None,
        started: Sequence[int] | None = None,
        seconds: float = 60.0,
    ) -> list[Ended]:
        """Runs `launch.py` as several processes, to the end of all.

        Args:
          settings: {"section.key": value}.
          workdir: of the run.
          processes, devices: how many, and how many devices each has.
          events: what happens to some processes, by their number; see `nursery.EVENTS`.
          differing: settings of some processes, by their number.
          started: numbers of those that are started at all; default: all.
          seconds: after which what is left is killed.
        """
        argvs = commands(settings, workdir, processes, differing or {})
        numbers = range(processes) if started is None else started
        return self.finish(
            [argvs[i] for i in numbers],
            devices=devices,
            events=[(events or {}).get(i, {}) for i in numbers],
            seconds=seconds,
        )

    def finish(
        self,
        argvs: Sequence[Sequence[Any]],
        *,
        devices: int = 8,
        events: Sequence[dict[str, Any]] = (),
        seconds: float = 200.0,
    ) -> list[Ended]:
        """Runs these commands at once, to the end of all; see `run`."""
        group = next(self._groups)
        logs = [self._folder / f"{group}-{i}.log" for i in range(len(argvs))]
        began, ends = time.monotonic(), {}
        running = {
            i: self.start(argv, log, devices=devices, events=event)
            for i, (argv, log, event) in enumerate(
                itertools.zip_longest(argvs, logs, events, fillvalue={})
            )
        }
        while running:
            time.sleep(0.01)
            now = time.monotonic() - began
            for i, process in list(running.items()):
                if process.poll() is not None or now > seconds:
                    ends[i] = (process.returncode, now)
                    del running[i]
                    if process.returncode is None:
                        process.kill()
                        process.wait(10)
        return [Ended(ends[i][0], log.read_text(), ends[i][1]) for i, log in enumerate(logs)]

    def close(self) -> None:
        """Ends the nursery and whatever it started."""
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


def train_and_be_killed(
    forked: Nursery, changes: dict, file: Path, workdir: Path, nth: int
) -> None:
    """Runs `training/killed_run.py`, which kills itself at its nth evaluation.

    Args:
      changes: settings of the run, which are written to `file`.
    """
    file.write_text(json.dumps(changes))
    script = ROOT / "tests" / "training" / "killed_run.py"
    (end,) = forked.finish([[script, file, workdir, nth]])
    assert end.status == -signal.SIGKILL, end.output


@contextlib.contextmanager
def nursery(folder: Path) -> Iterator[Nursery]:
    """A nursery for the time of the block."""
    opened = Nursery(folder)
    try:
        yield opened
    finally:
        opened.close()


def commands(
    settings: dict[str, Any], workdir: Path, processes: int, differing: dict[int, dict[str, Any]]
) -> list[list[str]]:
    """The command lines, from `launch.py` on, that join `processes` processes."""
    address = f"localhost:{free_port()}"
    found = []
    for i in range(processes):
        team = {} if processes == 1 else {"distributed": address, "process_id": i}
        team |= {} if processes == 1 else {"num_processes": processes}
        every = settings | {f"runtime.{k}": v for k, v in team.items()} | differing.get(i, {})
        overrides = [f"--config.{k}={v}" for k, v in every.items() if v is not None]
        found.append([str(ROOT / "launch.py"), CONFIG, f"--workdir={workdir}", *overrides])
    return found


def run_alone(argvs: Sequence[list[str]], *, devices: int, seconds: float) -> list[Ended]:
    """Runs these commands as processes of their own, without a nursery, to the end of all."""
    started = time.monotonic()
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    env = environment(devices)
    running = [subprocess.Popen([sys.executable, *argv], env=env, **pipes) for argv in argvs]
    ends = []
    for process in running:
        left = started + seconds - time.monotonic()
        try:
            output, status = process.communicate(timeout=max(0.1, left))[0], process.returncode
        except subprocess.TimeoutExpired:
            process.kill()
            output, status = process.communicate()[0], None
        ends.append(Ended(status, output, time.monotonic() - started))
    return ends


def environment(devices: int | None) -> dict[str, str]:
    """As `conftest.py` has it, with another number of devices; None: as many as there are."""
    count = "" if devices is None else f"--xla_force_host_platform_device_count={devices}"
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", count, os.environ["XLA_FLAGS"])
    return {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]
