"""Benchmarks from outside the package: a Python file of one's own, or an installed package's.

    python -m evals --benchmark-file=mine.py --benchmarks=mine --model=... --data=DIR --out=...

The file has what a module of `evals/benchmarks/` has, `load(roots, *, download)`, which returns a
`Problem`, and beside it the table that `benchmarks.toml` has of ours, with the same keys:

    BENCHMARKS = {
        "mine": {
            "title": "Mine",
            "task": "Which of two captions is true of the photo?",
            "source": "this laboratory, 2026",
            "licence": "CC BY 4.0",
            "download": "github.com/me/mine (mine.json)",  # handed to `load`
            "retention": False,  # True for what fine-tuning should keep, no negation
            "size": 120,  # of the published file; None, or left out, where it is not known
        }
    }

`reader` names another function than `load`, `options` are further arguments of it, `published` is a
list of `evals.benchmark.Published`. A package offers its benchmarks as entry points of the group
`negclip_jax.benchmarks`, `mine = "package.module"`; they are known without a flag, and the module
is imported when its benchmark is asked for. Either is run as any Python code is, with all that the
user may do: do not run a stranger's.
"""

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from evals.benchmark import Benchmark, Problem
from evals.images import DataRoots
from negclip_jax.common.errors import InputError

GROUP, TABLE = "negclip_jax.benchmarks", "BENCHMARKS"
_TEXTS = ("title", "task", "source", "licence", "download")
_KEYS = {field.name for field in dataclasses.fields(Benchmark)} - {"name", "load"}

Factories = dict[str, Callable[[], Benchmark]]


def installed() -> Factories:
    """Benchmarks of installed packages, by the names of their entry points."""

    def make(entry: metadata.EntryPoint) -> Benchmark:
        with _one_line(entry.value):
            module = importlib.import_module(entry.value)
        return _benchmark(entry.name, module, module.__file__ or entry.value)

    return {each.name: functools.partial(make, each) for each in metadata.entry_points(group=GROUP)}


def read(path: Path) -> Factories:
    """The benchmarks of a Python file, which is run. Raises InputError."""
    if path.suffix != ".py" or not path.is_file():
        raise InputError(f"--benchmark-file={path}: there is no such file, NAME.py")
    place = str(path.absolute())
    # Under a name of its own: what is called json.py must not stand in for json.
    name = f"negclip_benchmark_file_{place}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, place)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            with _one_line(place):
                spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]
            raise
    module = sys.modules[name]
    table = getattr(module, TABLE, None)
    if not isinstance(table, Mapping) or not table:
        raise InputError(f"{place} has no {TABLE} = {{name: what it is}}")
    found = {str(each): functools.partial(_benchmark, str(each), module, place) for each in table}
    for make in found.values():  # each mistake is told before anything is read
        make()
    return found


def _benchmark(name: str, module: ModuleType, place: str) -> Benchmark:
    table = getattr(module, TABLE, None)
    entry = table.get(name) if isinstance(table, Mapping) else None
    if not isinstance(entry, Mapping):
        raise InputError(f'{place}: {TABLE} has no table of "{name}"')
    entry = dict(entry)
    reader, options = str(entry.pop("reader", "load")), entry.pop("options", {})
    own = getattr(module, reader, None)
    if not callable(own):
        raise InputError(f"{place} has no function {reader}(roots, *, download)")
    if absent := [key for key in _TEXTS if not isinstance(entry.get(key), str)]:
        raise InputError(f'{place}: {TABLE}["{name}"] has no text for {", ".join(absent)}')
    if unknown := [str(key) for key in entry if key not in _KEYS]:
        known = ", ".join((*_TEXTS, *sorted(_KEYS - set(_TEXTS)), "reader", "options"))
        raise InputError(
            f'{place}: {TABLE}["{name}"] has {", ".join(unknown)}; its keys are {known}'
        )

    guarded = _one_line(place)  # as a decorator: each call is its own block

    @functools.wraps(own)
    def load(roots: DataRoots, **arguments: Any) -> Problem:
        problem = guarded(own)(roots, **arguments)
        if not isinstance(problem, Problem):
            kind = type(problem).__name__
            raise InputError(f"{place}: {reader} returns {kind}, no evals.benchmark.Problem")
        controls = {title: guarded(control) for title, control in problem.controls.items()}
        return dataclasses.replace(problem, score=guarded(problem.score), controls=controls)

    load = functools.partial(load, download=entry["download"], **options)
    return Benchmark(name, load=load, **entry)


@contextlib.contextmanager
def _one_line(place: str) -> Iterator[None]:
    """Makes exceptions of a file's code user errors: where in the file, which, what it says."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except SyntaxError as error:
        raise InputError(f"{error.filename} line {error.lineno}: {error.msg}") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.filename == place] or frames
        told = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(f"{own[-1].filename} line {own[-1].lineno}: {told}") from error
