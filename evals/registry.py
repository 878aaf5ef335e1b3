"""All benchmarks by name. A new one is a file with `BENCHMARK` and a line here."""

import importlib

from evals.benchmark import Benchmark
from negclip_jax.errors import InputError

# name: "module:attribute", imported when it is asked for.
BENCHMARKS: dict[str, str] = {
    "valse": "evals.valse:BENCHMARK",
    "valse_pieces": "evals.valse:OTHER_PIECES",
    "negrefcocog": "evals.negrefcocog:BENCHMARK",
    "negbench_mcq": "evals.negbench_mcq:BENCHMARK",
    "negbench_mcq_voc2007": "evals.negbench_mcq:VOC2007",
    "negbench_mcq_msrvtt": "evals.negbench_mcq:MSRVTT",
    "pope": "evals.pope:BENCHMARK",
    "sugarcrepe": "evals.sugarcrepe:BENCHMARK",
}


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
