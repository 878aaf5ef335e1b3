"""How far a run is, read from its files without touching them; and what failed, for `retry`."""

import collections
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from data_gen import shards
from data_gen.engines.cache import Cache, read_statistics
from data_gen.manifest import counts, read_manifest
from data_gen.records import read_table, table_paths
from negclip_jax.common.atomic_files import locked
from negclip_jax.common.chat.messages import is_transient
from negclip_jax.common.errors import InputError


def status(run: Path) -> str:
    """Lines to print: progress, funnel, errors, calls and tokens."""
    manifest = read_manifest(run)
    done = counts(run)
    lines = [
        f"run {manifest['run_id']}: {manifest['config']['pipeline']}, "
        + ", ".join(f"{stage} by {who}" for stage, who in manifest["roles"].items()),
        f"images      {done.get('images', 0)} of {manifest['images']} in "
        f"{len(shards.read_marks(run))} finished shards",
        f"captions    {done.get('items', 0)} of {manifest['captions']}",
        f"candidates  {done.get('candidates', 0)}{_reasons(run, 'candidates', 'reject_reason')}",
        f"verdicts    {done.get('verdicts', 0)}{_reasons(run, 'verdicts', 'verdict')}",
        f"rewrites    {done.get('pairs', 0)}, {done.get('accepted', 0)} accepted",
        f"rejects     {done.get('rejects', 0) + manifest['ingest_rejects']}"
        f"{_reasons(run, 'rejects', 'code')}",
    ]
    for stage, calls in read_statistics(run / "cache.sqlite").items():
        lines.append(_calls(stage, calls))
    errors = error_codes(run)
    if errors:
        shown = ", ".join(f"{code} ({number})" for code, number in errors.most_common())
        lines.append(f"errors      {shown}; `retry --only CODE` asks again")
    return "\n".join([*lines, f"last        {_last_session(run)}"])


def _reasons(run: Path, table: str, column: str) -> str:
    values = read_table(run, table, [column]).column(column).to_pylist()
    found = collections.Counter(value for value in values if value is not None)
    shown = ", ".join(f"{value} {number}" for value, number in found.most_common(8))
    return f" ({shown})" if shown else ""


def _calls(stage: str, calls: dict) -> str:
    cached = f", {calls['cached_tokens']} of them cached" if calls["cached_tokens"] else ""
    return (
        f"{stage:<11} {calls['calls']} calls, {calls['prompt_tokens']} prompt tokens{cached}, "
        f"{calls['completion_tokens']} completion tokens, {calls['latency_ms_p50']} ms at p50, "
        f"{calls['latency_ms_p95']} ms at p95"
    )


def _last_session(run: Path) -> str:
    try:
        line = (run / "sessions.jsonl").read_text(encoding="utf-8").splitlines()[-1]
        session = json.loads(line)
        return f"{session['status']} at {session['time']}, after {session['seconds']} s"
    except (OSError, IndexError, ValueError, KeyError):
        return "in progress, or killed in its first session"


def error_codes(run: Path) -> collections.Counter:
    """Requests that ended in an error, by code, over candidates, verdicts and rewrites."""
    calls = read_statistics(run / "cache.sqlite").values()
    permanent = {code for stage in calls for code in stage["errors"]}
    reasons = read_table(run, "pairs", ["reasons"]).column("reasons").to_pylist()
    codes = [code for codes in reasons for code in codes or ()]
    codes += _codes(run, "candidates", "reject_reason") + _codes(run, "verdicts", "error_code")
    return collections.Counter(c for c in codes if c in permanent or is_transient(c))


def _codes(run: Path, table: str, column: str) -> list[str]:
    values = read_table(run, table, [column]).column(column).to_pylist()
    return [value for value in values if value]


def forget_errors(run: Path, code: str) -> str:
    """Makes the next run ask again what ended with `code`; returns a line to print.

    The answers of the code leave the cache and the shards that have it lose their marks. Raises
    InputError for a code that nothing ended with.
    """
    with locked(run):
        touched = {
            path.stem
            for table, column in (
                ("candidates", "reject_reason"),
                ("verdicts", "error_code"),
                ("pairs", "reasons"),
                ("rejects", "code"),
            )
            for path, values in _parts(run, table, column)
            if code in values
        }
        cache = Cache(run / "cache.sqlite")
        forgotten = cache.forget(errors=code)
        cache.close()
        if not touched and not forgotten:
            raise InputError(f"nothing in {run} ended with {code!r}; `status` lists the codes")
        for stem in touched:
            (run / "done" / f"{stem}.json").unlink(missing_ok=True)
    return f"{forgotten} cached errors forgotten, {len(touched)} shards to do again"


def forget_stage(run: Path, stage: str) -> str:
    """Makes the next run ask everything of a stage again; returns a line to print.

    Raises InputError for a stage that asked nothing.
    """
    with locked(run):
        cache = Cache(run / "cache.sqlite")
        forgotten = cache.forget(stage=stage)
        cache.close()
        if not forgotten:
            known = ", ".join(read_statistics(run / "cache.sqlite")) or "nothing"
            raise InputError(f"{run} has no answers of stage {stage!r}; it has those of: {known}")
        shards.remove_others(run, [])
    return f"{forgotten} answers forgotten"


def _parts(run: Path, table: str, column: str) -> Iterator[tuple[Path, set]]:
    """Paths of the parts of a table, each with all the values of a column in it."""
    for path in table_paths(run, table):
        values = pq.read_table(path, columns=[column]).column(column).to_pylist()
        flat = {v for value in values for v in (value if isinstance(value, list) else [value])}
        yield path, flat
