"""All benchmarks by name. A new one is a reader in `benchmarks/` and an entry in `benchmarks.toml`.

Generated images and segmentation masks are not scored from rows of features, and have commands of
their own.
"""

import functools
import importlib
import tomllib
from collections.abc import Callable
from pathlib import Path

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


# In the order of the table; a reader's module is imported when its benchmark is asked for.
BENCHMARKS: dict[str, Callable[[], Benchmark]] = {
    name: functools.partial(_benchmark, name) for name in _ENTRIES
}


def get(name: str) -> Benchmark:
    """The benchmark of this name; raises InputError with the list of all for an unknown one."""
    if name not in BENCHMARKS:
        raise InputError(
            f"there is no benchmark {name!r}; --benchmarks takes one or more of: "
            + ", ".join(BENCHMARKS)
        )
    return BENCHMARKS[name]()
