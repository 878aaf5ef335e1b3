"""All benchmarks by name. A new one is a file with `BENCHMARK` and a line here.

Generated images and segmentation masks are not scored from rows of features: their benchmarks will
have a table of their own beside this one.
"""

import importlib

from evals.benchmark import Benchmark
from negclip_jax.errors import InputError

# name: "module:attribute", imported when it is asked for.
BENCHMARKS: dict[str, str] = {
    "valse": "evals.valse:BENCHMARK",
    "valse_pieces": "evals.valse_pieces:BENCHMARK",
    "negrefcocog": "evals.negrefcocog:BENCHMARK",
    "negbench_mcq": "evals.negbench_mcq:BENCHMARK",
    "negbench_mcq_voc2007": "evals.negbench_mcq:VOC2007",
    "negbench_mcq_msrvtt": "evals.negbench_mcq:MSRVTT",
    "negbench_retrieval": "evals.negbench_retrieval:BENCHMARK",
    "negbench_retrieval_negated": "evals.negbench_retrieval:NEGATED",
    "negbench_msrvtt": "evals.negbench_retrieval:MSRVTT",
    "negbench_msrvtt_negated": "evals.negbench_retrieval:MSRVTT_NEGATED",
    "cc_neg": "evals.cc_neg:BENCHMARK",
    "pope": "evals.pope:BENCHMARK",
    "both_polarity": "evals.both_polarity:BENCHMARK",
    "sugarcrepe": "evals.sugarcrepe:BENCHMARK",
    "aro_relation": "evals.aro:RELATION",
    "aro_attribution": "evals.aro:ATTRIBUTION",
    "aro_coco_order": "evals.aro:COCO_ORDER",
    "aro_flickr30k_order": "evals.aro:FLICKR30K_ORDER",
    "coco_retrieval": "evals.coco_retrieval:BENCHMARK",
    "flickr30k_retrieval": "evals.flickr30k_retrieval:BENCHMARK",
    "imagenet": "evals.zeroshot:IMAGENET",
    "cifar10": "evals.zeroshot:CIFAR10",
    "cifar100": "evals.zeroshot:CIFAR100",
    "voc2007": "evals.zeroshot_voc2007:BENCHMARK",
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
