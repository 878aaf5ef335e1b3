"""Photos in the order of their similarity with a query, under one model or several, and their page:
for each query the first photos of every model, side by side.
"""

import contextlib
import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evals.models import Model
from evals.search.folder import Photos
from negclip_jax.common.errors import InputError
from negclip_jax.common.page.template import write_page
from negclip_jax.embeddings.encoder import Encoder

PAGE = "report.html"


def rank(
    models: Sequence[Model], folder: Photos, queries: Sequence[str], *, cache: Path
) -> tuple[list[int], dict[str, np.ndarray]]:
    """As `encoded`; by model the cosines of queries and photos, float32 `[queries, photos]`."""
    kept, features = encoded(models, folder, queries, cache=cache)
    return kept, {name: texts @ images.T for name, (images, texts) in features.items()}


def encoded(
    models: Sequence[Model], folder: Photos, queries: Sequence[str], *, cache: Path
) -> tuple[list[int], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Unit features of the photos that can be read and of queries under each model.

    What cannot be read is added to the folder's `skipped`, what `cache` holds is not encoded again.
    Returns places in `folder.refs` of the photos that were encoded, and by model their features,
    float32 `[photos, D]`, and the queries', `[queries, D]`. Raises InputError where no photo can
    be read.
    """
    found = []
    for model in models:
        with contextlib.closing(
            Encoder(model, folder.refs, queries, folder, cache=cache, given=folder.given)
        ) as encoder:
            pending = encoder.images.pending
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
    features = {}
    for model, (encoder, texts) in zip(models, found, strict=True):
        features[model.name] = encoder.features([refs[i] for i in kept], [])[0], texts
    return kept, features


def ordered(
    scores: Mapping[str, np.ndarray], top: int | None = None
) -> dict[str, list[tuple[int, dict[str, Any]]]]:
    """Places of the `top` scores of each model, ties in their order.

    With `score`, `rank` from 1, and `was`, the rank under the first model where it differs.
    """
    columns: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    before: dict[int, int] = {}
    for model, found in scores.items():
        order = np.argsort(-found, kind="stable").tolist()
        before = before or {place: rank for rank, place in enumerate(order, 1)}
        columns[model] = rows = []
        for rank, place in enumerate(order[:top], 1):
            was = before[place] if before[place] != rank else None
            rows.append((place, {"score": float(found[place]), "rank": rank, "was": was}))
    return columns


def shown(
    folder: Photos, kept: Sequence[int], scores: Mapping[str, np.ndarray], top: int
) -> dict[str, list[dict[str, Any]]]:
    """The first photos, ties by name, under each model's scores `[photos]`; see `ordered`."""
    return {
        model: [{"place": kept[i], "name": folder.refs[kept[i]].path} | row for i, row in rows]
        for model, rows in ordered(scores, top).items()
    }


def write(
    out: Path,
    folder: Photos,
    models: Mapping[str, Mapping[str, Any]],
    queries: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
    *,
    photos: int,
) -> Path:
    """Makes the page in `out`; `queries` are {query: {model: rows of `shown`}}."""
    shown = functools.cache(lambda place: folder.shown(folder.refs[place], out))

    def card(row: Mapping[str, Any]) -> dict[str, Any]:
        url, link = shown(row["place"])
        return {**row, "url": url, "link": link}

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
