"""`report.html` of a search: for each query the first photos of every model, side by side."""

import os
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evals import pages, plots
from evals.gallery import Thumbnails
from evals.models import Model
from evals.search.folder import PhotoFolder
from evals.search.ranking import Ranking

PAGE, _TEMPLATE = "report.html", "search.html"
_SKIPPED_SHOWN = 50


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
    kept: Sequence[int],
    models: Sequence[Model],
    rankings: Sequence[Ranking],
    queries: Sequence[str],
    *,
    top: int,
) -> Path:
    """Makes the page in `out`. It holds small copies of the photos, and links to the photos."""
    thumbnails = Thumbnails(folder)

    def card(row: dict[str, Any]) -> dict[str, Any]:
        ref = folder.refs[row["place"]]
        path = os.path.relpath(folder.path(ref), out)
        link = urllib.parse.quote(Path(path).as_posix().encode("utf-8", "surrogateescape"))
        return row | {"uri": thumbnails.of(ref), "link": link, "name": printable(row["name"])}

    sections = [
        {
            "query": query,
            "columns": [
                [card(row) for row in column]
                for column in shown(folder, kept, rankings, number, top)
            ],
        }
        for number, query in enumerate(queries)
    ]
    page = pages.render(
        _TEMPLATE,
        models=[
            {"name": model.name, "colour": plots.colour(i), "facts": model.facts}
            for i, model in enumerate(models)
        ],
        sections=sections,
        photos=len(kept),
        folder=printable(str(folder.root)),
        skipped=[
            {"name": printable(name), "reason": printable(reason)}
            for name, reason in list(folder.skipped.items())[:_SKIPPED_SHOWN]
        ],
        more_skipped=max(0, len(folder.skipped) - _SKIPPED_SHOWN),
    )
    (out / PAGE).write_text(page, encoding="utf-8")
    return out / PAGE


def printable(name: str) -> str:
    """A file name that may hold bytes of no encoding, with marks in their place."""
    return name.encode("utf-8", "replace").decode("utf-8")
