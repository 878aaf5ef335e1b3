"""What the benchmarks share: a process for each side, tables and JSON, and the command line.

Each side of a comparison runs in a process of its own, in turns: that keeps a side's memory peak
and thread pool apart from the other's, and a machine that gets busier from favouring one of them.
"""

import argparse
import contextlib
import importlib
import json
import multiprocessing
import platform
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from negclip_jax.common import extras
from negclip_jax.common.arguments import Parser
from negclip_jax.common.errors import InputError, device_errors
from negclip_jax.common.progress import told
from negclip_jax.common.provenance import cores, package_versions

Table = tuple[Sequence[str], Sequence[Sequence[str]]]  # header and rows
# What `--json` holds, what was measured in a few words, and tables of it.
Measured = tuple[dict[str, Any], str, list[Table]]
Measure = Callable[[argparse.Namespace, Path], Measured]

_FLAGS: dict[Measure, list[tuple[str, dict[str, Any]]]] = {}  # of each command

SIDE = 2048  # of the matrices that a CPU multiplies
_SMALLER = "try a smaller --batch-size or --arch"


def parser(module: str, doc: str) -> argparse.ArgumentParser:
    """A parser for the command line of `python -m MODULE`, with the flag `--json`."""
    made = Parser(f"python -m {module}", doc)
    made.add_argument("--json", type=Path, help="where to write all figures")
    return made


def flag(name: str, **options: Any) -> Callable[[Measure], Measure]:
    """Gives the command of a function that measures a flag, as `ArgumentParser.add_argument`."""

    def with_flag(measure: Measure) -> Measure:
        _FLAGS[measure] = [(name, options), *_FLAGS.get(measure, [])]
        return measure

    return with_flag


def command(module: str, doc: str, measure: Measure) -> Callable[..., None]:
    """The `main` of `python -m MODULE`: measures, writes `--json` and prints the tables.

    `measure` is given the flags and a scratch folder that is removed. Where it raises InputError or
    RuntimeError the process exits with a one-line message.
    """

    def main(argv: Sequence[str] | None = None) -> None:
        made = parser(module, doc)
        for name, options in _FLAGS.get(measure, []):
            made.add_argument(name, **options)
        args = made.parse_args(argv)
        try:
            require_writable(args.json)
            with device_errors(_SMALLER), tempfile.TemporaryDirectory(prefix="bench_") as scratch:
                result, title, tables = measure(args, Path(scratch))
        except (InputError, RuntimeError) as error:
            sys.exit(f"{module}: {error}")
        result["machine"] = machine()
        if args.json is not None:
            args.json.write_text(json.dumps(result, indent=2) + "\n")
        print(f"{title}; {describe(result['machine'])}")
        for table in tables:
            print(f"\n{markdown(*table)}")

    return main


def require_positive(args: argparse.Namespace, *names: str) -> None:
    """InputError for the first of these flags that is less than 1."""
    for name in names:
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be 1 or more")


def require_torch() -> None:
    """InputError where PyTorch is not installed."""
    extras.require("torch", extra="torch", why="the PyTorch side of this benchmark")


def require_writable(path: Path | None) -> None:
    """Says before anything is measured that the file of results cannot be written: InputError."""
    try:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("a").close()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    found = package_versions(["jax", "jaxlib", "torch", "transformers", "pillow", "numpy"])
    return {
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "cores": cores(),
        "python": platform.python_version(),
        "versions": {name: version for name, version in found.items() if version},
    }


def describe(machine: Mapping[str, Any]) -> str:
    """One line about it."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    processor = f"{machine['cores']} cores of {machine['processor']}"
    return f"{processor}, Python {machine['python']}, {versions}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with aligned columns."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


class Side:
    """A proxy: `side("method", *args)` calls a method of an object in another process.

    `side("attribute")` is a copy of what is no method.
    """

    def __init__(self, make: str, *args: Any):
        """Starts the process, which makes the object.

        `make` is "module:function", imported by the new process alone; `args` are pickled.
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
                + (f"; out of memory? {_SMALLER}" if code == -9 else "")
            ) from None
        if not ok:
            raise RuntimeError(value)
        return value


def turns(sides: Sequence[Side], rounds: int, method: str, *args: Any) -> list[list[Any]]:
    """What a method of each side returns, for each round; a busy machine slows both in turn."""
    return [[side(method, *args) for side in sides] for _ in told(range(rounds), "rounds")]


def seconds_of(
    works: Mapping[str, Callable[[], Any]], rounds: int, *, warm: int = 0
) -> dict[str, np.ndarray]:
    """Seconds of each work `[rounds]`, which take turns; `warm` more rounds before do not count."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in told(range(warm + rounds), "rounds"):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - began)
    return {name: np.array(seconds[warm:]) for name, seconds in taken.items()}


def size_of(folder: Path) -> int:
    """Bytes of the files below it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def spread(values: Sequence[float], form: str) -> str:
    """Median, least and largest, "2.00 (1.50 to 3.00)" with the form ".2f"."""
    return f"{np.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def peak_memory(field: str = "VmHWM") -> int:
    """Largest resident memory of this process so far, in bytes.

    `field`: what else of Linux's /proc/self/status is read, where there is one.
    """
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count what the process was before it was this program
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return 1024 * int(lines[field].split()[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _serve(pipe: Connection, make: str, args: tuple) -> None:
    try:
        module, name = make.split(":")
        with device_errors(_SMALLER):
            target = getattr(importlib.import_module(module), name)(*args)
            pipe.send((True, None))
            while (command := pipe.recv()) is not None:
                method, arguments = command
                value = getattr(target, method)
                pipe.send((True, value(*arguments) if callable(value) else value))
    except EOFError:
        return
    except InputError as error:
        pipe.send((False, str(error)))
    except Exception:
        pipe.send((False, traceback.format_exc()))


def matmul_rate(
    multiply: Callable[[Any, Any], Any], make: Callable[[np.ndarray], Any], platform: str = "cpu"
) -> float:
    """FLOP/s of products of square matrices: the best of five, so that a pause does not count.

    Args:
      multiply: blocks until the product exists.
      make: turns float32 `[side, side]` into its operand. The numbers are random, as products of
        constants draw less power and run faster than any model's.
      platform: JAX's name of what multiplies; accelerators need larger matrices to be busy.
    """
    side = SIDE if platform == "cpu" else 8192
    operand = make(np.random.default_rng(0).standard_normal((side, side), np.float32))
    works = {"product": lambda: multiply(operand, operand)}
    return 2 * side**3 / seconds_of(works, 5, warm=1)["product"].min()
