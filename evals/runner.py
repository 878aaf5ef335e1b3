"""Runs benchmarks on models: load everything, encode once, score, write after each.

All published files are read before any model is, so that a wrong file is reported in seconds and
all at once. A model then encodes what the benchmarks need in their order, and each benchmark is
scored as soon as its items are there.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from evals import registry
from evals.benchmark import Benchmark, Problem
from evals.images import DataRoots
from evals.models import Model
from evals.reading import load_available
from evals.results import Results
from negclip_jax.common.errors import InputError
from negclip_jax.embeddings.encoder import Encoder
from negclip_jax.runtime import sharding

Loaded = dict[str, tuple[Benchmark, Problem]]


@dataclasses.dataclass(frozen=True)
class Failure:
    """A model that could not be scored on a benchmark."""

    benchmark: str
    model: str
    message: str


def load_problems(
    names: Sequence[str], roots: DataRoots, *, allow_subset: bool, out: Path | None = None
) -> Loaded:
    """Reads the published files of benchmarks, or with `[AVAILABLE]` of all that are there.

    `out` receives `missing_photos.txt` with the whole list; `allow_subset` scores the items whose
    photos are there where others are not. Raises InputError with one line for each benchmark that
    cannot be scored.
    """
    missing: list[str] = []

    def load(name: str) -> dict[str, Problem]:
        problem = registry.get(name).load(roots)
        missing.extend(f"{name}\t{path}" for path in problem.missing)
        return {name: problem}

    try:
        loaded = load_available(names, registry.names(), load, allow_subset=allow_subset)
    finally:
        if missing and out is not None and sharding.is_main_process():
            out.mkdir(parents=True, exist_ok=True)
            (out / "missing_photos.txt").write_text("\n".join(missing) + "\n", encoding="utf-8")
    if not loaded:
        raise InputError(f"no benchmark has its files below {', '.join(map(str, roots.data))}")
    return {name: (registry.get(name), problem) for name, problem in loaded.items()}


def run(
    models: Iterable[Model], loaded: Loaded, roots: DataRoots, results: Results, *, cache: Path
) -> list[Failure]:
    """Scores every model on every benchmark; `results` has the numbers on disk as they come.

    Models are read one after the other, so that a generator holds one at a time; `cache` is the
    folder of embeddings. Returns the pairs that failed; all others are scored.
    """
    for benchmark, problem in loaded.values():
        results.begin(benchmark, problem)
        for title, control in problem.controls.items():
            results.add(benchmark.name, title, problem, control(), control=True)
    failures = []
    for model in models:
        with contextlib.closing(encoder_of(model, loaded, roots, cache=cache)) as encoder:
            kinds = zip(encoder.pending, encoder.distinct, ("images", "texts"), strict=True)
            left = [f"{pending:,} of {distinct:,} {what}" for pending, distinct, what in kinds]
            logging.info("%s: %s to encode", model.name, " and ".join(left))
            if encoder.truncated:
                logging.warning(
                    "%s: %s texts are longer than the %d tokens that the model reads; their ends "
                    "are cut, the first of them %r",
                    *(model.name, f"{len(encoder.truncated):,}"),
                    *(model.config.text.context_length, encoder.truncated[0]),
                )
            for name, (_, problem) in loaded.items():
                try:
                    result = problem.score(*encoder.features(problem.images, problem.texts))
                except InputError as error:
                    failures.append(Failure(name, model.name, str(error)))
                    results.fail(name, model.name, str(error))
                else:
                    results.add(name, model.name, problem, result)
    return failures


def encoder_of(model: Model, loaded: Loaded, roots: DataRoots, **options: Any) -> Encoder:
    """An encoder of all images and texts of the benchmarks, in the order of need."""
    images = [ref for _, problem in loaded.values() for ref in problem.images]
    texts = [text for _, problem in loaded.values() for text in problem.texts]
    return Encoder(model, images, texts, roots, **options)
