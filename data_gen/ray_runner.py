"""The same work on a Ray cluster: a shard is a task, and a lost worker costs one shard.

Each worker runs the local runner on its shard with a cache of its own on local disk (SQLite is not
for network file systems) and writes tables to the run directory, which all machines must see. The
driver gives out only shards that are not done, so that running the command again continues; the
tables equal the local runner's byte for byte, as far as the models repeat themselves.
"""

import asyncio
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from data_gen import manifest, settings, shards
from data_gen.build import Models, build
from data_gen.connect import connected
from data_gen.engines.cache import Cache
from data_gen.generate import Job, Outcome, note, prepare, run_id_of
from data_gen.records import write_table
from data_gen.runner import LocalRunner
from data_gen.settings import Settings
from negclip_jax.common import extras
from negclip_jax.common.atomic_files import locked
from negclip_jax.common.errors import InputError


def run(config: Settings, out: Path, *, workers: int) -> Outcome:
    """Runs or continues a run in `out`, a directory that every machine of the cluster sees.

    Raises InputError without Ray, and where a shard failed on every retry.
    """
    try:
        import ray
    except ImportError:
        raise InputError(f"--runner=ray needs Ray: {extras.install('ray')}") from None
    job = prepare(config)
    with locked(out):
        todo, run_id = asyncio.run(_first_look(job, out))
        if todo:
            ray.init(ignore_reinit_error=True, log_to_driver=False, include_dashboard=False)
            _run_shards(ray, config, out.resolve(), [s.number for s in todo], run_id, workers)
        asyncio.run(_last_look(job, out))
    return Outcome(manifest.counts(out), 0)


async def _first_look(job: Job, out: Path) -> tuple[list[shards.Shard], str]:
    """Probes once for all workers, writes the manifest, and finds what is to be done."""
    async with connected(job.config, job.roles, None, out) as models:
        todo = shards.left_to_do(out, job.cut(models))
        write_table(out / "rejects" / "part-ingest.parquet", "rejects", job.ingested.rejects)
        run_id = run_id_of(job, models)
        note(job, models, out, run_id)
    return todo, run_id


async def _last_look(job: Job, out: Path) -> None:
    async with connected(job.config, job.roles, None, out) as models:
        note(job, models, out, run_id_of(job, models))


def _run_shards(
    ray: Any, config: Settings, out: Path, numbers: list[int], run_id: str, workers: int
) -> None:
    data = ray.data.from_items([{"shard": number} for number in numbers])
    done = data.map_batches(
        ShardWorker,
        fn_constructor_args=(config.to_dict(), str(out), run_id),
        batch_size=1,
        concurrency=min(workers, len(numbers)),
        max_restarts=3,
        max_task_retries=3,
    )
    for batch in done.iter_batches(batch_size=1):
        for number, accepted in zip(batch["shard"], batch["accepted"], strict=True):
            print(f"shard {number}: {accepted} pairs", file=sys.stderr)


class ShardWorker:
    """An actor that makes whole shards; its job is read once."""

    def __init__(self, config: dict[str, Any], out: str, run_id: str):
        self._config = settings.from_dict(config)
        self._out, self._run_id = Path(out), run_id
        self._job = prepare(self._config)
        self._local = Path(tempfile.mkdtemp(prefix="data_gen-"))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Makes the shards of a batch `{"shard": [numbers]}`; adds their accepted pairs."""
        accepted = [asyncio.run(self._make(int(number))) for number in batch["shard"]]
        return {"shard": batch["shard"], "accepted": accepted}

    async def _make(self, number: int) -> int:
        cache = Cache(self._local / "cache.sqlite", self._config.engine.cache)
        try:
            async with connected(self._config, self._job.roles, cache, self._out) as models:
                return await self._process(number, models, cache)
        finally:
            cache.close()

    async def _process(self, number: int, models: Models, cache: Cache) -> int:
        config = self._config
        shard = self._job.cut(models)[number]
        source = Path(config.input.captions).name
        with ThreadPoolExecutor(4) as threads:
            pipeline = build(config, self._job.prompts, models, threads, self._run_id, source)
            runner = LocalRunner(self._out, pipeline.process, cache, config.engine.window)
            await runner.run([shard], lambda _: None, signals=False)
        return runner.accepted
