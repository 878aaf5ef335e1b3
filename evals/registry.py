"""All benchmarks by name. A new one is a file with `BENCHMARK` and an entry in `benchmarks.toml`.

Generated images and segmentation masks are not scored from rows of features, and have commands of
their own.
"""

import importlib

from evals.benchmark import Benchmark
from evals.benchmarks import ENTRIES
from negclip_jax.common.errors import InputError

# name: "module:attribute", imported when it is asked for.
BENCHMARKS = {name: f"evals.benchmarks.{entry['place']}" for name, entry in ENTRIES.items()}


def names() -> list[str]:
    """Names of all benchmarks, in the order of the table."""
    return list(BENCHMARKS)


def get(name: str) -> Benchmark:
    """The benchmark of this name; raises InputError with the list of all for an unknown one."""
    if name not in BENCHMARKS:
        raise InputError(
            f"there is no benchmark {name!r}; --benchmarks takes one or more of: "
            + ", ".join(BENCHMARKS)
        )
    module, _, attribute = BENCHMARKS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
