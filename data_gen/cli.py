"""The commands of data_gen.

    python -m data_gen probe  --llm-url=http://HOST:8000/v1 --mllm-url=http://HOST:8001/v1
    python -m data_gen plan   --captions=captions_train2014.json --images=DIR ...
    python -m data_gen run    --captions=... --images=DIR --out=runs/gen [--pipeline=absence|vqa]
    python -m data_gen status|report|audit|export --out=runs/gen
    python -m data_gen statements --pairs=FILE --to=DIR
    python -m data_gen nouns  --nouns=FILE --to=DIR
    python -m data_gen retry  --only=server_error --out=runs/gen ...
    python -m data_gen batch-export|batch-import --out=runs/gen ...

Without --llm-url and --mllm-url, and with --instances, no model is needed: objects are proposed by
co-occurrence, verified from the annotations and written by a grammar. Any key of
configs/data_gen.py can be set with --config.SECTION.KEY=VALUE.
"""

import argparse
import asyncio
import contextlib
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from data_gen import settings
from negclip_jax.common.arguments import Parser
from negclip_jax.common.errors import InputError, say
from negclip_jax.common.signals import Interrupted

# Flags for the keys that most runs set; their names are the keys' but for "input.".
FLAGS = {
    "--captions": ("input.captions", "COCO captions json, JSONL, Parquet, CSV, or wds:TARS"),
    "--images": ("input.images", "image folder"),
    "--instances": ("input.instances", "COCO instances json"),
    "--questions": ("input.questions", "VQAv2 questions json (pipeline vqa)"),
    "--answers": ("input.answers", "VQAv2 annotations json (pipeline vqa)"),
    "--objects": ("input.objects", "json of image id to object names to propose"),
    "--pipeline": ("pipeline", "absence or vqa"),
    "--limit": ("limit", "images to take, the first ones by id"),
    "--llm-url": ("llm.url", "OpenAI-compatible server(s) of the LLM, e.g. http://HOST:8000/v1"),
    "--llm-model": ("llm.model", "its model's name; default: the first that it lists"),
    "--images-per-request": (
        "llm.images_per_request",
        "photos whose captions share a text request; default: 4 if the LLM can, 1 in vqa",
    ),
    "--mllm-url": ("mllm.url", "OpenAI-compatible server(s) of the multimodal model"),
    "--mllm-model": ("mllm.model", "its model's name"),
    "--seed": ("seed", "another seed draws other objects and templates"),
}
# What the help of each command shows, and the flags of which it needs one.
_COCO = "--captions=captions_train2014.json"
_BOXES = f"{_COCO} --instances=instances_train2014.json"
_URLS = "--llm-url=http://localhost:8000/v1 --mllm-url=http://localhost:8001/v1"
EXAMPLES = dict.fromkeys(("status", "report", "export"), "--out=runs/gen") | {
    "probe": _URLS,
    "plan": f"{_COCO} --images=train2014 {_URLS}",
    "run": f"{_BOXES} --out=runs/gen",
    "retry": f"--only=server_error {_BOXES} --out=runs/gen",
    "audit": "--instances=instances_train2014.json --out=runs/gen",
    "statements": "--pairs=pairs.json --instances=instances_train2014.json --to=runs/statements",
    "nouns": f"{_COCO} --to=runs/nouns",
    "batch-export": f"{_COCO} --images=train2014 --out=runs/gen",
    "batch-import": "--out=runs/gen batch_output.jsonl",
}
NEEDED = dict.fromkeys(("run", "batch-export"), (("--captions", "--config"),)) | {
    "retry": (("--only", "--stage"), ("--captions", "--config")),
    "nouns": (("--nouns", "--captions"),),
}
_OVERRIDE = re.compile(r"--config\.([\w.]+)=(.*)", re.DOTALL)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status.

    0 done; 1 batch answers are awaited; 2 bad input; 3 no usable server, or no pair; 4 too many
    errors; 5 the disk does not take it; 128 + N stopped by signal N.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    again = shlex.join(["python", "-m", "data_gen", *argv])
    try:
        try:
            args, changes = _parse(argv)
            return args.command(args, changes) or 0
        finally:  # what a reader like `head` no longer takes must not come up at the very end
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except InputError as error:
        say(f"error: {error}", file=sys.stderr)
        if (error.status or 2) > 2:
            say(f"to continue:\n  {again}", file=sys.stderr)
        return error.status or 2
    except OSError as error:
        reason = f"{error.filename or 'the run directory'}: {error.strerror or error}"
        say(f"error: {reason}; everything committed so far is kept", file=sys.stderr)
        say(f"to continue:\n  {again}", file=sys.stderr)
        return 5
    except Interrupted as stopped:
        say(f"{stopped}; to continue:\n  {again}", file=sys.stderr)
        return 128 + stopped.signum
    except KeyboardInterrupt:
        return 130


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    args, rest = parser().parse_known_args(argv)
    changes = {}
    for text in rest:
        match = _OVERRIDE.fullmatch(text)
        if not match:
            parser().error(f"unknown argument {text}; settings look like --config.KEY=VALUE")
        changes[match[1]] = match[2]
    given = ((key, flag.strip("-").replace("-", "_")) for flag, (key, _) in FLAGS.items())
    changes |= {key: value for key, name in given if (value := vars(args).get(name)) is not None}
    return args, changes


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser("python -m data_gen", __doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable, summary: str, *, out: bool, inputs: bool = False):
        example = f"python -m data_gen {name} {EXAMPLES[name]}"
        shown = f"{summary[0].upper()}{summary[1:]}.\n\n    {example}"
        sub = commands.add_parser(name, help=summary, description=shown, allow_abbrev=False)
        sub.needed = NEEDED.get(name, ())
        sub.set_defaults(command=command, name=name)
        if out:
            sub.add_argument("--out", type=Path, required=True, help="the run's directory")
        if inputs:
            sub.add_argument(
                "--config", metavar="FILE[:VARIANT]", help="settings; default: configs/data_gen.py"
            )
            for flag, (_, what) in FLAGS.items():
                sub.add_argument(flag, help=what)
        return sub

    add("probe", _probe, "ask the servers what they can do", out=False, inputs=True)
    plan = add("plan", _plan, "calls, tokens, hours and money of a run", out=False, inputs=True)
    plan.add_argument("--out", type=Path, help="a run to take measured rates from")
    plan.add_argument(
        "--sample", type=int, help="images to run into --out first; their answers stay"
    )
    run = add("run", _run, "write pairs, or go on writing them", out=True, inputs=True)
    run.add_argument("--export", action="store_true", help="then `export` into OUT/export")
    run.add_argument("--runner", choices=("local", "ray"), default="local")
    run.add_argument("--workers", type=int, default=2, help="--runner=ray: shards at once")
    add("status", _show, "how far a run is, without touching it", out=True)
    retry = add("retry", _retry, "ask again what failed, or a whole stage", out=True, inputs=True)
    what = retry.add_mutually_exclusive_group(required=True)
    what.add_argument("--only", metavar="CODE", help="what ended with it, e.g. server_error")
    what.add_argument("--stage", help="all answers of propose, verify, rewrite or merge")
    add("report", _show, "write report.html and audit_sample.csv", out=True)
    audit = add(
        "audit", _show, "measure the verifier, and whether texts betray their truth", out=True
    )
    audit.add_argument("--instances", help="COCO instances json, to measure the verifier against")
    audit.add_argument("--labels", help="hand labels: audit_sample.csv, or answers.csv of a sheet")
    audit.add_argument("--sheet", type=Path, metavar="DIR", help="write a page to label texts on")
    audit.add_argument("--number", type=int, default=200, help="--sheet: texts; default: 200")
    audit.add_argument("--seed", type=int, default=0, help="--sheet: another seed draws others")
    audit.add_argument("--images", help="--sheet: folder of the photos; default: the run's")
    export = add("export", _export, "write what launch.py reads", out=True)
    export.add_argument(
        "--to",
        help="folder; default: OUT/export; or with the photos, wds:DIR/pairs-{000000..}.tar or "
        "parquet:DIR/pairs-{000000..}.parquet, which goes on where it was interrupted",
    )
    export.add_argument("--images", help="photos for wds: and parquet:; default: the run's")
    export.add_argument("--shard-mb", type=float, default=500.0, help="of a shard; default: 500")
    known = add("statements", _statements, "write statements for pairs from elsewhere", out=False)
    known.add_argument("--pairs", required=True, help="e.g. NegationCLIP's own file")
    known.add_argument("--instances", help="COCO instances json; without it captions say what is")
    known.add_argument("--to", type=Path, required=True, help="folder for statements.parquet")
    known.add_argument("--seed", type=int, default=0, help="another one draws other objects")
    nouns = add("nouns", _nouns, "write text rows about nouns, which need no photo", out=False)
    nouns.add_argument("--nouns", help="text file, one noun a line")
    nouns.add_argument("--captions", help="COCO captions or pairs, whose nouns are taken")
    nouns.add_argument("--to", type=Path, required=True, help="folder for data.text_nouns")
    nouns.add_argument(
        "--rows", type=int, default=20_000, help="two thirds of the pairs do; default: 20,000"
    )
    nouns.add_argument("--config", metavar="FILE[:VARIANT]", help="of the run beside which it is")
    nouns.add_argument("--seed", help=FLAGS["--seed"][1])
    add("batch-export", _batch_export, "write requests as batch files", out=True, inputs=True)
    batch = add("batch-import", _batch_import, "read answers from batch files", out=True)
    batch.add_argument("files", type=Path, nargs="+", help="output files of the batch service")
    return top


