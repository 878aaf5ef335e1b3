"""Photos in the order of their similarity with a query, under one model or several, and their page:
for each query the first photos of every model, side by side.
"""

import contextlib
import dataclasses
import functools
import logging
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evals.models import Model
from evals.search.folder import PhotoFolder
from negclip_jax.common.errors import InputError
from negclip_jax.common.page.template import write_page
from negclip_jax.common.page.thumbnails import file_thumbnail
from negclip_jax.embeddings.encoder import Encoder

PAGE = "report.html"


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


def shown(
    folder: PhotoFolder, kept: Sequence[int], rankings: Sequence[Ranking], query: int, top: int
) -> list[list[dict[str, Any]]]:
    """The first photos of each model: `place` in `folder.refs`, `name`, `score`, `rank`, and `was`,
    the rank under the first model where it differs.
    """
    before = rankings[0].ranks(query)
    columns = []
    for ranking in rankings:
        column = []
        for rank, photo in enumerate(ranking.order[query][:top].tolist(), 1):
            column.append(
                {
                    "place": kept[photo],
                    "name": folder.refs[kept[photo]].path,
                    "score": float(ranking.scores[query, photo]),
                    "rank": rank,
                    "was": int(before[photo]) if before[photo] != rank else None,
                }
            )
        columns.append(column)
    return columns


def write(
    out: Path,
    folder: PhotoFolder,
    models: Mapping[str, Mapping[str, Any]],
    queries: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
    *,
    photos: int,
) -> Path:
    """Makes the page in `out`, with small copies of the photos and links to them.

    Args:
      models: `facts` of each, by name.
      queries: {query: {model: rows of `shown`}}.
      photos: how many were ranked.
    """
    photo_url = functools.cache(file_thumbnail)

    def card(row: Mapping[str, Any]) -> dict[str, Any]:
        file = folder.path(folder.refs[row["place"]])
        path = Path(os.path.relpath(file, out)).as_posix()
        link = urllib.parse.quote(path.encode("utf-8", "surrogateescape"))
        return {**row, "url": photo_url(file), "link": link}

    return write_page(
        out / PAGE,
        Path(__file__).with_name("page.html"),
        models=models,
        queries={
            query: {name: [card(row) for row in rows] for name, rows in columns.items()}
            for query, columns in queries.items()
        },
        photos=photos,
        folder=folder.root,
        skipped=list(folder.skipped.items()),
    )
