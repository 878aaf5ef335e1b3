"""What a run writes down about itself, how far it is, and what to ask again.

`manifest.json` explains the pairs years later; `status` reads the run's files without touching
them; `retry` makes the next run ask again.
"""

import collections
import contextlib
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from data_gen.annotations import NOT_ANNOTATED
from data_gen.engines.cache import Cache, read_statistics
from data_gen.records import count_values, read_manifest, read_rows, table_paths
from data_gen.runner import read_marks, remove_others
from negclip_jax.common.atomic_files import locked
from negclip_jax.common.chat.messages import NO_ANSWER, is_transient
from negclip_jax.common.errors import InputError

# Columns that say what a row ended with.
_ENDED_WITH = {
    "candidates": "reject_reason",
    "verdicts": "error_code",
    "pairs": "reasons",
    "rejects": "code",
}


def counts(run: Path) -> dict[str, int]:
    """Rows of all tables, images and accepted pairs, over the finished shards."""
    total: collections.Counter = collections.Counter()
    for mark in read_marks(run):
        total.update(mark["rows"])
    return dict(total)


def status(run: Path) -> str:
    """Lines to print: progress, funnel, errors, calls and tokens."""
    manifest, done = read_manifest(run), counts(run)

    def reasons(table: str, column: str) -> str:
        found = count_values(run, table, column)
        del found[None]
        shown = ", ".join(f"{value} {number}" for value, number in found.most_common(8))
        return f" ({shown})" if shown else ""

    lines = [
        f"run {manifest['run_id']}: {manifest['config']['pipeline']}, "
        + ", ".join(f"{stage} by {who}" for stage, who in manifest["roles"].items()),
        f"images      {done.get('images', 0)} of {manifest['images']} in "
        f"{len(read_marks(run))} finished shards",
        f"captions    {done.get('items', 0)} of {manifest['captions']}",
        f"candidates  {done.get('candidates', 0)}{reasons('candidates', 'reject_reason')}",
        f"verdicts    {done.get('verdicts', 0)}{reasons('verdicts', 'verdict')}",
        f"rewrites    {done.get('pairs', 0)}, {done.get('accepted', 0)} accepted",
        f"rejects     {done.get('rejects', 0) + manifest['ingest_rejects']}"
        f"{reasons('rejects', 'code')}",
    ]
    if unknown := left_out(run).get(NOT_ANNOTATED):
        lines.append(
            f"unknown     {unknown} photos are not in {manifest['config']['input']['instances']}"
        )
    for stage, calls in read_statistics(run / "cache.sqlite").items():
        cached = f", {calls['cached_tokens']} of them cached" if calls["cached_tokens"] else ""
        lines.append(
            f"{stage:<11} {calls['calls']} calls, {calls['prompt_tokens']} prompt tokens{cached}, "
            f"{calls['completion_tokens']} completion tokens, {calls['latency_ms_p50']} ms at p50, "
            f"{calls['latency_ms_p95']} ms at p95"
        )
    if errors := error_codes(run):
        shown = ", ".join(f"{code} ({number})" for code, number in errors.most_common())
        lines.append(f"errors      {shown}; `retry --only CODE` asks again")
    last = "in progress, or killed in its first session"
    if ended := sessions(run):
        last = "{status} at {time}, after {seconds} s".format(**ended[-1])
    return "\n".join([*lines, f"last        {last}"])


def sessions(run: Path) -> list[dict[str, Any]]:
    """`status`, `time`, `seconds` and, of an error, `message` of the sessions that ended, in order,
    but of damaged lines."""
    ended = []
    with contextlib.suppress(FileNotFoundError):
        for line in (run / "sessions.jsonl").read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                known = {key: row[key] for key in ("status", "time", "seconds")}
                ended.append(known | {"message": row.get("message")})
    return ended


def error_codes(run: Path) -> collections.Counter:
    """Requests that ended in an error, by code, over candidates, verdicts and rewrites."""
    calls = read_statistics(run / "cache.sqlite").values()
    errors = {code for stage in calls for code in stage["errors"]}.union(NO_ANSWER)
    ended = ("pairs", "candidates", "verdicts")
    codes = sum((count_values(run, t, _ENDED_WITH[t]) for t in ended), collections.Counter())
    return collections.Counter({c: n for c, n in codes.items() if c in errors or is_transient(c)})


def left_out(run: Path) -> collections.Counter[str]:
    """Photos and captions that the run could not use, by the reason."""
    found = count_values(run, "rejects", "code")
    tables = ("candidates", "verdicts")
    for part in sorted({path.name for table in tables for path in table_paths(run, table)}):
        unknown = {
            image
            for table in tables
            for image, code in read_rows(run, table, ["image_id", _ENDED_WITH[table]], part)
            if code == NOT_ANNOTATED
        }
        found += collections.Counter({NOT_ANNOTATED: len(unknown)})
    return found


def why_no_pair(run: Path) -> str:
    """What became of everything, where nothing became a pair."""
    steps = {
        "left out": left_out(run),
        "candidates": count_values(run, "candidates", "reject_reason"),
        "verdicts": count_values(run, "verdicts", "verdict"),
        "rewrites": count_values(run, "pairs", "reasons"),
    }
    told = []
    for step, found in steps.items():
        if listed := ", ".join(f"{name or 'usable'} {n:,}" for name, n in found.most_common(5)):
            told.append(f"{step}: {listed}")
    return "; ".join(told) or "no object was proposed"


def forget_errors(run: Path, code: str) -> str:
    """Makes the next run ask again what ended with `code`; returns a line to print.

    The answers of the code leave the cache and the shards that have it lose their marks. Raises
    InputError for a code that nothing ended with.
    """
    with locked(run), contextlib.closing(Cache(run / "cache.sqlite")) as cache:
        touched = set()
        for table, column in _ENDED_WITH.items():
            for path in table_paths(run, table):
                values = pq.read_table(path, columns=[column]).column(column).to_pylist()
                if any(code in (v if isinstance(v, list) else (v,)) for v in values):
                    touched.add(path.stem)
        forgotten = cache.forget(errors=code)
        if not touched and not forgotten:
            raise InputError(f"nothing in {run} ended with {code!r}; `status` lists the codes")
        for stem in touched:
            (run / "done" / f"{stem}.json").unlink(missing_ok=True)
    return f"{forgotten} cached errors forgotten, {len(touched)} shards to do again"


def forget_stage(run: Path, stage: str) -> str:
    """Makes the next run ask everything of a stage again; returns a line to print.

    Raises InputError for a stage that asked nothing.
    """
    with locked(run), contextlib.closing(Cache(run / "cache.sqlite")) as cache:
        forgotten = cache.forget(stage=stage)
        if not forgotten:
            known = ", ".join(read_statistics(run / "cache.sqlite")) or "nothing"
            raise InputError(f"{run} has no answers of stage {stage!r}; it has those of: {known}")
        remove_others(run, [])
    return f"{forgotten} answers forgotten"
