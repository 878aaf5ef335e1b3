"""Hears of a checkpoint that one process could not write, before orbax waits for the others.

Orbax writes in a background thread. Where that fails on one of several processes, it logs the
error, and then waits for the others, which wait for this one: 20 minutes, as long as it allows a
save to take. So its log is listened to.
"""

import contextlib
import logging
from collections.abc import Iterator

from negclip_jax.common import storage
from negclip_jax.runtime import multihost

_THREAD = "async_save"  # orbax's, that waits until everything is written


@contextlib.contextmanager
def end_the_run(workdir: str) -> Iterator[None]:
    """In this block a failed save ends all processes at once; with one process orbax tells us."""
    if multihost.is_single_process():
        yield
        return
    listener = _Listener(workdir)
    logging.getLogger("absl").addHandler(listener)
    try:
        yield
    finally:
        logging.getLogger("absl").removeHandler(listener)


class _Listener(logging.Handler):
    def __init__(self, workdir: str):
        super().__init__(logging.ERROR)
        self._workdir = workdir

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and record.threadName == _THREAD:
            multihost.end_all(
                f"cannot write a checkpoint to {self._workdir}: {storage.root_cause(error)}; those "
                "that were complete stay usable. Mend the disk and run the same command again",
                error,
            )
