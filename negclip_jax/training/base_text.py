"""What the base model's text tower says of the captions that a run must not forget."""

import dataclasses

import numpy as np
from etils import epath
from jax.sharding import Mesh

from negclip_jax.common.errors import InputError
from negclip_jax.data.loader import PairLoader
from negclip_jax.data.packing import Chosen, Joined
from negclip_jax.data.tokenizer import Tokenizer
from negclip_jax.embeddings import encoder
from negclip_jax.embeddings.store import MappedRows
from negclip_jax.models.clip import CLIPConfig
from negclip_jax.runtime import multihost, sharding


def use_base_text(
    workdir: epath.Path,
    loaders: list[PairLoader],
    tokenizer: Tokenizer,
    model: tuple[CLIPConfig, dict, str],
    mesh: Mesh,
    *,
    resumes: bool,
    is_frozen: bool,
    anchor_weight: float,
    distill_weight: float,
) -> list[PairLoader]:
    """The loaders, with the base's features of each original caption where a term needs them.

    They are computed before the first step and belong to the run, in its directory: later the
    base's weights are gone.

    Args:
      workdir: of the run.
      loaders: of training and validation pairs.
      tokenizer: of the model.
      model: sizes, parameters on the devices of `mesh`, and compute type.
      mesh: over which captions are encoded.
      resumes: whether the parameters are those of a checkpoint, no longer the base's.
      is_frozen: whether nothing that an image passes through is trained.
      anchor_weight, distill_weight: keys of the section `train`.

    Raises InputError where a run that resumes has lost them, and for distillation of a model whose
    vision tower is trained: there is nothing to compare with.
    """
    if not (anchor_weight or distill_weight):
        return loaders
    if distill_weight and not is_frozen:
        raise InputError(
            f"train.distill_weight={distill_weight} compares with the base on the same images, so "
            "optim.freeze must hold the whole vision tower; train.anchor_weight needs no images"
        )
    used = [x.examples for x in loaders]
    tokens = Joined([Chosen(x.tokens, x.original_index_N) for x in used])
    features = kept_features("text", workdir, tokens, tokenizer, model, mesh, resumes=resumes)
    places = np.split(features.places, np.cumsum([len(x) for x in used[:-1]]))
    parts = [dataclasses.replace(features, places=p) for p in places]
    return [dataclasses.replace(x, base_text=p) for x, p in zip(loaders, parts, strict=True)]


def kept_features(
    name: str,
    workdir: epath.Path,
    tokens: Joined,
    tokenizer: Tokenizer,
    model: tuple[CLIPConfig, dict, str],
    mesh: Mesh,
    *,
    resumes: bool,
) -> MappedRows:
    """The base's features of texts, float32 `[N, D]`, kept under a name in the run's directory.

    Raises InputError where a run that resumes has lost them.
    """
    path = workdir / "base_text" / f"{name}.rows"
    if not resumes:  # what a killed run has begun may be of other weights
        if sharding.is_main_process() and path.exists():
            path.rmtree() if path.is_dir() else path.unlink()
        multihost.barrier("former base features removed")
    return encoder.text_features(tokens, tokenizer, path, model, mesh, computes=not resumes)
