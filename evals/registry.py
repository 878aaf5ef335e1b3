"""All benchmarks by name. A new one is a file with `BENCHMARK` and a line here.

Numbers that others reported stand in `benchmarks/published.tsv`, how many items the published files
have in `benchmarks/sizes.tsv`.

Generated images and segmentation masks are not scored from rows of features: their benchmarks will
have a table of their own beside this one.
"""

import dataclasses
import importlib
from pathlib import Path

from evals.benchmark import Benchmark, Published
from negclip_jax.common.errors import InputError
from negclip_jax.language import tables

_TABLES = Path(__file__).with_name("benchmarks")
# name: "module:attribute", imported when it is asked for.
BENCHMARKS: dict[str, str] = {
    "valse": "evals.benchmarks.valse:BENCHMARK",
    "valse_pieces": "evals.benchmarks.valse:OTHER_PIECES",
    "negrefcocog": "evals.benchmarks.negrefcocog:BENCHMARK",
    "negbench_mcq": "evals.benchmarks.negbench_mcq:BENCHMARK",
    "negbench_mcq_voc2007": "evals.benchmarks.negbench_mcq:VOC2007",
    "negbench_mcq_msrvtt": "evals.benchmarks.negbench_mcq:MSRVTT",
    "negbench_retrieval": "evals.benchmarks.negbench_retrieval:BENCHMARK",
    "negbench_retrieval_negated": "evals.benchmarks.negbench_retrieval:NEGATED",
    "negbench_msrvtt": "evals.benchmarks.negbench_retrieval:MSRVTT",
    "negbench_msrvtt_negated": "evals.benchmarks.negbench_retrieval:MSRVTT_NEGATED",
    "cc_neg": "evals.benchmarks.cc_neg:BENCHMARK",
    "pope": "evals.benchmarks.pope:BENCHMARK",
    "both_polarity": "evals.benchmarks.both_polarity:BENCHMARK",
    "sugarcrepe": "evals.benchmarks.sugarcrepe:BENCHMARK",
    "aro_relation": "evals.benchmarks.aro:RELATION",
    "aro_attribution": "evals.benchmarks.aro:ATTRIBUTION",
    "aro_coco_order": "evals.benchmarks.aro:COCO_ORDER",
    "aro_flickr30k_order": "evals.benchmarks.aro:FLICKR30K_ORDER",
    "coco_retrieval": "evals.benchmarks.karpathy_retrieval:COCO",
    "flickr30k_retrieval": "evals.benchmarks.karpathy_retrieval:FLICKR30K",
    "imagenet": "evals.benchmarks.zeroshot:IMAGENET",
    "cifar10": "evals.benchmarks.zeroshot:CIFAR10",
    "cifar100": "evals.benchmarks.zeroshot:CIFAR100",
    "voc2007": "evals.benchmarks.zeroshot:VOC2007",
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
    found = getattr(importlib.import_module(module), attribute)
    published = []
    for benchmark, metric, model, value, source in tables.rows("published", _TABLES):
        if benchmark == name:
            right, _, of = value.partition("/")
            published.append(Published(model, metric, float(right) / float(of or 100), source))
    size = dict(tables.rows("sizes", _TABLES)).get(name, found.size)
    return dataclasses.replace(
        found, published=(*found.published, *published), size=size and int(size)
    )
