"""A run from its settings to its tables, resumable at every moment, on one machine or on Ray.

On a Ray cluster a shard is a task, and a lost worker costs one shard. Each worker runs the local
runner on its shard with a cache of its own on local disk (SQLite is not for network file systems)
and writes tables to the run directory, which all machines must see. The driver gives out only
shards that are not done, so that running the command again continues; the tables equal the local
runner's byte for byte, as far as the models repeat themselves.
"""

import asyncio
import contextlib
import math
import os
import platform
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_gen import manifest
from data_gen.build import Models, Roles, build, connected, images_together, resolve
from data_gen.engines.cache import Cache, read_statistics
from data_gen.images import PhotoFolder
from data_gen.pipeline import FirstAnswers, UselessAnswers
from data_gen.prompts import Prompt, load_prompts
from data_gen.records import ImageItem, Rows, read_manifest, write_table
from data_gen.runner import LocalRunner, Shard, cut, left_to_do
from data_gen.settings import Settings, fingerprint
from data_gen.stages.ingest import Ingested, read_captions, with_questions
from data_gen.stages.verify import method_for
from negclip_jax.common import extras, storage
from negclip_jax.common.atomic_files import locked
from negclip_jax.common.errors import InputError, say
from negclip_jax.common.progress import human_seconds
from negclip_jax.common.provenance import content_hash, file_facts, git_revision, package_versions
from negclip_jax.common.storage import Journal
from negclip_jax.data.pairs import content_of
from negclip_jax.data.sources import kind_of

_DECODERS = 4  # threads that read and decode photos
_LOOKED_FOR = 50  # photos, before anything is asked
_PACKAGES = ("negclip-jax", "aiohttp", "pyarrow", "pillow", "ml-collections", "ray", "vllm")


@dataclass(frozen=True)
class Job:
    """What is to be done, before any server was asked."""

    config: Settings
    roles: Roles
    prompts: dict[str, Prompt]
    ingested: Ingested
    # All of the captions file, also beyond `limit`: what is proposed for one depends on the others,
    # and must not change when the limit does.
    images: Sequence[ImageItem]
    inputs: dict[str, dict[str, Any]]  # facts of the input files, by key of the settings

    def method(self, models: Models) -> str:
        """How absence is verified."""
        can = models.mllm_can
        return self.roles.verify if can is None else method_for(self.config.verify.method, can)

    def together(self, models: Models) -> int:
        """Images that share requests to the LLM."""
        return images_together(self.config, self.roles, models.llm_can)

    def settings_print(self, models: Models) -> str:
        """The fingerprint of everything that decides the tables, but for the images."""
        # What of a model's capabilities changes the requests; the rest is for people. The later
        # ones count where they are not what older runs had.
        decisive = []
        for can in (models.llm_can, models.mllm_can):
            younger = can and [can.turns is False, can.blank_tokens, dict(can.extra_body)]
            known = can and [can.model, can.schema, can.system, can.choice]
            decisive.append([*known, younger] if younger and any(younger) else known)
        files = {n: f["sha256"] for n, f in self.inputs.items() if n != "captions"}
        extra = [asdict(self.roles), [*decisive, self.method(models)], files]
        if self.roles.propose == "cooccurrence":
            extra.append({"draws": 4})  # older runs drew other objects: their shards are made again
        prompts = dict(self.prompts)
        if (together := self.together(models)) > 1:
            extra.append({"images_per_request": together})
        else:  # as in older runs, which had no such requests
            prompts.pop("propose_many", None)
        return fingerprint(self.config, prompts, extra)

    def run_id(self, models: Models) -> str:
        """Twelve hexadecimal digits that name settings, prompts, models and input."""
        captions = self.inputs["captions"]["sha256"]
        return content_hash([self.settings_print(models), captions])[:12]

    def cut(self, models: Models) -> list[Shard]:
        """The shards of the job."""
        return cut(self.ingested.images, self.config.shard_images, self.settings_print(models))

    def begin(self, models: Models, out: Path) -> list[Shard]:
        """Removes the tables of other shards, writes the manifest; returns what is to be made."""
        todo = left_to_do(out, self.cut(models))
        write_table(out / "rejects" / "part-ingest.parquet", "rejects", self.ingested.rejects)
        self.note(models, out)
        return todo

    def note(self, models: Models, out: Path) -> None:
        """Writes `manifest.json`: settings, prompts in full, models, inputs, versions, counts."""
        can = {"llm": models.llm_can, "mllm": models.mllm_can}
        content = {
            "run_id": self.run_id(models),
            "roles": asdict(self.roles),
            "verify_method": self.method(models),
            "images_per_request": self.together(models) if self.roles.needs_llm else None,
            "inputs": self.inputs,
            "captions": self.ingested.captions,
            "images": len(self.ingested.images),
            "ingest_rejects": len(self.ingested.rejects),
            "config": self.config.to_dict(),
            "prompts": {p.id: [list(turn) for turn in p.turns] for p in self.prompts.values()},
            "capabilities": {role: asdict(c) for role, c in can.items() if c is not None},
            "packages": {n: v for n, v in package_versions(_PACKAGES).items() if v is not None},
            "python": platform.python_version(),
            "git": git_revision(),
            "counts": manifest.counts(out),
            "calls": read_statistics(out / "cache.sqlite"),
        }
        storage.write_json(out / "manifest.json", content, sort_keys=True)

    async def make(
        self,
        shards: list[Shard],
        models: Models,
        cache: Cache | None,
        out: Path,
        progress: Callable[[LocalRunner], None],
        *,
        signals: bool = True,
    ) -> LocalRunner:
        """Makes shards in this process. Returns the runner, which has counted."""
        with ThreadPoolExecutor(_DECODERS) as threads:
            run_id, started = self.run_id(models), time.time()
            pipeline = build(self.config, self.prompts, models, threads, run_id, self.images)
            watch = FirstAnswers(cache, self.config.verify.min_answer_probability)

            async def process(images: Sequence[ImageItem]) -> list[Rows]:
                rows = await pipeline.process(images)
                for own in rows:
                    watch.count(own)
                return rows

            window = self.config.engine.window
            runner = LocalRunner(out, process, cache, window, self.together(models))
            try:
                await runner.run(shards, progress, signals=signals)
            except UselessAnswers as error:  # after a repair they are asked for again
                cache.forget(stage=error.stage, since=started)
                for shard in shards:
                    shard.mark(out).unlink(missing_ok=True)
                raise
        return runner


