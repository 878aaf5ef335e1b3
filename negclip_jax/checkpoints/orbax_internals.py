"""What this package relies on of orbax and tensorstore beyond their public interfaces.

`tests/checkpoints/test_orbax_internals.py` checks each of these against the installed versions: it
fails when orbax has changed one of them, and when one is no longer needed. Known to hold for
orbax-checkpoint 0.11.25 to 0.12.8 and tensorstore 0.1.86; with another version that has changed, a
run loses a diagnosis or some memory, and no checkpoint.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator

import jax
import orbax.checkpoint as ocp
from etils import epath

from negclip_jax.common import storage
from negclip_jax.runtime import multihost

SAVING_THREAD = "async_save"  # waits until everything is written, and logs what failed
WRITING_THREADS = ("array_type_handler", "write_metadata_after_commits")
TMP_SUFFIX = ".orbax-checkpoint-tmp"
# Files that are written when a checkpoint is committed.
COMMIT_FILES = ("_CHECKPOINT_METADATA", "commit_success.txt")
_JOIN_SECONDS = 30.0
_MIN_SLICE_BYTES = 2**20


def disable_throughput_log() -> None:
    """Keeps orbax from asking tensorstore, in order to log a speed, what it has written so far.

    Each answer stays in memory for the life of the process: 40 kB with every save.
    """
    with contextlib.suppress(ImportError, AttributeError):
        from orbax.checkpoint._src.serialization import tensorstore_utils

        if tensorstore_utils.get_tensorstore_raw_bytes:  # AttributeError where it does not ask
            tensorstore_utils.get_tensorstore_raw_bytes = lambda direction=None: 0


def write_small_arrays_whole() -> None:
    """Lets one device write what all hold, unless each one's part of it has a mebibyte.

    Orbax divides such an array among the devices, whatever its size, and compiles a program for
    each shape and each device: at the first save of a tiny CLIP on eight devices 144 programs.
    """
    handler = ocp.type_handlers.get_type_handler(jax.Array)
    if hasattr(handler, "_min_slice_bytes_for_replica_parallel"):
        handler._min_slice_bytes_for_replica_parallel = _MIN_SLICE_BYTES


def join_writing_threads() -> None:
    """Waits for the threads of a save that failed, of which orbax awaits the first error only.

    The others would go on writing into what the next one to open the directory clears away.
    """
    for thread in threading.enumerate():
        if thread.name.startswith(WRITING_THREADS):
            with contextlib.suppress(Exception):  # its join raises what it died of
                thread.join(_JOIN_SECONDS)


def directory_of_save(checkpoints: epath.Path, step: int | None) -> epath.Path:
    """Where the files of a step lie that is about to be committed; in a bucket its own name."""
    names = [path.name for path in checkpoints.iterdir()]
    unfinished = [name for name in names if name.startswith(f"{step}{TMP_SUFFIX}")]
    return checkpoints / (unfinished or [str(step)])[-1]


@contextlib.contextmanager
def end_on_failed_save(workdir: str) -> Iterator[None]:
    """In this block a checkpoint that one of several processes cannot write ends all of them.

    Orbax writes in a background thread. Where that fails on one process it logs the error, and then
    waits for the others, which wait for this one: 20 minutes, as long as it allows a save to take.
    So its log is listened to. With one process, orbax raises the error itself.
    """
    if multihost.is_single_process():
        yield
        return
    listener = _FailedSaves(workdir)
    logging.getLogger("absl").addHandler(listener)
    try:
        yield
    finally:
        logging.getLogger("absl").removeHandler(listener)


class _FailedSaves(logging.Handler):
    def __init__(self, workdir: str):
        super().__init__(logging.ERROR)
        self._workdir = workdir

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and record.threadName == SAVING_THREAD:
            multihost.end_all(
                f"cannot write a checkpoint to {self._workdir}: {storage.root_cause(error)}; those "
                "that were complete stay usable. Mend the disk and run the same command again",
                error,
            )
