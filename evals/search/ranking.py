"""Photos in the order of their similarity with a query, under one model or several."""

import contextlib
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evals.models import Model
from evals.search.folder import PhotoFolder
from negclip_jax.common.errors import InputError
from negclip_jax.embeddings.encoder import Encoder


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The photos of a folder by their cosine with each query, under one model.

    Attributes:
      model: its name.
      scores: float32 `[queries, photos]`.
      order: int `[queries, photos]`, the most similar photo first; ties by name.
    """

    model: str
    scores: np.ndarray
    order: np.ndarray

    def ranks(self, query: int) -> np.ndarray:
        """Rank of each photo from 1, int `[photos]`."""
        ranks = np.empty(len(self.order[query]), int)
        ranks[self.order[query]] = np.arange(1, len(ranks) + 1)
        return ranks


def rank(
    models: Sequence[Model], folder: PhotoFolder, queries: Sequence[str], *, cache: Path
) -> tuple[list[int], list[Ranking]]:
    """Ranks the photos that can be read.

    What cannot be read is added to the folder's `skipped`, what `cache` holds is not encoded again.
    Returns places in `folder.refs` of the photos that were ranked, and a ranking of them for each
    model. Raises InputError where no photo can be read.
    """
    found = []
    for model in models:
        with contextlib.closing(
            Encoder(model, folder.refs, queries, folder, cache=cache)
        ) as encoder:
            pending, _ = encoder.pending
            logging.info("%s: %s of %s photos to encode", model.name, pending, len(folder.refs))
            if encoder.truncated:
                logging.warning("the query %r is too long and is cut", encoder.truncated[0])
            _, texts = encoder.features([], queries)
            for ref, reason in encoder.unusable_images(folder.refs).items():
                folder.skipped[ref.path] = reason
        found.append((encoder, texts))
    refs, kept = folder.refs, [i for i, r in enumerate(folder.refs) if r.path not in folder.skipped]
    if not kept:
        name, reason = next(iter(folder.skipped.items()))
        raise InputError(
            f"--images={folder.root}: none of its {len(refs):,} photos can be read; {name}: "
            f"{reason}"
        )
    rankings = []
    for model, (encoder, texts) in zip(models, found, strict=True):
        images, _ = encoder.features([refs[i] for i in kept], [])
        scores = texts @ images.T
        order = np.argsort(-scores, axis=1, kind="stable")
        rankings.append(Ranking(model.name, scores, order))
    return kept, rankings
