"""The same benchmarks as evaluators of the training loop.

    python launch.py ... --config.eval.benchmarks=valse,pope --config.eval.data=DIR

Every evaluation logs the headline numbers as `bench/BENCHMARK/METRIC`, and `bench/BENCHMARK/error`
(1 minus the first of them) as something whose smallest value is best, for `checkpoint.best`.
Images are encoded once as long as the vision tower is frozen.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flax import nnx

from evals import registry, runner
from evals.images import DataRoots
from evals.models import Model
from negclip_jax.common import remote, storage
from negclip_jax.common.errors import InputError
from negclip_jax.common.statistics import ties_text
from negclip_jax.data.feature_files import open_features
from negclip_jax.embeddings.store import EmbeddingStore

NAME = "bench"


def evaluators(
    names: Sequence[str], roots: DataRoots, *, cache: Path, allow_subset: bool = False
) -> dict[str, Callable[[Any], Callable[[dict], dict[str, float]]]]:
    """What `training.loop.train` takes as `evaluators`; no names give none.

    Of parameters the one evaluator returns the headline numbers, in [0, 1], by `BENCHMARK/METRIC`.
    Image features are kept over all evaluations, the images' digests in the folder `cache`. Raises
    InputError at once for a file that is missing or wrong.
    """
    if not names:
        return {}
    loaded = runner.load_problems(names, roots, allow_subset=allow_subset)

    def make(context: Any) -> Callable[[dict], dict[str, float]]:
        stores: dict[str, EmbeddingStore] = {}

        def evaluate(params: dict) -> dict[str, float]:
            module = nnx.merge(context.graphdef, params)
            if roots.features is not None:
                roots.features.require_width(module.config.projection_dim)
            model = Model(
                name="training",
                config=module.config,
                params=params,
                # Training may resize faster; the numbers are to be those of the command.
                preprocess=dataclasses.replace(context.preprocess, exact=True),
                tokenizer=context.tokenizer,
                dtype=module.dtype.name,
                facts={},
                features=roots.features,
            )
            numbers: dict[str, float] = {}
            options = {"cache": cache, "in_memory": stores, "mesh": context.mesh}
            with contextlib.closing(runner.encoder_of(model, loaded, roots, **options)) as encoder:
                for name, (benchmark, problem) in loaded.items():
                    left, result = runner.scored(
                        encoder, benchmark, problem, roots, allow_subset=allow_subset
                    )
                    loaded[name] = benchmark, left
                    metrics = [m for m in result.metrics if len(m.values)]
                    shown = [m for m in metrics if m.headline] or metrics[:1]
                    if shown:
                        numbers[f"{name}/error"] = 1 - shown[0].mean
                    for metric in shown:
                        numbers[f"{name}/{metric.name}"] = metric.mean
                        if told := ties_text({"n": len(metric.values), **result.ties(metric)}):
                            logging.warning("%s, %s: %s", name, metric.name, told)
            current = set(model.fingerprints.values())
            for name in [n for n in stores if n.partition("-")[2] not in current]:
                del stores[name]  # of weights that training has left behind
            return numbers

        return evaluate

    return {NAME: make}


def configured(
    *,
    benchmarks: str,
    data: str | None,
    allow_subset: bool,
    workdir: str,
    benchmark_files: str = "",
    features: str | None = None,
) -> dict[str, Callable[[Any], Callable[[dict], dict[str, float]]]]:
    """`evaluators` from the section `eval` of the configuration; lists have commas in between.

    The images' digests are kept in the folder `evals` of `workdir`. Images are looked up by name in
    `features`, a key of the section `data`, if it has all of them, else as photos.
    """
    names = [name.strip() for name in benchmarks.split(",") if name.strip()]
    if names and not data:
        raise InputError(
            "config.eval.benchmarks needs config.eval.data=DIR, with the published files and photos"
        )
    registry.add_files(Path(file.strip()) for file in benchmark_files.split(",") if file.strip())
    roots = DataRoots(tuple(Path(folder) for folder in data.split(",")) if data else ())
    cache = remote.folder_for(storage.path(workdir)) / "evals"
    options = {"cache": cache, "allow_subset": allow_subset}
    if not (names and features):
        return evaluators(names, roots, **options)
    given = dataclasses.replace(roots, features=open_features(features))
    try:
        return evaluators(names, given, **options)
    except InputError as error:
        try:  # photos, as without data.features, for a model that has its own vision tower
            built = evaluators(names, roots, **options)
        except InputError:
            raise InputError(
                f"{error}\nbenchmarks are evaluated on data.features, which takes a pattern or a "
                "folder of several files: add the features of their images"
            ) from None
        logging.info("benchmarks are evaluated on the photos in eval.data: %s", error)
        return built
