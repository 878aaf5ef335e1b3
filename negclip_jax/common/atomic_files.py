"""Files that are still being written: a killed process leaves nothing that stays.

What is being written lies beside its destination under a hidden name, locked by the process that
writes it. The kernel drops the locks of a process that is gone, so the next one that writes the
same file takes over what is not locked, and removes the rest. There is never more of it than there
are processes at work.
"""

import contextlib
import fcntl
import glob
import itertools
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to that becomes `path` when the block ends without an error.

    Several processes may do so with the same `path`: each has its own, the last one wins.
    """
    for number in itertools.count():
        unfinished = path.with_name(f".{path.stem}.{number}.partial{path.suffix}")
        descriptor = lock(unfinished)
        if descriptor is not None:
            break
    try:
        yield unfinished
        unfinished.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # what went wrong with the disk is being raised
            unfinished.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    remove_abandoned(path)


def remove_abandoned(path: Path) -> None:
    """Removes what killed processes left of their attempts to write `path`."""
    pattern = f".{glob.escape(path.stem)}.*.partial{path.suffix}"
    for unfinished in path.parent.glob(pattern):
        descriptor = lock(unfinished)
        if descriptor is not None:
            unfinished.unlink(missing_ok=True)
            os.close(descriptor)


def lock(path: Path) -> int | None:
    """Creates or opens a file for this process alone; None where another process has it.

    Returns:
      An open descriptor; the lock lasts until it is closed or the process ends. Where the file
      system has no locks, only the process that created the file gets one.
    """
    while True:
        is_new = False
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            is_new = True
        except FileExistsError:
            try:
                descriptor = os.open(path, os.O_RDWR)
            except FileNotFoundError:
                continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if is_new and not isinstance(error, BlockingIOError):
                return descriptor
            os.close(descriptor)
            return None
        if _is_at(path, descriptor):
            return descriptor
        os.close(descriptor)  # its owner finished, renamed or removed it, between the two lines


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
