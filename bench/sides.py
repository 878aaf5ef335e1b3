"""Runs each side of a comparison in a process of its own, in turns.

A process of its own keeps a side's memory peak and thread pool apart from the other's; turns keep
a machine that gets busier or slower from favouring one of them.
"""

import contextlib
import importlib
import multiprocessing
import resource
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


class Side:
    """A proxy: `side("method", *args)` calls a method of an object in another process."""

    def __init__(self, make: str, *args: Any):
        """Starts the process, which makes the object.

        Args:
          make: "module:function", imported by the new process alone.
          args: of the function; they are pickled.
        """
        spawn = multiprocessing.get_context("spawn")  # fork and JAX's threads do not mix
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, make, args))
        self._process.start()
        theirs.close()
        self._receive()

    def __call__(self, method: str, *args: Any) -> Any:
        """Returns what the method returns; raises RuntimeError with its traceback if it fails."""
        with contextlib.suppress(OSError):  # a process that is gone: receiving says so
            self._pipe.send((method, args))
        return self._receive()

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_: Any) -> None:
        """Ends the process."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join(10)
        self._process.terminate()

    def _receive(self) -> Any:
        try:
            ok, value = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            raise RuntimeError(
                f"a side of the benchmark ended with exit code {code}"
                + ("; out of memory? try a smaller --batch-size" if code == -9 else "")
            ) from None
        if not ok:
            raise RuntimeError(value)
        return value


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count what the process was before it was this program
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return 1024 * int(lines["VmHWM"].split()[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _serve(pipe: Connection, make: str, args: tuple) -> None:
    try:
        module, name = make.split(":")
        target = getattr(importlib.import_module(module), name)(*args)
        pipe.send((True, None))
        while (command := pipe.recv()) is not None:
            method, arguments = command
            pipe.send((True, getattr(target, method)(*arguments)))
    except EOFError:
        return
    except Exception:
        pipe.send((False, traceback.format_exc()))
