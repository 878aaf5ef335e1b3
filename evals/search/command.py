"""The command behind `python -m evals.search`, once its arguments are well formed."""

import argparse
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evals import models
from evals.command import require_writable, use_compilation_cache
from evals.search import page
from evals.search.folder import PhotoFolder
from evals.search.ranking import rank
from negclip_jax.common import storage
from negclip_jax.common.errors import InputError
from negclip_jax.runtime.timing import human_seconds

RESULTS = "results.json"
_SKIPPED_SHOWN = 5
_NAME = 44  # characters of a file name in the terminal


def run(args: argparse.Namespace) -> None:
    """Ranks and shows; see `evals.search` for the arguments. Raises InputError."""
    started = time.monotonic()
    if not all(query.strip() for query in args.queries):
        raise InputError("a query is empty: say what to look for, in quotes")
    if args.top < 1:
        raise InputError(f"--top={args.top}: at least one photo has to be shown")
    require_writable(args.out)
    _require_own(args.out)
    folder = PhotoFolder(args.images)
    cache = args.cache or args.out / "embeddings"
    use_compilation_cache(cache)
    sources = [text for text in (args.base, args.model) if text]
    loaded = models.load_all(
        sources,
        dtype=args.dtype,
        crop=args.crop,
        tokenizer=args.tokenizer,
        activation=args.activation,
    )
    queries = list(dict.fromkeys(args.queries))
    kept, rankings = rank(loaded, folder, queries, cache=cache)
    found = {}
    for number, query in enumerate(queries):
        columns = page.shown(folder, kept, rankings, number, args.top)
        found[query] = {r.model: rows for r, rows in zip(rankings, columns, strict=True)}
    document = {
        "images": str(folder.root),
        "photos": len(kept),
        "models": {model.name: models.described(model) for model in loaded},
        "skipped": folder.skipped,
        "queries": found,
    }
    # ASCII, because a file name may hold bytes that are no UTF-8.
    storage.write_json(args.out / RESULTS, document, ensure_ascii=True)
    page.write(args.out, folder, document["models"], found, photos=len(kept))
    for query, columns in found.items():
        print(table_text(query, columns))
    _warn(folder)
    seconds = human_seconds(time.monotonic() - started)
    logging.info("%s photos in %s; open %s", f"{len(kept):,}", seconds, args.out / page.PAGE)


def _require_own(out: Path) -> None:
    """Raises InputError where `out` holds the results of another command."""
    path = out / RESULTS
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"queries": {}}
    except ValueError:
        found = None
    if not isinstance(found, dict) or "queries" not in found:
        raise InputError(f"{path} is not of a search and would be replaced: give another --out")


def table_text(query: str, columns: dict[str, Sequence[dict[str, Any]]]) -> str:
    """The first photos of every model for a terminal, a line a rank."""
    lines = [f"\n{page.printable(query)}"]
    width = _NAME + 22
    lines.append("     " + "".join(name.ljust(width) for name in columns).rstrip())
    for rows in zip(*columns.values(), strict=True):
        cells = [
            f"{row['score']:.3f} {_short(row['name'])}{_moved(row)}".ljust(width) for row in rows
        ]
        lines.append(f"{rows[0]['rank']:4d} " + "".join(cells).rstrip())
    return "\n".join(lines)


def _moved(row: dict[str, Any]) -> str:
    return f" (was {row['was']:,})" if row["was"] else ""


def _short(name: str) -> str:
    name = page.printable(name)
    return name if len(name) <= _NAME else f"…{name[1 - _NAME :]}"


def _warn(folder: PhotoFolder) -> None:
    if folder.skipped:
        listed = [f"{page.printable(n)}: {r}" for n, r in folder.skipped.items()][:_SKIPPED_SHOWN]
        more = len(folder.skipped) - len(listed)
        logging.warning(
            "%d left out: %s%s",
            *(len(folder.skipped), "; ".join(listed), f"; and {more} more" if more else ""),
        )