def _probe(args: argparse.Namespace, changes: dict[str, str]) -> int:
    from data_gen.build import open_engine, probe_engine, roles_by_address
    from data_gen.engines.probe import Capabilities, describe
    from data_gen.prompts import load_prompts

    config = settings.load(args.config, changes)
    by_address = roles_by_address(config, [role for role in ("llm", "mllm") if config[role].url])
    if not by_address:
        raise InputError("there is nothing to probe; give --llm-url, --mllm-url or both")
    prompts = load_prompts(config.prompts)

    async def look(roles: list[str]) -> Capabilities:
        engine = open_engine(config, roles[0], Path())
        try:
            return await probe_engine(config, engine, roles, prompts)
        finally:
            await engine.close()

    async def look_at_all() -> list[Capabilities]:
        return await asyncio.gather(*map(look, by_address.values()))

    found = asyncio.run(look_at_all())
    for roles, can in zip(by_address.values(), found, strict=True):
        say(describe(" and ".join(roles), can))
    return 3 if any(can.problems for can in found) else 0


def _plan(args: argparse.Namespace, changes: dict[str, str]) -> None:
    from data_gen.generate import run
    from data_gen.plan import plan

    config = settings.load(args.config, changes)
    if args.sample is not None:
        if args.out is None:
            raise InputError("--sample needs --out, where its answers stay for the run to come")
        run(settings.load(args.config, {**changes, "limit": str(args.sample)}), args.out)
    say(plan(config, args.out))


