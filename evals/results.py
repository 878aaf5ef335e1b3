"""What an evaluation leaves: `results.json`, `predictions.parquet` and a table for the terminal.

Both files are written whole after each benchmark of each model, so a killed evaluation keeps what
it had. A second command with the same models and settings adds its benchmarks to the same folder;
one with others is refused, because rows of different models would stand under one name.

`results.json`:

    settings     models with their facts and fingerprints, seed, whether subsets were allowed
    environment  versions, devices, command
    benchmarks   NAME: what it is, items, whether a subset, published values, and
                 rows        a model or control, {metric: value, low, high, n, method, ties, ...}
                 comparisons of two models: {metric: difference, low, high, gained, lost, ...}
                 breakdowns  {column: {group: {row: value, low, high, n}}}
                 tables      {title: {row: columns, rows by name}}
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from evals.benchmark import COLUMNS, Benchmark, Metric, Problem, Result
from negclip_jax.common import atomic_files, storage, strict_json
from negclip_jax.common.errors import InputError
from negclip_jax.common.progress import told
from negclip_jax.common.statistics import change_text, interval_text, ties_text
from negclip_jax.common.tables import aligned

RESULTS, PREDICTIONS = "results.json", "predictions.parquet"
_SCHEMA = pa.schema(
    [
        ("benchmark", pa.string()),
        ("row", pa.string()),  # model or control
        ("item", pa.string()),
        ("images", pa.list_(pa.string())),
        ("boxes", pa.list_(pa.list_(pa.float64()))),
        ("texts", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float64())),
        ("answers", pa.list_(pa.int32())),
        ("predicted", pa.list_(pa.int32())),
        ("right", pa.float64()),
        ("subset", pa.bool_()),
        ("groups", pa.map_(pa.string(), pa.string())),
    ]
)
_MAX_GROUPS = 24  # of a breakdown; a column with more is an id


class Results:
    """The results of one evaluation, kept in a folder."""

    def __init__(
        self,
        out: Path,
        settings: Mapping[str, Any],
        environment: Mapping[str, Any],
        *,
        overwrite: bool = False,
        writes: bool = True,
    ):
        """Opens `out`, with what an earlier command with the same settings left there.

        `settings` are {"models": {name: {"facts": ..., "fingerprint": ...}}, "seed": int, ...}, as
        JSON keeps them; `environment` is for the record only. One process `writes`: to another,
        `out` may be on another machine. Raises InputError where the folder holds results of other
        models or settings, unless `overwrite` starts afresh.
        """
        self._out, self._seed, self._writes = out, settings["seed"], writes
        if writes:
            out.mkdir(parents=True, exist_ok=True)
        keys, advice = ("settings", "environment", "benchmarks"), "remove it, or give --overwrite"
        old = {} if overwrite else read_earlier(out / RESULTS, keys, advice)
        if old and old["settings"] != settings:
            differ = [k for k in settings if old["settings"].get(k) != settings[k]]
            names = ", ".join(old["settings"]["models"])
            raise InputError(
                f"{out} holds results of {names} with other {' and '.join(differ)}: give another "
                "--out, or --overwrite to replace them"
            )
        self.document: dict[str, Any] = {
            "settings": settings,
            "environment": environment,
            "benchmarks": old.get("benchmarks", {}),
        }
        self._table = _SCHEMA.empty_table()
        if old and (out / PREDICTIONS).is_file():
            try:
                self._table = pq.read_table(out / PREDICTIONS, schema=_SCHEMA)
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"{out / PREDICTIONS} is damaged ({error}): {advice}") from None
        self._metrics: dict[tuple[str, str], dict[str, Metric]] = {}

    def begin(self, benchmark: Benchmark, problem: Problem) -> None:
        """Describes a benchmark; rows of an earlier command stay until new ones replace them."""
        entry = self.document["benchmarks"].setdefault(benchmark.name, {})
        described = ("title", "task", "source", "licence", "download", "size", "retention")
        new = {key: getattr(benchmark, key) for key in described}
        new |= {key: getattr(problem, key) for key in ("file", "total", "scored")}
        new |= {
            "subset": problem.scored < problem.total,
            "missing": len(problem.missing),
            "notes": list(problem.notes),
            "published": [dataclasses.asdict(p) for p in benchmark.published],
        }
        if any(entry.get(key) != new[key] for key in ("file", "total", "scored")):
            entry.clear()  # the items are others: rows of before and after could not be compared
            self._table = self._table.filter(pc.field("benchmark") != benchmark.name)
        entry |= new
        for key in ("rows", "comparisons", "breakdowns", "sentences", "tables", "errors"):
            entry.setdefault(key, {})

    def add(
        self, benchmark: str, row: str, problem: Problem, result: Result, *, control: bool = False
    ) -> None:
        """Takes what a model or control reached, compares it with the models before, and writes."""
        entry = self.document["benchmarks"][benchmark]
        metrics = [metric for metric in result.metrics if len(metric.values)]
        entry["rows"][row] = {
            "control": control,
            "metrics": {
                metric.name: dataclasses.asdict(metric.estimate(seed=self._seed))
                | {"chance": metric.chance, "headline": metric.headline, **result.ties(metric)}
                for metric in told(metrics, f"{row} on {benchmark}: intervals")
            },
        }
        entry["errors"].pop(row, None)
        for title, table in result.tables.items():
            entry["tables"].setdefault(title, {})[row] = table
        if result.predictions:
            table = _table(benchmark, row, problem, result, subset=entry["subset"])
            same = (pc.field("benchmark") == benchmark) & (pc.field("row") == row)
            self._table = pa.concat_tables([self._table.filter(~same), table])
            entry["sentences"] |= result.breakdowns
            strict = np.asarray(result.predictions["right"], np.float64)
            # By the rule of the headline.
            right = np.asarray(result.predictions.get("right_official", strict), np.float64)
            images = np.array([str(list(rows)[:1]) for rows in result.predictions["images"]])
            for column in result.breakdowns:
                groups = np.array([str(value) for value in result.predictions[column]])
                names = np.unique(groups)
                shown_names = list(names) if len(names) <= _MAX_GROUPS else []
                for name in told(shown_names, f"{row} on {benchmark}: intervals by {column}"):
                    of = groups == name
                    metric = Metric(column, right[of], clusters=images[of])
                    shown = entry["breakdowns"].setdefault(column, {}).setdefault(str(name), {})
                    shown[row] = dataclasses.asdict(metric.estimate(seed=self._seed))
                    shown[row]["ties"] = Metric(column, strict[of]).ties
        if not control:
            # Paired comparisons with every model that this command has scored before.
            for (name, before), others in self._metrics.items():
                if name == benchmark and before != row:
                    changes = {
                        m.name: dataclasses.asdict(m.compare(others[m.name], seed=self._seed))
                        for m in told(metrics, f"{before} against {row} on {benchmark}: intervals")
                        if m.name in others
                    }
                    names = {"before": before, "after": row, "metrics": changes}
                    entry["comparisons"][f"{before} -> {row}"] = names
            self._metrics[benchmark, row] = {metric.name: metric for metric in metrics}
        self.write()

    def fail(self, benchmark: str, row: str, message: str) -> None:
        """Notes that a model could not be scored, and why."""
        self.document["benchmarks"][benchmark]["errors"][row] = message
        self.write()

    def write(self) -> None:
        """Replaces both files."""
        if not self._writes:
            return
        if self._table.num_rows:
            with atomic_files.whole_file(self._out / PREDICTIONS) as unfinished:
                pq.write_table(self._table, unfinished, compression="zstd")
        storage.write_json(self._out / RESULTS, self.document)


def table_text(document: Mapping[str, Any]) -> str:
    """The headline numbers for a terminal: a line per metric, a column per model, in percent."""
    names = list(document["settings"]["models"])
    lines = [["", *names, "n"]]
    for entry in document["benchmarks"].values():
        rows = {**entry["rows"], **{n: None for n in names if n not in entry["rows"]}}
        title, size = entry["title"], entry.get("size")
        if entry["subset"]:
            title += f" (subset: {entry['scored']:,} of {entry['total']:,} items)"
        if size and size != entry["total"]:
            title += f" (the file has {entry['total']:,} of {size:,} items)"
        for metric in headlines(entry):
            found = [rows[n] and rows[n]["metrics"].get(metric) for n in names]
            n = max((value["n"] for value in found if value), default=0)
            lines.append([f"{title}: {metric}", *map(interval_text, found), f"{n:,}"])
            if any(map(ties_text, found)):
                lines.append(["", *map(ties_text, found)])
            pairs = [entry["comparisons"].get(f"{names[0]} -> {name}", {}) for name in names]
            changes = [pair.get("metrics", {}).get(metric) for pair in pairs]
            if any(changes):
                lines.append(["", *(change_text(c) if c else "" for c in changes)])
    return aligned(lines, right=True)


def headlines(entry: Mapping[str, Any]) -> list[str]:
    """Names of a benchmark's headline metrics, in order; the first metric where none is one."""
    metrics = [m for row in entry["rows"].values() for m in row["metrics"].items()]
    names = dict.fromkeys(name for name, value in metrics if value["headline"])
    return list(names) or list(dict.fromkeys(name for name, _ in metrics))[:1]


