"""Runs benchmarks on models: load everything, encode once, score, write after each.

All published files are read before any model is, so that a wrong file is reported in seconds and
all at once. A model then encodes what the benchmarks need in their order, and each benchmark is
scored as soon as its items are there.
"""

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from evals import registry
from evals.benchmark import Benchmark, Problem
from evals.images import DataRoots, FileMissing, why_not_scored
from evals.models import Model
from evals.results import Results
from negclip_jax.common.errors import InputError
from negclip_jax.embeddings.encoder import Encoder
from negclip_jax.runtime import sharding

AVAILABLE = "available"  # stands for every benchmark whose files are there

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
    """Reads the published files.

    Args:
      names: of benchmarks, or `[AVAILABLE]`.
      roots: where files and photos are.
      allow_subset: score the items whose photos are there where others are not.
      out: folder that receives `missing_photos.txt` with the whole list.

    Raises InputError with one line for each benchmark that cannot be scored.
    """
    skips = list(names) == [AVAILABLE]
    loaded: Loaded = {}
    problems, missing, absent = [], [], []
    for name in registry.names() if skips else names:
        try:
            benchmark = registry.get(name)
            problem = benchmark.load(roots)
        except FileMissing as error:
            if skips:
                absent.append(name)
            else:
                problems.append(f"{name}: {error}")
            continue
        except InputError as error:
            problems.append(f"{name}: {error}" if name in registry.names() else str(error))
            continue
        missing += [f"{name}\t{path}" for path in problem.missing]
        complaint = why_not_scored(
            name,
            problem.missing,
            scored=problem.scored,
            total=problem.total,
            unit="items",
            empty=f"{problem.file} holds no items",
            allow_subset=allow_subset,
        )
        if not complaint:
            loaded[name] = benchmark, problem
        elif skips and not problem.scored:
            absent.append(name)
        else:
            problems.append(complaint)
    if missing and out is not None and sharding.is_main_process():
        out.mkdir(parents=True, exist_ok=True)
        (out / "missing_photos.txt").write_text("\n".join(missing) + "\n", encoding="utf-8")
    if problems:
        raise InputError("\n".join(problems))
    if absent:
        logging.info("left out, for their files or photos are not there: %s", ", ".join(absent))
    if not loaded:
        raise InputError(f"no benchmark has its files below {', '.join(map(str, roots.data))}")
    return loaded


def run(
    models: Iterable[Model], loaded: Loaded, roots: DataRoots, results: Results, *, cache: Path
) -> list[Failure]:
    """Scores every model on every benchmark; `results` has them on disk as they come.

    Args:
      models: read one after the other, so that a generator holds one at a time.
      loaded: what `load_problems` returned.
      roots: where photos are.
      results: receives the numbers.
      cache: folder of embeddings.

    Returns the pairs that failed; all others are scored.
    """
    for benchmark, problem in loaded.values():
        results.begin(benchmark, problem)
        for title, control in problem.controls.items():
            results.add(benchmark.name, title, problem, control(), control=True)
    return [failure for model in models for failure in _score(model, loaded, roots, results, cache)]


def _score(
    model: Model, loaded: Loaded, roots: DataRoots, results: Results, cache: Path
) -> list[Failure]:
    failures = []
    images = [ref for _, problem in loaded.values() for ref in problem.images]
    texts = [text for _, problem in loaded.values() for text in problem.texts]
    encoder = Encoder(model, images, texts, roots, cache=cache)
    left = [
        f"{pending:,} of {distinct:,} {what}"
        for pending, distinct, what in zip(
            encoder.pending, encoder.distinct, ("images", "texts"), strict=True
        )
    ]
    logging.info("%s: %s to encode", model.name, " and ".join(left))
    if encoder.truncated:
        logging.warning(
            "%s: %s texts are longer than the %d tokens that the model reads; their ends are cut, "
            "the first of them %r",
            *(model.name, f"{len(encoder.truncated):,}"),
            *(model.config.text.context_length, encoder.truncated[0]),
        )
    try:
        for name, (_, problem) in loaded.items():
            try:
                result = problem.score(*encoder.features(problem.images, problem.texts))
            except InputError as error:
                failures.append(Failure(name, model.name, str(error)))
                results.fail(name, model.name, str(error))
                continue
            results.add(name, model.name, problem, result)
    finally:
        encoder.close()
    return failures
