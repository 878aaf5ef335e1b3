"""A run from its settings to its tables, resumable at every moment."""

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_gen import manifest, shards
from data_gen.build import Models, Roles, build, resolve
from data_gen.connect import connected
from data_gen.engines.base import Capabilities
from data_gen.engines.cache import Cache
from data_gen.prompts import Prompt, load_prompts
from data_gen.records import write_table
from data_gen.runner import LocalRunner
from data_gen.settings import Settings, fingerprint
from data_gen.shards import Shard
from data_gen.stages.ingest import Ingested, read_captions, with_questions
from data_gen.stages.verify import method_for
from data_gen.work import ImageItem
from negclip_jax.common.atomic_files import locked
from negclip_jax.common.errors import InputError
from negclip_jax.common.provenance import content_hash

_DECODERS = 4  # threads that read and decode photos
_LOOKED_FOR = 50  # photos, before anything is asked


@dataclass(frozen=True)
class Job:
    """What is to be done, before any server was asked.

    Attributes:
      config: the settings.
      roles: who does what.
      prompts: by name.
      ingested: images and rejected captions.
      inputs: facts of the input files.
    """

    config: Settings
    roles: Roles
    prompts: dict[str, Prompt]
    ingested: Ingested
    inputs: dict[str, dict[str, Any]]

    def settings_print(self, models: Models) -> str:
        """The fingerprint of everything that decides the tables, but for the images."""
        can = [_decisive(models.llm_can), _decisive(models.mllm_can), _method(self, models)]
        files = {n: f["sha256"] for n, f in self.inputs.items() if n != "captions"}
        return fingerprint(self.config, self.prompts, [asdict(self.roles), can, files])

    def cut(self, models: Models) -> list[Shard]:
        """The shards of the job."""
        size = self.config.shard_images
        return shards.cut(self.ingested.images, size, self.settings_print(models))


def _decisive(can: Capabilities | None) -> list | None:
    """What of a model's capabilities changes the requests; the rest is for people."""
    return can and [can.model, can.schema, can.system, can.choice]


def _method(job: Job, models: Models) -> str:
    """How absence is verified."""
    if models.mllm_can is None:
        return job.roles.verify
    return method_for(job.config.verify.method, models.mllm_can)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: counts over all shards, and images that wait for a batch file."""

    counts: dict[str, int]
    pending: int


def prepare(config: Settings) -> Job:
    """Reads and checks everything that needs no server. Raises InputError."""
    roles = resolve(config)
    prompts = dict(load_prompts(config.prompts))
    ingested = read_captions(config.input.captions, config.max_rejects)
    images = ingested.images
    if roles.propose == "vqa":
        images = list(with_questions(images, config.input.questions, config.input.answers))
        if not images:
            raise InputError(
                f"{config.input.questions} asks no yes/no question about the images of "
                f"{config.input.captions}: the two must be of the same split"
            )
    ingested = Ingested(images[: config.limit], ingested.rejects)
    if config.input.images is not None:
        _check_folder(config.input.images, ingested.images)
    return Job(config, roles, prompts, ingested, manifest.input_facts(config))


def _check_folder(folder: str, images: Sequence[ImageItem]) -> None:
    """Single photos may be missing; where none of the first is there, the folder is wrong."""
    names = [image.file_name for image in images[:_LOOKED_FOR]]
    if not any((Path(folder) / name).exists() for name in names):
        raise InputError(
            f"none of the first {len(names)} photos is in {folder} (for example {names[0]}); give "
            "--images the folder that the file names start from"
        )


def run(
    config: Settings,
    out: Path,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> Outcome:
    """Runs or continues a run in the directory `out`; `say` takes lines of progress.

    Raises InputError (and EndpointError) and Interrupted; what was finished stays, and the same
    call continues.
    """
    job = prepare(config)
    with locked(out):
        return asyncio.run(_run(job, out, say))


async def _run(job: Job, out: Path, say: Callable[[str], None]) -> Outcome:
    config = job.config
    cache = Cache(out / "cache.sqlite", config.engine.cache) if _asks(job.roles) else None
    started, status, pending = time.time(), "failed", 0
    try:
        async with connected(config, job.roles, cache, out) as models:
            pending = await _run_shards(job, models, cache, out, say)
        status = "pending" if pending else "done"
    except BaseException as error:
        status = type(error).__name__
        raise
    finally:
        if cache is not None:
            cache.close()
        seconds = round(time.time() - started, 3)
        manifest.log_session(out, {"status": status, "seconds": seconds})
    return Outcome(manifest.counts(out), pending)


def _asks(roles: Roles) -> bool:
    return roles.needs_llm or roles.needs_mllm


async def _run_shards(
    job: Job, models: Models, cache: Cache | None, out: Path, say: Callable[[str], None]
) -> int:
    """Processes what is not done yet; returns how many images wait for a batch file."""
    all_shards = job.cut(models)
    run_id = run_id_of(job, models)
    todo = shards.left_to_do(out, all_shards)
    write_table(out / "rejects" / "part-ingest.parquet", "rejects", job.ingested.rejects)
    note(job, models, out, run_id)
    say(_opening(job, len(all_shards), len(todo)))
    with ThreadPoolExecutor(_DECODERS) as threads:
        source = Path(job.config.input.captions).name
        pipeline = build(job.config, job.prompts, models, threads, run_id, source)
        runner = LocalRunner(out, pipeline.process, cache, job.config.engine.window)
        total = sum(len(shard.images) for shard in todo)
        started = time.monotonic()

        def progress(runner: LocalRunner) -> None:
            if total:
                say(_progress(runner, total, time.monotonic() - started))

        await runner.run(todo, progress)
    if cache is not None:
        cache.flush()
    note(job, models, out, run_id)
    return runner.images_pending


def run_id_of(job: Job, models: Models) -> str:
    """Twelve hexadecimal digits that name settings, prompts, models and input."""
    captions = job.inputs["captions"]["sha256"]
    return content_hash([job.settings_print(models), captions])[:12]


def note(job: Job, models: Models, out: Path, run_id: str) -> None:
    """Writes the manifest of a run."""
    can = {"llm": models.llm_can, "mllm": models.mllm_can}
    about = {
        "run_id": run_id,
        "roles": asdict(job.roles),
        "verify_method": _method(job, models),
        "inputs": job.inputs,
        "captions": job.ingested.captions,
        "images": len(job.ingested.images),
        "ingest_rejects": len(job.ingested.rejects),
    }
    capabilities = {role: c for role, c in can.items() if c is not None}
    manifest.write_manifest(out, job.config, job.prompts, capabilities, about)


def _opening(job: Job, total: int, todo: int) -> str:
    roles = job.roles
    done = f", {total - todo} of {total} shards are done" if todo < total else ""
    return (
        f"{job.ingested.captions} captions of {len(job.ingested.images)} images; propose: "
        f"{roles.propose}, verify: {roles.verify}, rewrite: {roles.rewrite}{done}"
    )


def _progress(runner: LocalRunner, total: int, seconds: float) -> str:
    rate = runner.images_done / max(seconds, 1e-9)
    return f"{runner.images_done}/{total} images, {runner.accepted} pairs, {rate:.1f} images/s"
