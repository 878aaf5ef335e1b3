"""Scores models on negation benchmarks, each by its own rules, with intervals and controls.

    python -m evals --model=before=openai/clip-vit-base-patch32 --model=after=runs/b32 \\
        --benchmarks=valse,negrefcocog,negbench_mcq --data=data --out=runs/eval

A model is a Hugging Face directory or hub id, a training workdir (its best checkpoint; @last or
@STEP for another, +ema for the moving average), an OpenAI .pt or an open_clip checkpoint.
Writes results.json, predictions.parquet and report.html into --out. The same command started again
continues: nothing that was encoded is encoded again.
"""

import argparse
import logging
import time
from collections.abc import Sequence

from evals import command_line, registry
from negclip_jax.common.errors import InputError, say


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0, 1 after a user error, 130 after Ctrl-C."""
    stopped = "stopped; what was scored is kept, and the same command continues in {out}"
    less = command_line.LESS_MEMORY
    return command_line.execute(_parser(), evaluate, argv, stopped=stopped, needs_less=less)


def evaluate(args: argparse.Namespace) -> int:
    """Loads, encodes, scores and reports; returns 1 where a model failed. Raises InputError."""
    from negclip_jax.runtime import multihost, sharding

    started = time.monotonic()
    if bool(args.model) == bool(args.interpolate):
        raise InputError("give one or more --model=[NAME=]PATH, or --interpolate=BASE,TUNED")
    if args.distributed not in ("off", "auto") and None in (args.process_id, args.num_processes):
        raise InputError("--distributed=HOST:PORT needs --process-id and --num-processes as well")
    multihost.join(args.distributed, process_id=args.process_id, num_processes=args.num_processes)
    with multihost.end_together():
        return _evaluate(args, started, is_main=sharding.is_main_process())


def _evaluate(args: argparse.Namespace, started: float, *, is_main: bool) -> int:
    from evals import interpolate, models, report, runner
    from evals.images import DataRoots, photos_at
    from evals.results import Results, table_text
    from negclip_jax.common.progress import human_seconds
    from negclip_jax.data.feature_files import open_features
    from negclip_jax.runtime.workdir import environment

    if is_main:
        command_line.require_writable(args.out)
    registry.add_files(args.benchmark_file)
    args.features = open_features(args.features) if args.features else None
    roots = DataRoots(tuple(args.data), tuple(map(photos_at, args.images)), features=args.features)
    subset = {"allow_subset": args.allow_subset}
    loaded = runner.load_problems(args.benchmarks, roots, **subset, out=args.out)
    kinds = {name: benchmark.retention for name, (benchmark, _) in loaded.items()}
    if args.interpolate:
        interpolate.check_kinds(kinds)
    cache = command_line.embedding_cache(args)
    sources = command_line.load_models(args.interpolate or args.model, args)
    tested, described = sources, {m.name: models.described(m) for m in sources}
    if args.interpolate:
        tested = interpolate.Mixtures(*sources, alphas=args.alphas)
        described = tested.described()
    settings = {"models": described, "seed": args.seed} | subset
    results = Results(args.out, settings, environment(), overwrite=args.overwrite, writes=is_main)
    for name, model in described.items():
        logging.info("%s: %s", name, "; ".join(model["facts"].values()))
    try:
        failures = runner.run(tested, loaded, roots, results, cache=cache, **subset)
        if args.interpolate and not failures:
            entries = results.document["benchmarks"]
            found = interpolate.curve(entries, args.alphas, kinds, args.max_loss / 100)
            results.document["interpolation"] = found
            results.write()
    finally:  # a killed evaluation has a page of what it scored
        if is_main and results.document["benchmarks"]:
            report.write(args.out, roots, gallery=args.gallery)
    if is_main:
        say(table_text(results.document))
        if "interpolation" in results.document:
            say(interpolate.best_alpha_text(results.document["interpolation"]))
        for failure in failures:
            logging.error("%s", failure)
        seconds = human_seconds(time.monotonic() - started)
        logging.info("%s; open %s", seconds, args.out / report.PAGE)
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("evals", __doc__)
    parser.epilog = "benchmarks: " + ", ".join(registry.BENCHMARKS)
    parser.needed = (("--model", "--interpolate"),)
    add = parser.add_argument
    add("--model", action="append", default=[], metavar="[NAME=]PATH", help="may be repeated")
    options = {"type": command_line.comma_separated, "default": "available", "metavar": "A,B"}
    help_ = "names from the list below; default: all whose files are there"
    add("--benchmarks", **options, help=help_)
    shared = ("--benchmark-file", "--data", "--images", "--features", "--out", "--allow-subset")
    command_line.add_shared(parser, *shared, "--overwrite", "--dtype", "--crop", "--activation")
    command_line.add_shared(parser, "--tokenizer", "--cache", "--seed", "--gallery")
    add = parser.add_argument_group("weight-space ensembling").add_argument
    help_ = "instead of --model: evaluate mixtures (1 - alpha) x BASE + alpha x TUNED"
    add("--interpolate", type=_pair, metavar="BASE,TUNED", help=help_)
    options = {"type": _alphas, "default": "0,0.1,...,1", "metavar": "A,B,...,C"}
    add("--alphas", **options, help="default: %(default)s")
    help_ = "of retention, that the best alpha may cost; default: %(default)s"
    add("--max-loss", type=float, default=1.0, metavar="POINTS", help=help_)
    hosts = parser.add_argument_group("several hosts: the same command on each of them")
    add = hosts.add_argument
    help_ = "auto on TPU pods and Slurm, else the first host's address with the next two"
    add("--distributed", default="off", metavar="auto|HOST:PORT", help=help_)
    add("--process-id", type=int, metavar="I", help="of this host, from 0")
    add("--num-processes", type=int, metavar="N", help="hosts in all")
    return parser


def _pair(text: str) -> list[str]:
    parts = text.split(",")
    if len(parts) != 2 or not all(parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not BASE,TUNED")
    return parts


def _alphas(text: str) -> list[float]:
    """`0,0.1,...,1` or a plain list."""
    try:
        parts = [part.strip() for part in text.split(",")]
        if "..." not in parts:
            return [float(part) for part in parts]
        at = parts.index("...")
        start, last, step = float(parts[at - 2]), float(parts[at + 1]), float(parts[at - 1])
        step -= start
        rest = [start + i * step for i in range(round((last - start) / step) + 1)]
        return [*map(float, parts[: at - 2]), *(round(x, 6) for x in rest)]
    except (ValueError, IndexError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list like 0,0.5,1 or 0,0.1,...,1"
        ) from None


if __name__ == "__main__":
    command_line.exit_with(main)
