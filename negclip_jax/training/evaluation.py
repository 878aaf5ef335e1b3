"""Evaluators: functions of the parameters that the loop calls now and then.

The loop knows one itself, the loss on validation pairs; `launch.py` hands it the others.
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from negclip_jax.data.images import Preprocessor
from negclip_jax.data.loader import PairLoader
from negclip_jax.data.tokenizer import Tokenizer
from negclip_jax.runtime import sharding
from negclip_jax.training.step import Objective

# Full tree of parameters, on the devices, to numbers by name.
Evaluator = Callable[[dict], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class EvalContext:
    """What an evaluator may know of the run."""

    graphdef: nnx.GraphDef
    mesh: Mesh
    preprocess: Preprocessor
    tokenizer: Tokenizer


class ValidationLoss:
    """The training objective on held-out pairs: `loss` and retrieval accuracies within a batch.

    A contrastive loss depends on its batch, so the batches are fixed: file order, as large as
    `loader.batch_size`, the last one masked. The mean weights pairs equally.
    """

    def __init__(self, loader: PairLoader, objective: Objective, mesh: Mesh):
        self._loader, self._mesh = loader, mesh

        def loss(params: dict, batch: dict) -> tuple[dict, dict]:
            value, metrics = objective.loss(params, batch)
            metrics, weights = metrics | {"loss": value}, {}
            for name in metrics:  # each is a mean over the images that it counts
                has_foil = (batch["truth"] < 0).any(axis=1) if name == "foil_accuracy" else True
                weights[name] = (batch["mask"] & has_foil).sum()
            return metrics, weights

        self._loss = jax.jit(loss, out_shardings=sharding.replicated(mesh))

    def __call__(self, params: dict) -> dict[str, float]:
        size = self._loader.batch_size
        rows = sharding.local_rows(self._mesh, size)
        results = []
        for batch in self._loader.batches(0, self._loader.steps_per_epoch, rows):
            results.append(self._loss(params, sharding.to_global(self._mesh, batch)))
        # Read at the end: the device works while the next batch is loaded.
        values = jax.device_get(results)
        means = {}
        for name in values[0][0]:
            batches = [(m[name], w[name]) for m, w in values if w[name]]
            if batches:
                numbers, weights = np.array(batches, np.float64).T
                means[name] = float(np.average(numbers, weights=weights))
        return means