@dataclass(frozen=True)
class Outcome:
    """How a run ended: counts over all shards, and images that wait for a batch file."""

    counts: dict[str, int]
    pending: int


def prepare(config: Settings) -> Job:
    """Reads and checks everything that needs no server. Raises InputError."""
    roles = resolve(config)
    prompts = dict(load_prompts(config.prompts))
    given, fields = config.input, config.input.fields or ""
    ingested = read_captions(given.captions, config.max_rejects, fields)
    images, folder = ingested.images, given.images
    if roles.propose == "vqa":
        images = list(with_questions(images, given.questions, given.answers))
        if not images:
            raise InputError(
                f"{given.questions} asks no yes/no question about the images of {given.captions}: "
                "the two must be of the same split"
            )
    ingested = Ingested(images[: config.limit], ingested.rejects)
    # Single photos may be missing; where none of the first is there, the folder is wrong.
    names = [image.file_name for image in ingested.images[:_LOOKED_FOR]]
    if folder is not None and not PhotoFolder(folder, 1).holds_any(names):
        raise InputError(
            f"none of the first {len(names)} photos is in {folder} (for example {names[0]}); give "
            "--images the folder that the file names start from"
        )
    inputs = {
        name: file_facts(path)
        for name, path in sorted(given.items())
        if path and name not in ("images", "fields") and not kind_of(path)[0]
    }
    if kind_of(given.captions)[0]:  # captions in shards, with photos or without
        _, digest = content_of(given.captions, require_negated=False, fields=fields)
        inputs["captions"] = {"path": given.captions, "sha256": digest()}
    return Job(config, roles, prompts, ingested, images, inputs)


def run(
    config: Settings,
    out: Path,
    say: Callable[[str], None] = lambda line: say(line, sys.stderr),
) -> Outcome:
    """Runs or continues a run in the directory `out`; `say` takes lines of progress.

    Raises InputError (and EndpointError) and Interrupted; what was finished stays, and the same
    call continues.
    """
    job = prepare(_as_begun(config, out))
    with locked(out):
        return asyncio.run(_run(job, out, say))


def _as_begun(config: Settings, out: Path) -> Settings:
    """The settings, with as many images a request as the run in `out` began with, if that is open.

    Another number would be other questions, and answers are there already. Earlier versions asked
    about one at a time.
    """
    if config.llm.images_per_request is None:
        with contextlib.suppress(InputError):  # a run that begins now
            begun = read_manifest(out).get("images_per_request", 1)
            config = config.copy_and_resolve_references()
            config.llm.images_per_request = begun
    return config


