"""What a run writes down about itself: configuration, versions, revision, devices."""

import contextlib
import errno
import json
import os
import platform
import sys
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from negclip_jax.common import storage
from negclip_jax.common.errors import InputError
from negclip_jax.common.provenance import git_revision, package_versions

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "negclip-jax")


def create(workdir: str) -> epath.Path:
    """Makes the directory and proves that it can be written to."""
    path = storage.path(workdir)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".write_test"
        probe.write_text("")
        probe.unlink(missing_ok=True)  # several processes may do this at once
    except storage.errors() as error:
        raise InputError(
            f"cannot write to --workdir={workdir}: {error}; make it writable or give another"
        ) from error
    return path


@contextlib.contextmanager
def disk_errors(workdir: str) -> Iterator[None]:
    """Makes a user error of what the system says of a full, read-only, broken or vanished disk.

    In a bucket, and in this directory, every failure is one of the storage; elsewhere other errors
    stay as they are.
    """
    try:
        yield
    except storage.errors() as error:
        path, lost = storage.path(workdir), False
        with contextlib.suppress(*storage.errors()):  # that it does not answer is another matter
            # Gone, or a save that was under way has made an empty one in its place.
            is_inside = isinstance(error, FileNotFoundError)
            is_inside = is_inside and str(error.filename).startswith(str(path))
            lost = not path.exists() or (is_inside and not (path / "config.json").exists())
        if lost:
            raise InputError(
                f"{workdir} has vanished while the run wrote to it ({error}): nothing could be "
                "saved since its last checkpoint. Bring it back and run the same command again to "
                "continue, or run it to start over"
            ) from error
        where = str(getattr(error, "filename", None) or workdir)
        is_of_disk = getattr(error, "errno", None) in _DISK_ERRORS or storage.is_remote(path)
        if not is_of_disk and not where.startswith(f"{path}{os.sep}"):
            raise
        action = "write to" if is_of_disk else "read or write"
        raise InputError(
            f"cannot {action} {where}: {storage.root_cause(error)}; checkpoints that were complete "
            "stay usable. Mend the disk and run the same command again to continue"
        ) from error


def read_config(path: epath.Path) -> dict[str, Any]:
    """The configuration that a run was started with; raises InputError where it is unreadable."""
    file = path / "config.json"
    try:
        return dict(json.loads(storage.read_text(file)))
    except (*storage.errors(), ValueError, TypeError) as error:
        raise InputError(
            f"{file}, which says how this run was started, cannot be read ({error}): bring it back "
            "from a copy, or start over in another --workdir"
        ) from error


def record(path: epath.Path, config: dict[str, Any]) -> None:
    """Writes `config.json` and `environment.json`."""
    for name, content in (("config.json", config), ("environment.json", environment())):
        storage.write_json(path / name, content, indent=2, sort_keys=True, ensure_ascii=True)


def environment(*libraries: str) -> dict[str, Any]:
    """Versions, git revision, command line and devices of this process.

    `libraries`: packages to name beside those that every command uses.
    """
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": package_versions([*_PACKAGES, *libraries]),
        "git_revision": git_revision(),
        "devices": [f"{d.device_kind} {d.id}" for d in jax.devices()],
        "processes": jax.process_count(),
    }


def differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Leaves in which two nested dicts differ: `{dotted key: (old, new)}`."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = {}
        for key in sorted(old.keys() | new.keys()):
            found |= differences(old.get(key), new.get(key), f"{prefix}{key}.")
        return found
    return {} if old == new else {prefix.rstrip("."): (old, new)}
