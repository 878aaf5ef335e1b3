"""One run at a time in a directory."""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from data_gen.errors import InputError


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Holds the lock of a run directory; it is free again when the process ends, however it ends.

    Raises InputError that names the holder, and for a directory that cannot be written to.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = (run / "lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{run} cannot be written to ({error.strerror}); give another --out"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise InputError(
                f"{run} is in use by {_holder(file.read())}; wait or stop it"
            ) from None
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        file.flush()
        yield


def _holder(text: str) -> str:
    try:
        holder = json.loads(text)
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
