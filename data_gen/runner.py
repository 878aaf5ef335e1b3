"""The local runner: one process, many images at once, finished shards on disk.

Images are taken in order, at most `window` at a time, so that the questions about one photo come
close together. The window spans shards: no server waits for the last image of one.
"""

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from data_gen import shards
from data_gen.engines.base import Pending
from data_gen.engines.cache import Cache
from data_gen.shards import Shard
from data_gen.work import ImageItem, Rows
from negclip_jax.common.errors import InputError
from negclip_jax.common.signals import Interrupted

DRAIN_SECONDS = 30.0  # that images in work get after Ctrl-C
_TICK = 0.25  # seconds between two commits of the cache
_REPORT_SECONDS = 5.0

Process = Callable[[ImageItem], Coroutine[Any, Any, Rows]]


class LocalRunner:
    """Runs a function over the images of shards and writes what it gives."""

    def __init__(self, run: Path, process: Process, cache: Cache | None, window: int):
        self._run, self._process, self._cache, self._window = run, process, cache, window
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
        listened = (signal.SIGINT, signal.SIGTERM) if signals else ()
        for signum in listened:
            loop.add_signal_handler(signum, self._on_signal, signum)
        ticker = asyncio.ensure_future(self._tick(progress))
        try:
            with ThreadPoolExecutor(1) as disk:
                await self._all(todo, disk)
        finally:
            ticker.cancel()
            for signum in listened:
                loop.remove_signal_handler(signum)
            progress(self)

    async def _all(self, todo: Sequence[Shard], disk: ThreadPoolExecutor) -> None:
        slots = asyncio.Semaphore(self._window)
        for shard in todo:
            tasks = []
            for image in shard.images:
                await self._or_stop(slots.acquire())
                if self._stopped:
                    return await self._end()
                tasks.append(self._start(image, slots))
            self._watch(asyncio.ensure_future(self._finish(shard, tasks, disk)))
        if self._tasks:
            await self._or_stop(asyncio.wait(set(self._tasks)))
        await self._end()

    @property
    def _stopped(self) -> bool:
        return self._stop is not None or self._failure is not None

    async def _or_stop(self, what: Coroutine) -> None:
        """Waits for something, or for a reason to stop."""
        task = asyncio.ensure_future(what)
        woken = asyncio.ensure_future(self._wake.wait())
        await asyncio.wait((task, woken), return_when=asyncio.FIRST_COMPLETED)
        woken.cancel()
        if not task.done():
            task.cancel()

    def _start(self, image: ImageItem, slots: asyncio.Semaphore) -> asyncio.Task:
        task = asyncio.ensure_future(self._counted(image))
        task.add_done_callback(lambda _: slots.release())
        self._watch(task)
        return task

    async def _counted(self, image: ImageItem) -> Rows:
        try:
            rows = await self._process(image)
        except Pending:
            self.images_pending += 1
            raise
        self.images_done += 1
        self.accepted += sum(row["accepted"] for row in rows.pairs)
        return rows

    def _watch(self, task: asyncio.Task) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._note)

    def _note(self, task: asyncio.Task) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None or isinstance(error, Pending):
            return
        if self._failure is None:
            self._failure = error
        self._wake.set()

    async def _finish(
        self, shard: Shard, tasks: Sequence[asyncio.Task], disk: ThreadPoolExecutor
    ) -> None:
        parts = await asyncio.gather(*tasks, return_exceptions=True)
        if all(isinstance(part, Rows) for part in parts):
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(disk, shards.write, self._run, shard, parts)

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
