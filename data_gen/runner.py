"""Many images at once in one process, and their rows on disk in finished shards.

A shard's tables are written first and its mark in `done/` last, so that a mark stands for complete
tables. The mark holds the fingerprint of settings and images that it was made with: after a change
of either the shard is made again, from cached answers as far as they still fit.
"""

import asyncio
import contextlib
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from data_gen.engines.cache import Cache
from data_gen.engines.probe import Pending
from data_gen.records import SCHEMAS, ImageItem, Rows, write_table
from negclip_jax.common import storage
from negclip_jax.common.errors import InputError
from negclip_jax.common.provenance import content_hash
from negclip_jax.common.signals import SIGNALS, Interrupted

DRAIN_SECONDS = 30.0  # that images in work get after Ctrl-C
_TICK = 0.25  # seconds between two commits of the cache
_REPORT_SECONDS = 5.0


@dataclass(frozen=True)
class Shard:
    """A run of images, in order of their ids."""

    number: int  # from 0; part of the files' names
    images: Sequence[ImageItem]
    fingerprint: str  # of settings and images

    @property
    def name(self) -> str:
        return f"part-{self.number:05d}.parquet"

    def mark(self, run: Path) -> Path:
        """Where the run directory says that the shard is done."""
        return run / "done" / f"part-{self.number:05d}.json"

    def is_done(self, run: Path) -> bool:
        """Whether its tables are complete and belong to the same settings and images."""
        try:
            mark = json.loads(self.mark(run).read_text(encoding="utf-8"))
            # Of the tables that its version wrote: an earlier one had no labels.
            present = all((run / name / self.name).is_file() for name in mark["sha256"])
            return present and mark["fingerprint"] == self.fingerprint
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def write(self, run: Path, parts: Iterable[Rows]) -> dict[str, Any]:
        """Writes its tables, then its mark; returns the counts in the mark."""
        parts = list(parts)
        tables = {name: [row for rows in parts for row in getattr(rows, name)] for name in SCHEMAS}
        self.mark(run).unlink(missing_ok=True)  # the former mark is not for the new tables
        hashes = {}
        for name, rows in tables.items():
            path = run / name / self.name
            write_table(path, name, rows)
            hashes[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        counts = {name: len(rows) for name, rows in tables.items()}
        counts["images"] = len(self.images)
        counts["accepted"] = sum(row["accepted"] for row in tables["pairs"])
        mark = {"fingerprint": self.fingerprint, "rows": counts, "sha256": hashes}
        self.mark(run).parent.mkdir(exist_ok=True)
        storage.write_json(self.mark(run), mark, sort_keys=True)
        return counts


def cut(images: Sequence[ImageItem], size: int, settings: str) -> list[Shard]:
    """Shards of `size` images; `settings` is the fingerprint of the settings."""
    parts = [images[start : start + size] for start in range(0, len(images), size)]
    return [
        Shard(number, part, content_hash([settings, [astuple(image) for image in part]]))
        for number, part in enumerate(parts)
    ]


def left_to_do(run: Path, every: Sequence[Shard]) -> list[Shard]:
    """The shards that are not done; parts in the run directory that belong to none are removed."""
    done, left = [], []
    for shard in every:
        (done if shard.is_done(run) else left).append(shard)
    remove_others(run, done)
    return left


def remove_others(run: Path, done: Sequence[Shard]) -> None:
    """Removes every part but those of the shards that are done.

    What is left of a longer run, or of one with other settings, must not be counted or exported
    while the run is on its way.
    """
    kept = {shard.name for shard in done} | {shard.mark(run).name for shard in done}
    for name in (*SCHEMAS, "done"):
        for path in (run / name).glob("part-[0-9]*"):
            if path.suffix in (".parquet", ".json") and path.name not in kept:
                path.unlink()


def read_marks(run: Path) -> list[dict[str, Any]]:
    """Fingerprints and counts in the marks of all finished shards, in order."""
    marks = []
    for path in sorted((run / "done").glob("part-*.json")):
        with contextlib.suppress(ValueError, TypeError, KeyError):  # damaged: its shard is not done
            mark = json.loads(path.read_text(encoding="utf-8"))
            marks.append({"fingerprint": mark["fingerprint"], "rows": dict(mark["rows"])})
    return marks


class LocalRunner:
    """Runs a function over the images of shards and writes what it gives.

    Images are taken in order, at most `window` at a time, so that the questions about one photo
    come close together. The window spans shards: no server waits for the last image of one. The
    function gets `together` images of a shard at once, of which none begins before all can.
    """

    def __init__(
        self,
        run: Path,
        process: Callable[[Sequence[ImageItem]], Coroutine[Any, Any, list[Rows]]],
        cache: Cache | None,
        window: int,
        together: int = 1,
    ):
        self._run, self._process, self._cache = run, process, cache
        self._window, self._together = max(window, together), together
        self._stop: int | None = None
        self._tasks: set[asyncio.Task] = set()
        self._failure: BaseException | None = None
        self._wake = asyncio.Event()
        self.images_done = self.images_pending = self.accepted = 0

    async def run(
        self,
        todo: Sequence[Shard],
        progress: Callable[["LocalRunner"], None],
        *,
        signals: bool = True,
    ) -> None:
        """Processes the shards. Raises what a stage raises, and Interrupted; the rest is kept.

        `signals`: listen to SIGINT and SIGTERM, which only a main thread can.
        """
        loop = asyncio.get_running_loop()
        listened = SIGNALS if signals else ()
        for signum in listened:
            loop.add_signal_handler(signum, self._on_signal, signum)
        ticker = asyncio.ensure_future(self._tick(progress))
        try:
            with ThreadPoolExecutor(1) as disk:
                await self._all(todo, disk)
                await self._end()
        finally:
            ticker.cancel()
            for signum in listened:
                loop.remove_signal_handler(signum)
            progress(self)

    async def _all(self, todo: Sequence[Shard], disk: ThreadPoolExecutor) -> None:
        slots = asyncio.Semaphore(self._window)
        for shard in todo:
            tasks = []
            for start in range(0, len(shard.images), self._together):
                images = list(shard.images[start : start + self._together])
                for _ in images:
                    await self._or_stop(slots.acquire())
                    if self._stop is not None or self._failure is not None:
                        return
                task = self._watched(self._rows(images))
                for _ in images:
                    task.add_done_callback(lambda _: slots.release())
                tasks.append(task)
            self._watched(self._finish(shard, tasks, disk))
        if self._tasks:
            await self._or_stop(asyncio.wait(set(self._tasks)))

    async def _or_stop(self, what: Coroutine) -> None:
        """Waits for something, or for a reason to stop."""
        task = asyncio.ensure_future(what)
        woken = asyncio.ensure_future(self._wake.wait())
        await asyncio.wait((task, woken), return_when=asyncio.FIRST_COMPLETED)
        woken.cancel()
        if not task.done():
            task.cancel()

    async def _rows(self, images: Sequence[ImageItem]) -> list[Rows]:
        try:
            rows = await self._process(images)
        except Pending:
            self.images_pending += len(images)
            raise
        self.images_done += len(images)
        self.accepted += sum(row["accepted"] for own in rows for row in own.pairs)
        return rows

    async def _finish(
        self, shard: Shard, tasks: Sequence[asyncio.Task], disk: ThreadPoolExecutor
    ) -> None:
        parts = await asyncio.gather(*tasks, return_exceptions=True)
        if all(isinstance(part, list) for part in parts):
            rows = itertools.chain.from_iterable(parts)
            await asyncio.get_running_loop().run_in_executor(disk, shard.write, self._run, rows)

    def _watched(self, work: Coroutine) -> asyncio.Task:
        """The work as a task whose first failure stops the run; an answer to come is none."""

        def note(task: asyncio.Task) -> None:
            self._tasks.discard(task)
            error = None if task.cancelled() else task.exception()
            if error is not None and not isinstance(error, Pending):
                self._failure = self._failure or error
                self._wake.set()

        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(note)
        return task

    async def _end(self) -> None:
        """After Ctrl-C lets what is in work end, 30 seconds at most; raises why the run stopped."""
        if self._stop is not None and self._failure is None and self._tasks:
            self._wake.clear()
            await self._or_stop(asyncio.wait(set(self._tasks), timeout=DRAIN_SECONDS))
        left = set(self._tasks)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=5)
        if self._failure is not None:
            raise self._failure
        if self._stop is not None:
            raise Interrupted(self._stop)

    def _on_signal(self, signum: int) -> None:
        if self._stop is not None:  # a second Ctrl-C: at once
            self._failure = Interrupted(signum)
        elif self._tasks:
            sys.stderr.write(f"stopping: up to {DRAIN_SECONDS:.0f} s for what is in work\n")
        self._stop = signum
        self._wake.set()

    async def _tick(self, progress: Callable[["LocalRunner"], None]) -> None:
        """Commits answers in time and reports."""
        reported = time.monotonic()
        while True:
            await asyncio.sleep(_TICK)
            if self._cache is not None:
                try:
                    self._cache.flush()
                except InputError as error:
                    self._failure = error
                    self._wake.set()
                    return
            if time.monotonic() - reported > _REPORT_SECONDS:
                reported = time.monotonic()
                progress(self)
