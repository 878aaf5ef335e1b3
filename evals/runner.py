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
from evals.benchmark import Benchmark, Problem, Result
from evals.images import DataRoots
from evals.models import Model
from evals.reading import load_available
from evals.results import Results
from negclip_jax.common.decoding import ImageError
from negclip_jax.common.errors import InputError
from negclip_jax.common.problems import first
from negclip_jax.embeddings.encoder import Encoder
from negclip_jax.runtime import sharding

Loaded = dict[str, tuple[Benchmark, Problem]]


def load_problems(
    names: Sequence[str], roots: DataRoots, *, allow_subset: bool, out: Path | None = None
) -> Loaded:
    """Reads the published files of benchmarks, or with `[AVAILABLE]` of all that are there.

    `out` receives `missing_photos.txt` with the whole list. Raises InputError with one line for
    each benchmark that cannot be scored.
    """
    missing: list[str] = []

    def load(name: str) -> dict[str, Problem]:
        problem = registry.get(name).load(roots)
        missing.extend(f"{name}\t{path}" for path in problem.missing)
        return {name: problem}

    try:
        options = {"allow_subset": allow_subset, "where": roots.where}
        loaded = load_available(names, registry.BENCHMARKS, load, **options)
    finally:
        if missing and out is not None and sharding.is_main_process():
            out.mkdir(parents=True, exist_ok=True)
            (out / "missing_photos.txt").write_text("\n".join(missing) + "\n", encoding="utf-8")
    if not loaded:
        raise InputError(f"no benchmark has its files below {', '.join(map(str, roots.data))}")
    return {name: (registry.get(name), problem) for name, problem in loaded.items()}


def run(
    models: Iterable[Model],
    loaded: Loaded,
    roots: DataRoots,
    results: Results,
    *,
    cache: Path,
    allow_subset: bool = False,
) -> list[str]:
    """Scores every model on every benchmark; `results` has the numbers on disk as they come.

    Models are read one after the other, so that a generator holds one at a time; `cache` is the
    folder of embeddings. Photos that cannot be read count as missing ones do. Returns a line for
    each model and benchmark that failed; all others are scored.
    """
    loaded, failures = dict(loaded), []
    for benchmark, problem in loaded.values():
        _begin(results, benchmark, problem)
    for model in models:
        with contextlib.closing(encoder_of(model, loaded, roots, cache=cache)) as encoder:
            towers = (encoder.images, encoder.texts)
            left = [f"{t.pending:,} of {t.distinct:,} {t.name}" for t in towers]
            logging.info("%s: %s to encode", model.name, " and ".join(left))
            if encoder.truncated:
                logging.warning(
                    "%s: %s texts are longer than the %d tokens that the model reads; their ends "
                    "are cut, the first of them %r",
                    *(model.name, f"{len(encoder.truncated):,}"),
                    *(model.config.text.context_length, encoder.truncated[0]),
                )
            for name, (benchmark, problem) in list(loaded.items()):
                try:
                    left, result = scored(
                        encoder, benchmark, problem, roots, allow_subset=allow_subset
                    )
                except InputError as error:
                    failures.append(f"{model.name} on {name}: {error}")
                    results.fail(name, model.name, str(error))
                    continue
                if left is not problem:  # for the models that come as well
                    loaded[name] = benchmark, left
                    _begin(results, benchmark, left)
                results.add(name, model.name, left, result)
    return failures


def scored(
    encoder: Encoder,
    benchmark: Benchmark,
    problem: Problem,
    roots: DataRoots,
    *,
    allow_subset: bool,
) -> tuple[Problem, Result]:
    """The result of an encoder's features, and the problem that it is of.

    Where photos cannot be read that is the problem without their items, if a subset is allowed.
    Raises InputError where not, and for a model whose features cannot be used.
    """
    try:
        return problem, problem.score(*encoder.features(problem.images, problem.texts))
    except InputError as error:
        if roots.features is not None:  # no photo is at fault
            raise
        unreadable = {}
        for ref in encoder.unusable_images(problem.images):
            try:
                ref.open(roots)  # a model's features that are not finite are no fault of the photo
            except ImageError as reason:
                unreadable[ref.path] = str(reason)
        if not unreadable:
            raise
        left = benchmark.load(dataclasses.replace(roots, unreadable=frozenset(unreadable)))
        if not (allow_subset and left.scored):
            way = ", or give --allow-subset to score the others" if left.scored else ""
            raise InputError(f"{error}. Get them again{way}") from None
    listed = first(list(unreadable.values()), separator="; ")
    told = f"{len(unreadable):,} photos cannot be read and count as missing: {listed}"
    logging.warning("%s: %s", benchmark.name, told)
    left = dataclasses.replace(left, notes=(*left.notes, f"{told}."))
    return left, left.score(*encoder.features(left.images, left.texts))


def _begin(results: Results, benchmark: Benchmark, problem: Problem) -> None:
    results.begin(benchmark, problem)
    for title, control in problem.controls.items():
        results.add(benchmark.name, title, problem, control(), control=True)


def encoder_of(model: Model, loaded: Loaded, roots: DataRoots, **options: Any) -> Encoder:
    """An encoder of all images and texts of the benchmarks, in the order of need."""
    images = [ref for _, problem in loaded.values() for ref in problem.images]
    texts = [text for _, problem in loaded.values() for text in problem.texts]
    return Encoder(model, images, texts, roots, given=roots.given, **options)
