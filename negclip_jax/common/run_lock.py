"""One process at a time in a run's directory."""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from negclip_jax.common import atomic_files
from negclip_jax.common.errors import InputError


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Holds the lock of a run's directory, which is made; free when the process ends, however.

    Raises InputError that names the holder, and for a directory that cannot be written to.
    """
    path = run / "lock"
    try:
        run.mkdir(parents=True, exist_ok=True)
        descriptor = atomic_files.lock(path)
    except OSError as error:
        raise InputError(
            f"{run} cannot be written to ({error.strerror}); give another --out"
        ) from None
    if descriptor is None:
        raise InputError(f"{run} is in use by {_holder(path)}; wait or stop it")
    with open(descriptor, "w", encoding="utf-8") as file:
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        file.flush()
        yield


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
