"""Evaluators: functions of the parameters that the loop calls now and then.

The loop knows one itself, the loss on validation pairs; `launch.py` hands it the others.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import SupportsFloat

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from negclip_jax.data.images import Preprocessor
from negclip_jax.data.loader import PairLoader
from negclip_jax.data.tokenizer import Tokenizer
from negclip_jax.models.normalisation import l2_normalise
from negclip_jax.runtime import sharding
from negclip_jax.training.objectives import TIE
from negclip_jax.training.step import Objective, affirmative

_SCORES = 2**24  # cosines in memory at a time

# Full tree of parameters, on the devices, to numbers by name.
Evaluator = Callable[[dict], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class EvalContext:
    """What an evaluator may know of the run."""

    graphdef: nnx.GraphDef
    mesh: Mesh
    preprocess: Preprocessor
    tokenizer: Tokenizer


@functools.lru_cache(16)
def _scorer(objective: Objective, mesh: Mesh) -> Callable[[dict, dict], tuple[dict, dict, tuple]]:
    """Metrics of a batch, how many images each counts, and unit features; one for all sources."""

    def score(params: dict, batch: dict) -> tuple[dict, dict, tuple]:
        features = objective.features(params, batch)
        value, metrics = objective.loss_of(params, features, batch)
        text_BxD, has_original_B = affirmative(features[1], batch)
        metrics, weights = metrics | {"loss": value}, {}
        for name in metrics:  # each is a mean over the images that it counts
            counts_B = batch["mask"]
            if name == "foil_accuracy":
                counts_B &= (batch["truth"] < 0).any(axis=1)
            elif name == "image_choice_accuracy":
                counts_B &= batch["has_opposite"].any(axis=1)
            elif name in ("anchor", "distill"):
                counts_B = has_original_B
            weights[name] = counts_B.sum()
        unit = l2_normalise(features[0]), l2_normalise(text_BxD)
        return metrics, weights, (*unit, has_original_B)

    return jax.jit(score, out_shardings=sharding.replicated(mesh))


class ValidationLoss:
    """The training objective on held-out pairs: `loss`, its metrics, and retrieval of originals.

    A contrastive loss depends on its batch, so the batches are fixed: file order, as large as
    `loader.batch_size`, the last one masked. The mean weights pairs equally. What a run forgets
    shows first in `recall_at_1` of the original captions among all held-out pairs. What the images
    allow, `image_features.image_choice_probe`, is the same at each evaluation.
    """

    def __init__(
        self, loader: PairLoader, objective: Objective, mesh: Mesh, probe: float | None = None
    ):
        self._loader, self._mesh, self._probe = loader, mesh, probe
        self._score = _scorer(objective, mesh)

    def __call__(self, params: dict) -> dict[str, float]:
        size = self._loader.batch_size
        rows = sharding.local_rows(self._mesh, size)
        results: list[tuple] = []
        for batch in self._loader.batches(0, self._loader.steps_per_epoch, rows):
            results.append(self._score(params, sharding.to_global(self._mesh, batch)))
            # Read one batch late: the device works while the next is loaded, and keeps no features.
            results[-2:-1] = jax.device_get(results[-2:-1])
        results = jax.device_get(results)
        means = {}
        for name in results[0][0]:
            if batches := [(m[name], w[name]) for m, w, _ in results if w[name]]:
                numbers, weights = np.array(batches, np.float64).T
                means[name] = float(np.average(numbers, weights=weights))
        image, text, counts = map(np.concatenate, zip(*(r[2] for r in results), strict=True))
        kept = np.flatnonzero(counts)
        if len(kept):
            recalls = recall_at_1(image[kept], text[kept], self._loader.examples.image_of[kept])
            names = ("image_to_text_recall_at_1", "text_to_image_recall_at_1")
            means |= zip(names, recalls, strict=True)
        return means if self._probe is None else means | {"image_choice_probe": self._probe}


class MixedValidation:
    """`ValidationLoss` of each source as `SOURCE/NAME`; their means by the sources' shares as NAME.

    A mean is over the sources that have the number.
    """

    def __init__(self, losses: Mapping[str, ValidationLoss], shares: Mapping[str, SupportsFloat]):
        self.losses, self._shares = dict(losses), {k: float(x) for k, x in shares.items()}

    def __call__(self, params: dict) -> dict[str, float]:
        found = {source: loss(params) for source, loss in self.losses.items()}
        means = {}
        for name in dict.fromkeys(name for numbers in found.values() for name in numbers):
            having = [source for source in found if name in found[source]]
            weights = [self._shares[source] for source in having]
            means[name] = float(np.average([found[s][name] for s in having], weights=weights))
        return means | {f"{s}/{name}": x for s in found for name, x in found[s].items()}


def validation_of(
    sources: Iterable[str],
    loaders: Iterable[PairLoader],
    probes: Iterable[float | None],
    objective: Objective,
    mesh: Mesh,
    shares: Mapping[str, SupportsFloat],
) -> Evaluator | None:
    """The validation of a run; None where nothing is held out.

    `sources`: names, "" where there is one that has none, in the order of `loaders` and `probes`;
    `shares`: of those with names.
    """
    held_out = zip(sources, loaders, probes, strict=True)
    losses = {name: ValidationLoss(x, objective, mesh, probe) for name, x, probe in held_out}
    return MixedValidation(losses, shares) if losses and shares else losses.get("")


def recall_at_1(
    image_NxD: np.ndarray, text_NxD: np.ndarray, image_of_N: np.ndarray
) -> tuple[float, float]:
    """Shares of images that find one of their captions first, and of captions their image.

    Each image counts once, however many captions it has. A first place that several share counts
    for as much as the right ones have of it. Of pairs these are unit features, float32, and a
    number, equal for pairs of one image.
    """
    _, first, image_of_N = np.unique(image_of_N, return_index=True, return_inverse=True)
    image_UxD = image_NxD[first]
    own_N = np.sum(image_UxD[image_of_N] * text_NxD, axis=1)
    better_N, tied_N, of_images = np.zeros(len(own_N)), np.zeros(len(own_N)), 0.0
    height = max(1, _SCORES // len(own_N))
    for start in range(0, len(image_UxD), height):
        part = image_UxD[start : start + height]
        scores_RxN = part @ text_NxD.T
        is_own_RxN = image_of_N == np.arange(start, start + len(part))[:, None]
        better_N += np.sum((scores_RxN > own_N + TIE) & ~is_own_RxN, axis=0)
        tied_N += np.sum((np.abs(scores_RxN - own_N) <= TIE) & ~is_own_RxN, axis=0)
        # Of the texts that are as good as the best, those of the image itself.
        is_first_RxN = scores_RxN >= scores_RxN.max(axis=1, keepdims=True) - TIE
        right_R = np.sum(is_first_RxN & is_own_RxN, axis=1)
        of_images += float(np.sum(right_R / is_first_RxN.sum(axis=1)))
    of_texts = float(np.mean((better_N == 0) / (1 + tied_N)))
    return of_images / len(image_UxD), of_texts
