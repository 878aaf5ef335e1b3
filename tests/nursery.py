"""Forks processes from one that has imported what training needs.

    python nursery.py < requests > replies

Requests and replies are lines of JSON. One that starts a process gives its arguments (`argv`, as
behind `python`), the `devices` that it has, the file of its output (`log`), `cwd`, what its
environment has besides (`env`) and what happens to it (`events`, names and values as in EVENTS):
the reply is its `pid`. `{"poll": PID}` is replied to with its exit `status`, negative for a signal,
or null as long as it runs. At the end of the requests, those that are left are killed.

Nothing of JAX has started when a process is forked; each is in a session of its own and runs the
real command. Importing takes most of the time of a tiny run, so many runs become affordable.
"""

import atexit
import gc
import importlib.abc
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
from unittest import mock

import jax

from data_gen import cli, export, generate
from negclip_jax.common.decoding import ImageError
from negclip_jax.data.images import ImageDirectory
from negclip_jax.embeddings.store import EmbeddingStore
from negclip_jax.training import loop
from negclip_jax.training.step import CompiledStep

assert loop.train and cli and export and generate  # what it imports is what takes time


def main() -> None:
    gc.freeze()  # the children share what was imported as long as nothing writes to it
    running = set()
    for line in sys.stdin:
        request = json.loads(line)
        if (pid := request.get("poll")) is None:
            pid = os.fork()
            if pid == 0:
                become(request)
                return
            running.add(pid)
            reply = {"pid": pid}
        else:
            ended, status = os.waitpid(pid, os.WNOHANG)
            running.discard(ended)
            reply = {"status": os.waitstatus_to_exitcode(status) if ended else None}
        print(json.dumps(reply), flush=True)
    for pid in running:
        os.kill(pid, signal.SIGKILL)


def become(request: dict) -> None:
    """Runs the command in this process, to its end; what follows is an orderly exit."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    out = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for fd, target in ((null, 0), (out, 1), (out, 2)):
        os.dup2(fd, target)
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    jax.config.update("jax_num_cpu_devices", request["devices"])
    for name, value in request["events"].items():
        EVENTS[name](value)
    module, *sys.argv = request["argv"] if request["argv"][0] == "-m" else ["", *request["argv"]]
    run = runpy.run_module if module else runpy.run_path
    run(sys.argv[0], run_name="__main__", **({"alter_sys": True} if module else {}))


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


def killed_at_second_call(place: str) -> None:
    """The second call of this function is the last thing that the process does."""
    calls = iter(range(10**6))
    mock.patch(place, lambda *_, **__: next(calls) and os.kill(os.getpid(), signal.SIGKILL)).start()


def nobody_reads(_: bool) -> None:
    """Standard output is a pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.close(reader)


def largest_file(size: int) -> None:
    """No file of this process can grow beyond so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


class _NoTorch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def without_torch(_: bool) -> None:
    """PyTorch is not installed."""
    assert "torch" not in sys.modules
    sys.meta_path.insert(0, _NoTorch())


EVENTS = {
    "killed_at_step": lambda n: at_step(n, lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "killed_at_second_call": killed_at_second_call,
    "sigterm_at_step": lambda n: at_step(n, lambda: os.kill(os.getpid(), signal.SIGTERM)),
    "disk_full_at_step": lambda n: at_step(n, full_disk),
    "disk_full_at_cache": full_disk_at_cache,
    "images_that_hang": images_that_hang,
    "images_that_break": images_that_break,
    "count_reads": count_reads,
    "tiny_benchmark": tiny_benchmark,
    "without_torch": without_torch,
    "nobody_reads": nobody_reads,
    "largest_file": largest_file,
}


if __name__ == "__main__":
    main()
