"""Starts a command again and again and ends it at moments that are observed from outside.

Nothing in the commands knows of it: what a process was doing when a signal reached it is read from
what it left, its log and its files.
"""

import dataclasses
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from processes import Forked, Nursery, environment
from tiny_runs import ROOT

_POLL_SECONDS = 0.001
_ATTEMPTS = 10  # at one moment, which may have passed by the time that the signal arrives
_TIMEOUT_SECONDS = 120.0
_STOP_SECONDS = 20.0  # the shortest grace time of the usual clouds is 30
# What may lie about while a process is at work, and after one was killed.
_LEFTOVERS = ("*partial*", "*.replaced", "*orbax-checkpoint-tmp*", ".write_test", "*.lock", "*.tmp")


@dataclasses.dataclass
class Site:
    """A folder in which the real commands train a run and export it.

    Attributes:
      root: the commands' working directory; they write to `run` and `exported`.
      settings: of the run, as {"section.key": value}.
      forked: what starts the processes: much sooner, but they have imported everything.
    """

    root: Path
    settings: dict
    forked: Nursery | None = None

    @property
    def workdir(self) -> Path:
        return self.root / "run"

    @property
    def train(self) -> list[str]:
        """The command that trains."""
        config = f"--config={ROOT}/configs/negationclip.py"
        overrides = [f"--config.{k}={v}" for k, v in self.settings.items() if v is not None]
        return [str(ROOT / "launch.py"), config, "--workdir=run", *overrides]

    @property
    def export(self) -> list[str]:
        """The command that exports."""
        module = "negclip_jax.interop.export"
        return ["-m", module, "--workdir=run", "--out=exported"]

    def start(self, command: list[str]) -> subprocess.Popen | Forked:
        """A process in a session of its own, whose output is kept in `output.txt`."""
        # Without Git: the revision may change between two processes.
        without_git = {"GIT_DIR": os.devnull}
        if self.forked is not None:
            log = self.root / "output.txt"
            return self.forked.start(command, log, devices=1, cwd=self.root, env=without_git)
        with (self.root / "output.txt").open("w") as output:
            return subprocess.Popen(
                [sys.executable, *command],
                cwd=self.root,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment(devices=None) | without_git,
            )

    def finish(self, command: list[str]) -> str:
        """Runs a command to its end, which must be good; returns what it printed."""
        process = self.start(command)
        process.wait(_TIMEOUT_SECONDS)
        assert process.returncode == 0, self.output
        return self.output

    @property
    def output(self) -> str:
        """What the last process printed."""
        return (self.root / "output.txt").read_text()

    def leftovers(self) -> list[str]:
        """What is neither finished nor anything that the next process could not do without."""
        found = (path for pattern in _LEFTOVERS for path in self.root.rglob(pattern))
        return sorted({str(path.relative_to(self.root)) for path in found})


def _log(site: Site) -> str:
    path = site.workdir / "train.log"
    return path.read_text() if path.exists() else ""


def _holds(directory: Path, pattern: str) -> bool:
    return directory.is_dir() and next(directory.glob(pattern), None) is not None


@dataclasses.dataclass
class Victim:
    """One process of a site.

    Attributes:
      site, process: where and what.
      log_start: characters of the log that are of processes before.
    """

    site: Site
    process: subprocess.Popen | Forked
    log_start: int

    @property
    def log(self) -> str:
        """What this process has logged."""
        return _log(self.site)[self.log_start :]

    def is_building_cache(self) -> bool:
        if "M parameters trained" not in self.log or "compiled the training step" in self.log:
            return False
        return _holds(self.site.workdir / "features", "digests.bin") and not self._has_features

    @property
    def _has_features(self) -> bool:
        return "image features of" in self.log

    def is_saving(self) -> bool:
        return _holds(self.site.workdir / "checkpoints", "*.orbax-checkpoint-tmp*")

    def is_evaluating(self) -> bool:
        return self.log.rstrip().endswith(": evaluating")

    def is_importing(self) -> bool:
        maps = Path(f"/proc/{self.process.pid}/maps")
        return maps.exists() and "jaxlib" in maps.read_text()

    def is_compiling(self) -> bool:
        return self._has_features and "compiled the training step" not in self.log

    def is_stepping(self) -> bool:
        return re.search(r"step \d+/", self.log) is not None and not self.is_evaluating()

    def is_exporting(self) -> bool:
        return (self.site.root / ".exported.partial" / "new").exists()

    def is_starting(self) -> bool:
        return "compiled the training step" not in self.log and not self.is_building_cache()


# By phase: how to see that a process is in it, and for how long it lasts about, in seconds.
PHASES: dict[str, tuple[Callable[[Victim], bool], float]] = {
    "start-up": (Victim.is_starting, 2.0),
    "import": (Victim.is_importing, 1.0),
    "cache building": (Victim.is_building_cache, 0.3),
    "compilation": (Victim.is_compiling, 0.2),
    "steps": (Victim.is_stepping, 0.015),  # an evaluation follows soon
    "save": (Victim.is_saving, 0.05),
    "evaluation": (Victim.is_evaluating, 0.05),
    "export": (Victim.is_exporting, 0.4),
}


def started_until(site: Site, command: list[str], phase: str, skipped: int = 0) -> Victim:
    """Starts a command; returns when it enters a phase for the first time, or `skipped` later.

    Raises AssertionError where the command ends before.
    """
    victim = Victim(site, site.start(command), len(_log(site)))
    is_in_phase, _ = PHASES[phase]
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    was_in_phase = False
    for turn in itertools.count():
        if turn % 32 == 0:  # asking takes longer than looking
            assert victim.process.poll() is None, f"ended before {phase}: {site.output}"
        assert time.monotonic() < deadline, f"{phase} never came: {site.output}"
        now_in_phase = is_in_phase(victim)
        if now_in_phase and not was_in_phase:
            if not skipped:
                return victim
            skipped -= 1
        was_in_phase = now_in_phase
        time.sleep(_POLL_SECONDS)


def kill(site: Site, command: list[str], phase: str, rng: random.Random | None) -> set[str]:
    """Runs a command and kills it in a phase; returns the phases it was in.

    The moment is random with `rng`, and as soon as the phase is seen without.
    """
    skipped = rng.choice((0, 0, 1)) if rng and phase in ("save", "evaluation") else 0
    victim = started_until(site, command, phase, skipped)
    if rng is not None:
        time.sleep(rng.uniform(0, PHASES[phase][1]))
    os.killpg(victim.process.pid, signal.SIGKILL)
    assert victim.process.wait(_STOP_SECONDS) == -signal.SIGKILL, f"ended in {phase}: {site.output}"
    if command == site.export:
        return {"export"} if victim.is_exporting() else set()
    return {name for name, (seen, _) in PHASES.items() if name != "export" and seen(victim)}


def kill_in(
    site: Site, command: list[str], phase: str, rng: random.Random | None
) -> list[set[str]]:
    """Kills until one kill was in the phase; returns the phases of each kill."""
    kills = []
    while not kills or phase not in kills[-1]:
        assert len(kills) < _ATTEMPTS, f"{phase} was missed {_ATTEMPTS} times: {kills}"
        kills.append(kill(site, command, phase, rng))
    return kills


def stop(site: Site, command: list[str], phase: str, *signals: signal.Signals) -> int:
    """Runs a command and sends it signals when it enters a phase; returns its exit status."""
    victim = started_until(site, command, phase)
    for signum in signals:
        os.killpg(victim.process.pid, signum)
    return victim.process.wait(_STOP_SECONDS)