async def _run(job: Job, out: Path, say: Callable[[str], None]) -> Outcome:
    asks = job.roles.needs_llm or job.roles.needs_mllm
    cache = Cache(out / "cache.sqlite", job.config.engine.cache) if asks else None
    started, status, pending, ended = time.time(), "failed", 0, {}
    try:
        async with connected(job.config, job.roles, job.prompts, cache, out) as models:
            pending = await _run_shards(job, models, cache, out, say)
        status = "pending" if pending else "done"
    except BaseException as error:
        status = type(error).__name__
        if isinstance(error, InputError):  # the report says why there is no more
            ended = {"message": str(error)[:1000]}
        raise
    finally:
        if cache is not None:
            cache.close()
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        line |= {"host": socket.gethostname(), "pid": os.getpid(), "status": status}
        line["seconds"] = round(time.time() - started, 3)
        Journal(out / "sessions.jsonl").append(line | ended)
    return Outcome(manifest.counts(out), pending)


async def _run_shards(
    job: Job, models: Models, cache: Cache | None, out: Path, say: Callable[[str], None]
) -> int:
    """Processes what is not done yet; returns how many images wait for a batch file."""
    number = math.ceil(len(job.ingested.images) / job.config.shard_images)
    todo = job.begin(models, out)
    done = f", {number - len(todo)} of {number} shards are done" if len(todo) < number else ""
    say(
        f"{job.ingested.captions} captions of {len(job.ingested.images)} images; propose: "
        f"{job.roles.propose}, verify: {job.roles.verify}, rewrite: {job.roles.rewrite}{done}"
    )
    total = sum(len(shard.images) for shard in todo)
    started = time.monotonic()

    def progress(runner: LocalRunner) -> None:
        if total:
            done, seconds = runner.images_done, max(time.monotonic() - started, 1e-9)
            eta = f", ETA {human_seconds(seconds / done * (total - done))}" if done else ""
            rate = f"{done / seconds:.1f} images/s{eta}"
            say(f"{done}/{total} images, {runner.accepted} pairs, {rate}")

    runner = await job.make(todo, models, cache, out, progress)
    if cache is not None:
        cache.flush()
    job.note(models, out)
    return runner.images_pending


def run_on_ray(config: Settings, out: Path, *, workers: int) -> Outcome:
    """Runs or continues a run in `out`, a directory that every machine of the cluster sees.

    Raises InputError without Ray, and where a shard failed on every retry.
    """
    try:
        import ray
    except ImportError:
        raise InputError(f"--runner=ray needs Ray: {extras.install('ray')}") from None
    job = prepare(_as_begun(config, out))
    config = job.config

    async def look(what: Callable[[Models, Path], Any]) -> Any:
        """Calls a method of the job; the servers are probed once, for all workers."""
        async with connected(config, job.roles, job.prompts, None, out) as models:
            return what(models, out)

    with locked(out):
        if todo := asyncio.run(look(job.begin)):
            ray.init(ignore_reinit_error=True, log_to_driver=False, include_dashboard=False)
            data = ray.data.from_items([{"shard": shard.number} for shard in todo])
            done = data.map_batches(
                ShardWorker,
                fn_constructor_args=(config.to_dict(), str(out.resolve())),
                batch_size=1,
                concurrency=min(workers, len(todo)),
                max_restarts=3,
                max_task_retries=3,
            )
            for batch in done.iter_batches(batch_size=1):
                for number, accepted in zip(batch["shard"], batch["accepted"], strict=True):
                    print(f"shard {number}: {accepted} pairs", file=sys.stderr)
        asyncio.run(look(job.note))
    return Outcome(manifest.counts(out), 0)


class ShardWorker:
    """An actor that makes whole shards; its job is read once."""

    def __init__(self, config: dict[str, Any], out: str):
        self._job, self._out = prepare(Settings(config).lock()), Path(out)
        self._local = Path(tempfile.mkdtemp(prefix="data_gen-"))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Makes the shards of a batch `{"shard": [numbers]}`; adds their accepted pairs."""
        accepted = [asyncio.run(self._make(int(number))) for number in batch["shard"]]
        return {"shard": batch["shard"], "accepted": accepted}

    async def _make(self, number: int) -> int:
        job = self._job
        cache = Cache(self._local / "cache.sqlite", job.config.engine.cache)
        try:
            async with connected(job.config, job.roles, job.prompts, cache, self._out) as models:
                shard, ignore = job.cut(models)[number], lambda _: None
                runner = await job.make([shard], models, cache, self._out, ignore, signals=False)
                return runner.accepted
        finally:
            cache.close()