def _table(benchmark: str, row: str, problem: Problem, result: Result, *, subset: bool) -> pa.Table:
    """One row an item, in `_SCHEMA`. Groups are all columns without a place of their own."""
    columns, n = result.predictions, len(result.predictions["item"])
    refs = [[problem.images[i] for i in rows] for rows in columns["images"]]
    extra = [name for name in columns if name not in COLUMNS]
    # Of each item the names and values of its groups.
    groups = zip(*(map(str, columns[name]) for name in extra), strict=True) if extra else [()] * n
    return pa.table(
        {
            "benchmark": [benchmark] * n,
            "row": [row] * n,
            "item": [str(item) for item in columns["item"]],
            "images": [[ref.path for ref in each] for each in refs],
            "boxes": [[ref.box and list(ref.box) for ref in each] for each in refs],
            **{
                k: [list(x) for x in columns[k]]
                for k in ("texts", "scores", "answers", "predicted")
            },
            "right": [float(value) for value in columns["right"]],
            "subset": [subset] * n,
            "groups": [list(zip(extra, values, strict=True)) for values in groups],
        },
        schema=_SCHEMA,
    )


def read_earlier(path: Path, keys: Sequence[str], advice: str) -> dict[str, Any]:
    """The JSON object that an earlier command left at `path`; {} where there is no such file.

    Raises InputError, with the advice, where it cannot be read or lacks one of `keys`.
    """
    if not path.is_file():
        return {}
    try:
        content = strict_json.load(path)
        if not (isinstance(content, dict) and all(key in content for key in keys)):
            raise ValueError("it is in another layout")
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): {advice}") from None
    return content