def _run(args: argparse.Namespace, changes: dict[str, str]) -> int:
    from data_gen.generate import run, run_on_ray
    from data_gen.manifest import left_out, why_no_pair

    config, out = settings.load(args.config, changes), args.out
    on_ray = getattr(args, "runner", "local") == "ray"
    outcome = run_on_ray(config, out, workers=args.workers) if on_ray else run(config, out)
    counts = outcome.counts
    say(
        f"{counts.get('accepted', 0)} pairs accepted of {counts.get('pairs', 0)} rewrites, from "
        f"{counts.get('images', 0)} images ({counts.get('verdicts', 0)} verdicts)"
    )
    if outcome.pending:
        say(
            f"{outcome.pending} images wait for answers: give the files in {out}/batch to the batch"
            " service, then `batch-import` its output and run this command again"
        )
        return 1
    if left := left_out(out):
        say(f"left out: {', '.join(f'{code} {number:,}' for code, number in left.items())}")
    if not counts.get("accepted"):
        why, report = why_no_pair(out), f"`python -m data_gen report --out={out}`"
        say(f"error: no pair was accepted ({why}); {report} shows more", file=sys.stderr)
        return 3
    if getattr(args, "export", False):
        args.to = None
        _export(args, changes)
    else:
        say(f"next: python -m data_gen export --out={out}  (and report, audit)")
    return 0


def _retry(args: argparse.Namespace, changes: dict[str, str]) -> int:
    from data_gen.manifest import forget_errors, forget_stage

    forget, what = (forget_errors, args.only) if args.only else (forget_stage, args.stage)
    say(forget(args.out, what))
    return _run(args, changes)


