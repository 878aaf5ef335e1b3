"""Decides whether a run reads cached image features, and gives them to its loaders."""

import dataclasses
import logging

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from negclip_jax.common import storage
from negclip_jax.common.errors import InputError
from negclip_jax.data.loader import CachedFeatures, PairLoader
from negclip_jax.embeddings import encoder
from negclip_jax.models.clip import CLIPConfig


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

    Args:
      workdir: of the run.
      loaders: of training pairs, and of validation pairs over the same images.
      model: sizes, parameters on the devices of `mesh`, and compute type.
      mesh: over which images are encoded.
      cache_features, cache_dir: keys of the section `data`.

    Raises InputError where more images cannot be read than `max_bad_images` allows.
    """
    if not cache_features:
        return loaders
    loader = loaders[0]
    names = loader.examples.photos
    features, unreadable = encoder.image_features(
        names,
        *(loader.images, loader.preprocess),
        storage.path(cache_dir.format(workdir=workdir)),
        model,
        mesh,
        threads=loader.threads,
    )
    bad = [names[i] for i in np.flatnonzero(unreadable)]
    if len(bad) > loader.max_bad_images * len(names):
        raise InputError(
            f"{len(bad)} of {len(names)} images could not be read, more than "
            f"data.max_bad_images={loader.max_bad_images} allows: {', '.join(bad[:5])}"
        )
    cached = CachedFeatures(features, unreadable)
    return [dataclasses.replace(x, cached=cached) for x in loaders]


def show_opposites(loaders: list[PairLoader], weight: float) -> list[PairLoader]:
    """The loaders, which with a weight of `objectives.image_choice_loss` show what it compares.

    Unchanged, with a warning, where there is nothing to compare.
    """
    if not weight:
        return loaders
    missing = []
    if loaders[0].examples.statements is None:
        missing.append("texts that are known to be true or false of images: data.statements")
    if loaders[0].cached is None:
        missing.append("features of further images: a frozen vision tower, and data.cache_features")
    if missing:
        logging.warning("train.image_choice_weight has no effect without %s", "; ".join(missing))
        return loaders
    return [dataclasses.replace(x, shows_opposites=True) for x in loaders]
