"""Forks processes of one `launch.py` command, from a process that has imported what they need.

    python nursery.py < requests > replies

A request is a line of JSON: `processes`, for each its arguments (`argv`) and what happens to it
(`events`, names and values as in EVENTS); `devices` of each; `log`, a path with `{}` for the
number of the process; and `seconds`, after which those that are left are killed. The reply is a
line: for each process its exit `status` (negative for a signal, None where it had to be killed) and
the `seconds` that it ran.

Nothing of JAX has started when a process is forked, and each runs the real `launch.py`. Importing
costs most of the time of a tiny run, so many runs become affordable.
"""

import atexit
import gc
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax

from negclip_jax.common.decoding import ImageError
from negclip_jax.data.images import ImageDirectory
from negclip_jax.embeddings.store import EmbeddingStore
from negclip_jax.training import loop
from negclip_jax.training.step import CompiledStep

assert loop.train  # what it imports is what takes time


def main() -> None:
    gc.freeze()  # the children share what was imported as long as nothing writes to it
    for line in sys.stdin:
        request = json.loads(line)
        started = time.monotonic()
        children = {}
        for number, process in enumerate(request["processes"]):
            pid = os.fork()
            if pid == 0:
                become(process, request["devices"], request["log"].format(number))
                return
            children[pid] = number
        ends = wait(children, started, request["seconds"])
        print(json.dumps([ends[number] for number in range(len(ends))]), flush=True)


def wait(children: dict[int, int], started: float, seconds: float) -> dict[int, dict]:
    """Ends of the children by number; those that are left in the end are killed."""
    ends = {}
    for last_chance in (False, True):
        if last_chance:
            for pid in children:
                os.kill(pid, signal.SIGKILL)
        while children and (last_chance or time.monotonic() < started + seconds):
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                time.sleep(0.02)
                continue
            code = None if last_chance else os.waitstatus_to_exitcode(status)
            ends[children.pop(pid)] = {"status": code, "seconds": time.monotonic() - started}
    return ends


def become(process: dict, devices: int, log: str) -> None:
    """Runs the command in this process, to its end; what follows is an orderly exit."""
    null = os.open(os.devnull, os.O_RDONLY)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for fd, target in ((null, 0), (out, 1), (out, 2)):
        os.dup2(fd, target)
    jax.config.update("jax_num_cpu_devices", devices)
    sys.argv = process["argv"]
    for name, value in process["events"].items():
        EVENTS[name](value)
    runpy.run_path(sys.argv[0], run_name="__main__")


def at_step(number: int, act: Callable[[], None]) -> None:
    """Calls `act` when this process is about to start its update of that number, from 1."""
    original, calls = CompiledStep.__call__, iter(range(1, 10**6))

    def called(step, *arguments):
        if next(calls) == number:
            act()
        return original(step, *arguments)

    CompiledStep.__call__ = called


def count_reads(path: str) -> None:
    """Writes the names of the images that this process decoded and hashed, when it ends."""
    found: dict[str, list] = {"open": [], "read": []}
    for method, names in found.items():
        original = getattr(ImageDirectory, method)

        def counted(images, name, original=original, names=names):
            names.append(name)
            return original(images, name)

        setattr(ImageDirectory, method, counted)
    atexit.register(lambda: Path(path).write_text(json.dumps(found)))


def images_that_hang(name: str) -> None:
    """Reading this image never ends, as from a dead network disk."""
    _replace_open(name, lambda: time.sleep(10**6))


def images_that_break(name: str) -> None:
    """This process cannot read this image."""

    def broken():
        raise ImageError(f"{name}: cannot be read (for the test).")

    _replace_open(name, broken)


def _replace_open(name: str, act: Callable[[], None]) -> None:
    original = ImageDirectory.open

    def opened(images, asked):
        if asked == name:
            act()
        return original(images, asked)

    ImageDirectory.open = opened


def full_disk() -> None:
    """From now on no file of this process can grow beyond a kilobyte."""
    jax.config.update("jax_enable_compilation_cache", False)  # all tests share it
    log = subprocess.Popen(["cat"], stdin=subprocess.PIPE)  # which no limit binds
    for target in (1, 2):
        os.dup2(log.stdin.fileno(), target)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))


def full_disk_at_cache(_: bool) -> None:
    """The disk is full when the image features are to be written."""
    original = EmbeddingStore.add

    def add(*arguments):
        full_disk()
        original(*arguments)

    EmbeddingStore.add = add


def tiny_benchmark(_: bool) -> None:
    """`eval.benchmarks` knows the one of `tiny_benchmark.py`."""
    from tiny_benchmark import BENCHMARK

    from evals import registry

    registry.BENCHMARKS = {"tiny": lambda: BENCHMARK}


EVENTS = {
    "killed_at_step": lambda n: at_step(n, lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "sigterm_at_step": lambda n: at_step(n, lambda: os.kill(os.getpid(), signal.SIGTERM)),
    "disk_full_at_step": lambda n: at_step(n, full_disk),
    "disk_full_at_cache": full_disk_at_cache,
    "images_that_hang": images_that_hang,
    "images_that_break": images_that_break,
    "count_reads": count_reads,
    "tiny_benchmark": tiny_benchmark,
}


if __name__ == "__main__":
    main()