def _show(args: argparse.Namespace, changes: dict[str, str]) -> None:
    """`status`, `report` and `audit`: one text each."""
    if args.name == "status":
        from data_gen.manifest import status

        say(status(args.out))
    elif args.name == "report":
        from data_gen.report import write_report

        say(f"wrote {write_report(args.out)}")
    elif args.sheet is not None:
        from data_gen.label_sheet import write_sheet

        say(write_sheet(args.out, args.sheet, args.number, args.seed, args.images))
    else:
        from data_gen.audit import audit

        say(audit(args.out, args.instances, args.labels))


def _export(args: argparse.Namespace, changes: dict[str, str]) -> None:
    from data_gen.export import export, export_shards, is_sharded

    if args.to is not None and is_sharded(args.to):
        if not args.shard_mb > 0:
            raise InputError(f"--shard-mb={args.shard_mb:g}: a shard has some megabytes")
        done = export_shards(args.out, args.to, args.images, int(args.shard_mb * 1e6))
    else:
        done = export(args.out, Path(args.to or args.out / "export"))
    say(f"{done.pairs} pairs in {', '.join(map(str, done.files))}")
    if done.left_out:
        say(f"{len(done.left_out)} photos could not be read: {', '.join(done.left_out[:3])}")
    _say_training(done.training)
    # Hugging Face's `datasets` knows no ranges; `pairs.parquet` stands beside `pairs.json`.
    form, _, files = done.training["pairs"].rpartition(":")
    files = re.sub(r"\{\d+\.\.\d+\}", "*", files) if form else str(done.files[1])
    form = "webdataset" if form == "wds" else "parquet"
    say(
        "or read them with datasets\n  from datasets import load_dataset\n"
        f"  pairs = load_dataset({form!r}, data_files={files!r}, split='train')"
    )


def _statements(args: argparse.Namespace, changes: dict[str, str]) -> None:
    from data_gen.from_pairs import write_statements

    path = args.to / "statements.parquet"
    counts = write_statements(args.pairs, path, args.instances, args.seed)
    say(
        f"{counts['texts']:,} statements in {path}: {counts['units']:,} units of "
        f"{counts['pairs']:,} pairs; {counts['unbalanced']:,} units would have tipped the balance "
        f"of their objects; what {counts['unparsed']:,} pairs deny could not be read"
    )
    _say_training({"pairs": args.pairs, "images": "...", "statements": path})


def _nouns(args: argparse.Namespace, changes: dict[str, str]) -> None:
    from data_gen.from_nouns import write_text_rows

    if not (args.nouns or args.captions):
        raise InputError("give --nouns=FILE, or --captions=FILE whose nouns are taken")
    config, files = settings.load(args.config, changes), (args.nouns, args.captions)
    counts = write_text_rows(config, args.to, args.rows, *files)
    say(
        f"{counts['rows']:,} text rows about {counts['nouns']:,} nouns in {args.to}, with "
        f"{counts['texts']:,} statements; train with --config.data.text_nouns={args.to}"
    )


def _say_training(keys: Mapping[str, Path | str]) -> None:
    """The command that trains, with these keys of the section `data`."""
    config = "configs/truth.py" if "statements" in keys else "configs/negationclip.py"
    given = (f"--config.data.{key}={value}" for key, value in keys.items())
    say(
        f"train with\n  python launch.py --config={config}:vit_b_32 --workdir=... \\\n"
        f"      --config.model.checkpoint=... {' '.join(map(shlex.quote, given))}"
    )


def _batch_export(args: argparse.Namespace, changes: dict[str, str]) -> int:
    for role in ("llm", "mllm"):
        changes.setdefault(f"{role}.url", "batch")
    # Each round of questions would be a round of the batch service.
    changes.setdefault("verify.questions_per_round", "0")
    return _run(args, changes)


def _batch_import(args: argparse.Namespace, changes: dict[str, str]) -> None:
    from data_gen.engines.batchfile import import_answers
    from data_gen.engines.cache import Cache
    from negclip_jax.common.atomic_files import locked

    with locked(args.out), contextlib.closing(Cache(args.out / "cache.sqlite")) as cache:
        counts = import_answers(cache, args.files)
    say(", ".join(f"{number} {what}" for what, number in counts.items()))
