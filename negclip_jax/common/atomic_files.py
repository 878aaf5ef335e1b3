"""Files and directories that appear whole or not at all, and locks.

What is being written lies beside its destination under a hidden name, locked by the process that
writes it. The kernel releases the locks of a process that has ended, so the next one to write the
same destination reuses or removes what an interrupted one left. There is never more of it than
there are processes at work.
"""

import contextlib
import fcntl
import glob
import itertools
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from negclip_jax.common.errors import InputError


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to that becomes `path` when the block ends without an error.

    The new file is on the disk before it gets its name (fsync, then rename), so a crash at any
    moment leaves the former file or the new one. Several processes may write the same `path`: each
    has a file of its own, the last one wins. The directory must exist: making it would hide that
    a disk has vanished.

    Raises OSError, and removes what it began.
    """
    for number in itertools.count():
        unfinished = path.with_name(f".{path.stem}.{number}.partial{path.suffix}")
        descriptor = lock(unfinished)
        if descriptor is not None:
            break
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # what went wrong with the disk is being raised
            unfinished.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    _remove_abandoned(path)


def _remove_abandoned(path: Path) -> None:
    """Removes what killed processes left of their attempts to write `path`."""
    pattern = f".{glob.escape(path.stem)}.*.partial{path.suffix}"
    for unfinished in path.parent.glob(pattern):
        descriptor = lock(unfinished)
        if descriptor is not None:
            unfinished.unlink(missing_ok=True)
            os.close(descriptor)


@contextlib.contextmanager
def whole_directory(out: Path) -> Iterator[Path]:
    """An empty directory that becomes `out` when the block ends without an error.

    What `out` held before is removed then, and stays after an error. Raises InputError where
    another process writes it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with _claimed(out) as (stage, old):
        stage.mkdir()
        try:
            yield stage
            if out.exists():
                out.rename(old)
            stage.rename(out)
        finally:
            _undo(stage, old, out)


def recover_directory(out: Path) -> None:
    """Undoes what a killed process left of `whole_directory`; raises InputError: see there."""
    if _claim(out).is_dir():
        with _claimed(out) as (stage, old):
            _undo(stage, old, out)


def _claim(out: Path) -> Path:
    return out.parent / f".{out.name}.partial"


@contextlib.contextmanager
def _claimed(out: Path) -> Iterator[tuple[Path, Path]]:
    """Two paths beside `out` for this process alone: of the new directory and of the old one."""
    claim = _claim(out)
    claim.mkdir(exist_ok=True)
    descriptor = lock(claim / "lock")
    if descriptor is None:
        raise InputError(f"another process is writing {out}: wait for it or end it")
    try:
        yield claim / "new", claim / "old"
    finally:
        shutil.rmtree(claim, ignore_errors=True)
        os.close(descriptor)


def _undo(stage: Path, old: Path, out: Path) -> None:
    """Brings back an `out` that was moved away and not replaced; removes the rest."""
    if old.exists() and not out.exists():
        old.rename(out)
    for leftover in (stage, old):
        shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Holds the lock of a run's directory, which is made; free when the process ends, however.

    Raises InputError that names the holder, and for a directory that cannot be written to.
    """
    path = run / "lock"
    try:
        run.mkdir(parents=True, exist_ok=True)
        descriptor = lock(path)
    except OSError as error:
        raise InputError(
            f"{run} cannot be written to ({error.strerror}); give another --out"
        ) from None
    if descriptor is None:
        holder = "another process"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            written = json.loads(path.read_text(encoding="utf-8"))
            holder = f"process {written['pid']} on {written['host']}"
        raise InputError(f"{run} is in use by {holder}; wait or stop it")
    with open(descriptor, "w", encoding="utf-8") as file:
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        file.flush()
        yield


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
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)  # its owner finished, renamed or removed it, between the two lines
