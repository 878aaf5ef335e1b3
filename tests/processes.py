"""Several processes of the same `launch.py` command on loopback, for tests of training.

They are started by a nursery (see `nursery.py`), write a log each, and none outlives its time.
"""

import contextlib
import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
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


class Nursery:
    """Starts groups of processes, one group at a time."""

    def __init__(self, folder: Path):
        """`folder` receives the logs."""
        self._folder, self._groups = folder, 0
        self._process = subprocess.Popen(
            [sys.executable, ROOT / "tests" / "nursery.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment(devices=None),
        )

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
        """Runs the command as several processes, to the end of all.

        Args:
          settings: {"section.key": value}.
          workdir: of the run.
          processes, devices: how many, and how many devices each has.
          events: what happens to some processes, by their number; see `nursery.EVENTS`.
          differing: settings of some processes, by their number.
          started: numbers of those that are started at all; default: all.
          seconds: after which what is left is killed.
        """
        self._groups += 1
        log = str(self._folder / f"{self._groups}-{{}}.log")
        argvs = commands(settings, workdir, processes, differing or {})
        numbers = range(processes) if started is None else started
        request = {
            "processes": [{"argv": argvs[i], "events": (events or {}).get(i, {})} for i in numbers],
            "devices": devices,
            "log": log,
            "seconds": seconds,
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        ends = json.loads(self._process.stdout.readline())
        return [
            Ended(end["status"], Path(log.format(i)).read_text(), end["seconds"])
            for i, end in enumerate(ends)
        ]

    def close(self) -> None:
        """Ends the nursery, which has no children then."""
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


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
