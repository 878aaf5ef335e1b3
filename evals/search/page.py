"""`report.html` of a search: for each query the first photos of every model, side by side."""

import functools
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.search.folder import PhotoFolder
from evals.search.ranking import Ranking
from negclip_jax.common.page.template import write_page
from negclip_jax.common.page.thumbnails import file_thumbnail

PAGE = "report.html"


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
