"""All benchmarks by name. A new one is a reader in `benchmarks/` and an entry in `benchmarks.toml`.

Those of other packages and of files are known too, see `benchmark_files`.

Generated images and segmentation masks are not scored from rows of features, and have commands of
their own.
"""

import functools
import importlib
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path

from evals import benchmark_files
from evals.benchmark import Benchmark, Published
from negclip_jax.common.errors import InputError
from negclip_jax.language import tables

_FOLDER = Path(__file__).with_name("benchmarks")
_ENTRIES = tomllib.loads((_FOLDER / "benchmarks.toml").read_text(encoding="utf-8"))


def _benchmark(name: str) -> Benchmark:
    entry = dict(_ENTRIES[name])
    module, _, reader = entry.pop("reader").partition(":")
    read = getattr(importlib.import_module(f"evals.benchmarks.{module}"), reader)
    load = functools.partial(read, download=entry["download"], **entry.pop("options", {}))
    published = []
    for benchmark, metric, model, value, source in tables.rows("published", _FOLDER):
        if benchmark == name:
            right, _, of = value.partition("/")
            published.append(Published(model, metric, float(right) / float(of or 100), source))
    return Benchmark(name, **entry, load=load, published=published)


# In the order of the table; a reader's module is imported when its benchmark is asked for. A name
# of ours stays ours, whatever is installed.
BENCHMARKS: dict[str, Callable[[], Benchmark]] = {
    name: functools.partial(_benchmark, name) for name in _ENTRIES
}
BENCHMARKS |= {name: m for name, m in benchmark_files.installed().items() if name not in BENCHMARKS}


def add_files(paths: Iterable[Path]) -> None:
    """Adds the benchmarks of Python files, see `benchmark_files`; those of one file, once.

    Raises InputError for a file that has none, and for a name that is taken.
    """
    for path in paths:
        for name, make in benchmark_files.read(path).items():
            known = BENCHMARKS.setdefault(name, make)
            if getattr(known, "args", None) != make.args:
                raise InputError(
                    f"{path}: there is a benchmark {name!r} already, call it otherwise"
                )


def get(name: str) -> Benchmark:
    """The benchmark of this name; raises InputError with the list of all for an unknown one."""
    if name not in BENCHMARKS:
        raise InputError(
            f"there is no benchmark {name!r}; --benchmarks takes one or more of: "
            + ", ".join(BENCHMARKS)
        )
    return BENCHMARKS[name]()
