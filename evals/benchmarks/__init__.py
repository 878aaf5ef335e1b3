"""The benchmarks, one file each; `benchmarks.toml` says what they are, `published.tsv` what others
reported."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evals.benchmark import Benchmark, Problem, Published
from evals.images import DataRoots
from negclip_jax.language import tables

_FOLDER = Path(__file__).parent
ENTRIES: dict[str, dict[str, Any]] = tomllib.loads(
    (_FOLDER / "benchmarks.toml").read_text(encoding="utf-8")
)


def described(name: str, load: Callable[[DataRoots], Problem], download: str) -> Benchmark:
    """The benchmark of this name with its entries in both tables.

    `load` reads the published file, which `download` says where to get.
    """
    published = []
    for benchmark, metric, model, value, source in tables.rows("published", _FOLDER):
        if benchmark == name:
            right, _, of = value.partition("/")
            published.append(Published(model, metric, float(right) / float(of or 100), source))
    entry = {key: value for key, value in ENTRIES[name].items() if key != "place"}
    return Benchmark(name, **entry, load=load, download=download, published=published)
