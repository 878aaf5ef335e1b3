"""Decides whether a run reads cached image features, and gives them to its loaders."""

import dataclasses
import logging

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from negclip_jax.common import linear_probe, storage
from negclip_jax.common.errors import InputError
from negclip_jax.data.feature_files import ImageFeatures
from negclip_jax.data.images import ImageSource
from negclip_jax.data.loader import CachedFeatures, PairLoader
from negclip_jax.embeddings import encoder
from negclip_jax.models.clip import CLIPConfig
from negclip_jax.runtime import multihost

_PROBED_OBJECTS, _PROBED_PHOTOS = 100, 10_000  # at most: a fit takes a fraction of a second
_LEAST_OF_KIND = 8  # photos that show an object, and that lack it, to fit a probe on


def are_constant(trainable: dict) -> bool:
    """Whether nothing that an image passes through is trained."""
    return not any(np.any(leaf) for leaf in jax.tree.leaves(encoder.of_tower("image", trainable)))


def use_cache(
    workdir: epath.Path,
    loaders: list[PairLoader],
    model: tuple[CLIPConfig, dict, str],
    mesh: Mesh,
    *,
    cache_features: bool,
    cache_dir: str,
) -> list[PairLoader]:
    """The loaders, reading cached features; builds what is missing. Unchanged where it is off.

    The first is of training pairs, the others of validation pairs over the same images. `model` is
    sizes, parameters on the devices of `mesh`, and compute type.

    Raises InputError where more images cannot be read than `max_bad_images` allows, and for
    features of a file that are not as wide as the text's.
    """
    loader, source = loaders[0], loaders[0].images
    names, failed = loader.examples.photos, "could not be read"
    if isinstance(source, ImageFeatures):
        source.require_width(model[0].projection_dim)
        rows = source.rows(names)
        features, unreadable = source.features[rows], source.unusable[rows]
        failed = f"have no feature in {source.path} that can be used"
        logging.info(
            "image features of %s images come from %s, of the model %s",
            *(f"{len(rows):,}", source.path, source.model or "that it does not name"),
        )
    elif cache_features:
        features, unreadable = encoder.image_features(
            names,
            *(source, loader.preprocess),
            storage.path(cache_dir.format(workdir=workdir)),
            model,
            mesh,
            threads=loader.threads,
        )
    else:
        return loaders
    bad = [names[i] for i in np.flatnonzero(unreadable)]
    if len(bad) > loader.max_bad_images * len(names):
        raise InputError(
            f"{len(bad)} of {len(names)} images {failed}, more than "
            f"data.max_bad_images={loader.max_bad_images} allows: {', '.join(bad[:5])}"
        )
    cached = CachedFeatures(features, unreadable)
    return [dataclasses.replace(x, cached=cached) for x in loaders]


def check_source(source: ImageSource, checkpoint: str, *, is_frozen: bool) -> None:
    """InputError where features of a file are to be trained; a warning of another model's name."""
    if not isinstance(source, ImageFeatures):
        return
    if not is_frozen:
        raise InputError(
            "data.features holds what a frozen vision tower computed: optim.freeze must hold the "
            "whole vision tower and its projection"
        )
    if source.model and source.model.rstrip("/") != checkpoint.rstrip("/"):
        logging.warning(
            "%s: features of the model %s, and model.checkpoint=%s: they must be the same model's",
            *(source.path, source.model, checkpoint),
        )


def show_opposites(
    loaders: list[PairLoader], weight: float | None
) -> tuple[list[PairLoader], list[float | None], float]:
    """The loaders, which with a weight of `objectives.image_choice_loss` show what it compares.

    Unchanged, with a warning, where there is nothing to compare.

    Args:
      loaders: of training, and of what is held out.
      weight: None leaves it to what the images allow: 1 + 8 (1 - p), to one decimal, of the mean p
        of the probes; 1 where there are none. Where images tell all, texts that are compared on one
        image teach as much. Where they do not, these are learnt by heart on the photos of training,
        and what a text says of two images less so. Fitted to two worlds of the quickstart, in which
        p is 0.997 and 0.76 to 0.82.

    Returns the loaders, `image_choice_probe` of each that is held out, and the weight, in all
    processes that of the first.
    """
    if weight == 0:
        return loaders, [None] * len(loaders[1:]), weight
    missing = []
    if loaders[0].examples.statements is None:
        missing.append("texts that are known to be true or false of images: data.statements")
    if loaders[0].cached is None:
        missing.append("features of further images: a frozen vision tower, and data.cache_features")
    if missing:
        logging.warning("train.image_choice_weight has no effect without %s", "; ".join(missing))
        return loaders, [None] * len(loaders[1:]), 0.0
    loaders = [dataclasses.replace(x, shows_opposites=True) for x in loaders]
    probes = [image_choice_probe(x) for x in loaders[1:]]
    if weight is None:
        known = [p for p in probes if p is not None]
        weight = round(1 + 8 * (1 - float(np.mean(known))), 1) if known else 1.0
        weight = float(multihost.from_main("image choice weight", weight))
        logging.info("train.image_choice_weight is %s by what the images allow", weight)
    return loaders, probes, weight


def image_choice_probe(loader: PairLoader) -> float | None:
    """What a frozen image side allows `objectives.image_choice_loss` on held-out photos.

    Linear probes of single objects, fitted on the photos that are trained on, choose between two
    held-out ones: the mean over objects of how often they are right. A text scores photos by an
    inner product too, so that validation's `image_choice_accuracy` can be held against it: below it
    a run has something left to learn, at it longer training only fits its own photos.

    `loader`: of validation pairs. None where the statements name too few objects.
    """
    known, stored = loader.examples.statements, loader.cached
    assert known is not None and stored is not None
    assert known.opposite_images is not None, "those of held-out photos, see `compared_among`"
    presence = known.presence()
    image, thing, is_there = (x[~stored.unreadable[presence[0]]] for x in presence)
    is_held = known.opposite_images[image]
    things, counts = np.unique(thing[is_held], return_counts=True)
    found, weights = [], []
    for k in things[np.argsort(-counts, kind="stable")][:_PROBED_OBJECTS]:
        is_fitted = np.flatnonzero((thing == k) & ~is_held)
        is_fitted = is_fitted[:: -(-len(is_fitted) // _PROBED_PHOTOS) or 1]
        is_asked = np.flatnonzero((thing == k) & is_held)
        least = [np.bincount(is_there[rows], minlength=2).min() for rows in (is_fitted, is_asked)]
        if least[0] < _LEAST_OF_KIND or not least[1]:
            continue
        fitted, asked = (
            linear_probe.unit(stored.features[image[rows]]) for rows in (is_fitted, is_asked)
        )
        weights_Dx1, _ = linear_probe.fit(fitted, is_there[is_fitted][:, None])
        found.append(linear_probe.choice_accuracy(asked @ weights_Dx1[:, 0], is_there[is_asked]))
        weights.append(len(is_asked))
    if not found:
        return None
    mean = float(np.average(found, weights=weights))
    logging.info(
        "linear probes of %d objects choose right between two held-out photos in %.1f %%: what the "
        "image side allows val/image_choice_accuracy",
        *(len(found), 100 * mean),
    )
    return mean
