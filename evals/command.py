"""The command behind `python -m evals`, once its arguments are known to be well formed."""

import argparse
import logging
import time
from pathlib import Path

import jax

from evals import interpolate, models, report, runner
from evals.images import DataRoots
from evals.results import Results, table_text
from negclip_jax.common.errors import InputError
from negclip_jax.runtime import multihost, sharding
from negclip_jax.runtime.timing import human_seconds
from negclip_jax.runtime.workdir import environment


def evaluate(args: argparse.Namespace) -> int:
    """Loads, encodes, scores and reports; see `evals.__main__` for the arguments.

    Returns 0, or 1 where a model failed on a benchmark. Raises InputError.
    """
    started = time.monotonic()
    if bool(args.model) == bool(args.interpolate):
        raise InputError("give one or more --model=[NAME=]PATH, or --interpolate=BASE,TUNED")
    if args.distributed not in ("off", "auto") and None in (args.process_id, args.num_processes):
        raise InputError("--distributed=HOST:PORT needs --process-id and --num-processes as well")
    sharding.start_distributed(
        args.distributed, process_id=args.process_id, num_processes=args.num_processes
    )
    with multihost.end_together():
        return _evaluate(args, started)


def _evaluate(args: argparse.Namespace, started: float) -> int:
    is_main = sharding.is_main_process()
    if is_main:
        require_writable(args.out)
    roots = DataRoots(tuple(args.data), tuple(args.images))
    loaded = runner.load_problems(
        args.benchmarks, roots, allow_subset=args.allow_subset, out=args.out
    )
    kinds = {name: benchmark.retention for name, (benchmark, _) in loaded.items()}
    if args.interpolate:
        interpolate.check_kinds(kinds)
    cache = args.cache or args.out / "embeddings"
    use_compilation_cache(cache)
    sources = models.load_all(
        args.interpolate or args.model,
        dtype=args.dtype,
        crop=args.crop,
        tokenizer=args.tokenizer,
        activation=args.activation,
    )
    tested, described = sources, {m.name: models.described(m) for m in sources}
    if args.interpolate:
        tested = interpolate.Mixtures(*sources, alphas=args.alphas)
        described = tested.described()
    settings = {"models": described, "seed": args.seed, "allow_subset": args.allow_subset}
    results = Results(args.out, settings, environment(), overwrite=args.overwrite, writes=is_main)
    for name, model in described.items():
        logging.info("%s: %s", name, "; ".join(model["facts"].values()))
    try:
        failures = runner.run(tested, loaded, roots, results, cache=cache)
        if args.interpolate and not failures:
            entries = results.document["benchmarks"]
            found = interpolate.curve(entries, args.alphas, kinds, args.max_loss / 100)
            results.document["interpolation"] = found
            results.write()
    finally:  # a killed evaluation has a page of what it scored
        if is_main and results.document["benchmarks"]:
            report.write(args.out, roots, gallery=args.gallery)
    if is_main:
        _tell(args.out, results, failures, time.monotonic() - started)
    return 1 if failures else 0


def _tell(out: Path, results: Results, failures: list[runner.Failure], seconds: float) -> None:
    print(table_text(results.document))
    if "interpolation" in results.document:
        print(interpolate.best_alpha_text(results.document["interpolation"]))
    for failure in failures:
        logging.error("%s on %s: %s", failure.model, failure.benchmark, failure.message)
    logging.info("%s; open %s", human_seconds(seconds), out / report.PAGE)


def require_writable(out: Path) -> None:
    """Says at once, not after an hour, that nothing can be written."""
    if out.parts[:1] == ("gs:",):  # as `Path` leaves an address: it would become a local folder
        raise InputError(f"--out={out} is no folder of this machine: write there, then copy it")
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".write_test"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write to --out={out}: {error.strerror or error}") from error


def use_compilation_cache(cache: Path) -> None:
    """Keeps compiled programs beside the embeddings, unless JAX was told another place."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str((cache / "compiled").absolute()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
