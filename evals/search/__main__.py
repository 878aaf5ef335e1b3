"""Ranks a folder of photos by their similarity with a text, before and after fine-tuning.

    python -m evals.search --model=base=openai/clip-vit-base-patch32 --model=tuned=runs/b32 \\
        --images=photos "a dog without a leash" "a street with no cars"
    python -m evals.search --serve --model=base=openai/clip-vit-base-patch32 \\
        --model=tuned=runs/b32 --images=photos     # the same as a page that answers at once

Prints the first photos with their cosines and writes report.html, a page that shows them side by
side, and results.json into --out. Embeddings are kept there and found again by the content of a
photo and the weights, so that the next search encodes what is new. Photos are looked for at any
depth, hidden folders aside; what cannot be read is listed and left out, and links that lead out of
the folder are not followed. With --features=FILE no photo is encoded, and none need be there.
--serve opens a page on this machine instead: type a query, drop a photo to rank captions of it, mix
the weights of two models.
"""

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evals import command_line
from negclip_jax.common.arguments import warn_renamed
from negclip_jax.common.errors import InputError, one_line, say
from negclip_jax.common.problems import first
from negclip_jax.common.tables import aligned

RESULTS = "results.json"
_SKIPPED_SHOWN = 5
_NAME = 44  # characters of a file name in the terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0, 1 after a user error, 130 after Ctrl-C."""
    stopped = "stopped; what was encoded is kept, and the same command continues"
    less = command_line.LESS_MEMORY
    return command_line.execute(_parser(), run, argv, stopped=stopped, needs_less=less)


def run(args: argparse.Namespace) -> None:
    """Ranks, writes and shows. Raises InputError."""
    from evals import models
    from evals.results import read_earlier
    from evals.search import ranking
    from evals.search.ranking import photos_of
    from negclip_jax.common import storage
    from negclip_jax.common.progress import human_seconds
    from negclip_jax.data.feature_files import open_features

    started = time.monotonic()
    if args.top < 1:
        raise InputError(f"--top={args.top}: at least one photo has to be shown")
    if args.base:
        warn_renamed("--base", "the first --model")
        args.model.insert(0, args.base)
    if args.serve:
        from negclip_jax.common import extras

        extras.require("starlette", extra="serve", why="the live page")
        extras.require("uvicorn", extra="serve", why="the live page")
        from evals.search import serve

        return serve.run(args)
    if not args.queries:
        raise InputError("there is no query: say what to look for, in quotes, or give --serve")
    if not all(query.strip() for query in args.queries):
        raise InputError("a query is empty: say what to look for, in quotes")
    command_line.require_writable(args.out)
    path = args.out / RESULTS
    try:
        read_earlier(path, ("queries",), "")
    except InputError:
        raise InputError(
            f"{path} is not of a search and would be replaced: give another --out"
        ) from None
    args.features = open_features(args.features) if args.features else None
    folder = photos_of(args.images, args.features)
    cache = command_line.embedding_cache(args)
    loaded = command_line.load_models(args.model, args)
    queries = list(dict.fromkeys(args.queries))
    kept, scores = ranking.rank(loaded, folder, queries, cache=cache)
    found = {}
    for number, query in enumerate(queries):
        of_query = {model: rows[number] for model, rows in scores.items()}
        found[query] = ranking.shown(folder, kept, of_query, args.top)
    document = {
        "images": str(folder.root),
        "photos": len(kept),
        "models": {model.name: models.described(model) for model in loaded},
        "skipped": folder.skipped,
        "queries": found,
    }
    # ASCII, because a file name may hold bytes that are no UTF-8.
    storage.write_json(args.out / RESULTS, document, ensure_ascii=True)
    ranking.write(args.out, folder, document["models"], found, photos=len(kept))
    for query, columns in found.items():
        say(table_text(query, columns))
    if folder.skipped:
        reasons = [f"{one_line(name)}: {reason}" for name, reason in folder.skipped.items()]
        listed = first(reasons, _SKIPPED_SHOWN, separator="; ")
        logging.warning("%d left out: %s", len(reasons), listed)
    seconds = human_seconds(time.monotonic() - started)
    logging.info("%s photos in %s; open %s", f"{len(kept):,}", seconds, args.out / ranking.PAGE)


def table_text(query: str, columns: dict[str, Sequence[dict[str, Any]]]) -> str:
    """The first photos of every model for a terminal, a line a rank."""

    def cell(row: dict[str, Any]) -> str:
        name = one_line(row["name"])
        half = _NAME // 2  # both ends are kept: the folder, and the number with the suffix
        short = name if len(name) <= _NAME else f"{name[: half - 1]}…{name[-half:]}"
        moved = f" (was {row['was']:,})" if row["was"] else ""
        return f"{row['score']:.3f} {short}{moved}"

    lines = [["", *columns]]
    for rows in zip(*columns.values(), strict=True):
        lines.append([f"{rows[0]['rank']:4d}", *map(cell, rows)])
    return f"\n{one_line(query)}\n{aligned(lines)}"


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("evals.search", __doc__)
    parser.needed = (("--images", "--features"), ("TEXT", "--serve"))
    add = parser.add_argument
    help_ = "what to look for, each in quotes; examples on the page of --serve"
    add("queries", nargs="*", metavar="TEXT", help=help_)
    help_ = "as in python -m evals; may be repeated: later ones are compared with the first"
    add("--model", action="append", required=True, metavar="[NAME=]PATH", help=help_)
    add("--base", help=argparse.SUPPRESS)  # what the first of two --model was called before
    help_ = "folder of photos, or wds:TARS, parquet:FILES, arrayrecord:FILES"
    add("--images", metavar="PHOTOS", help=help_)
    add("--top", type=int, default=24, metavar="N", help="photos to show; default: %(default)s")
    help_ = "folder to write into; default: %(default)s"
    add("--out", type=Path, default=Path("runs/search"), metavar="DIR", help=help_)
    add = parser.add_argument_group("live page").add_argument
    add("--serve", action="store_true", help="answer on a page in the browser until Ctrl-C")
    help_ = "other than loopback: seen by others; default: %(default)s"
    add("--host", default="127.0.0.1", help=help_)
    add("--port", type=int, default=8765, help="0 for a free one; default: %(default)s")
    add("--open", action="store_true", help="open the page in the browser")
    shared = ("--features", "--cache", "--dtype", "--crop", "--activation", "--tokenizer")
    command_line.add_shared(parser, *shared)
    return parser


if __name__ == "__main__":
    command_line.exit_with(main)
