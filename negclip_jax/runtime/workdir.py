"""What a run writes down about itself: configuration, versions, revision, devices."""

import contextlib
import errno
import json
import logging
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from etils import epath

from negclip_jax.errors import InputError

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "negclip-jax")


def create(workdir: str) -> epath.Path:
    """Makes the directory and proves that it can be written to."""
    path = epath.Path(workdir)
    if "://" not in workdir:
        path = path.expanduser().absolute()  # orbax writes to absolute paths only
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".write_test"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write to --workdir={workdir}: {error}") from error
    return path


@contextlib.contextmanager
def disk_errors(workdir: str) -> Iterator[None]:
    """Makes a sentence of what the system says of a full, read-only or broken disk."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise InputError(
            f"cannot write to {workdir}: {error}; checkpoints that were complete stay usable. "
            "Mend the disk and run the same command again to continue"
        ) from error


def record(path: epath.Path, config: dict[str, Any]) -> None:
    """Writes `config.json` and `environment.json`."""
    write_json(path / "config.json", config)
    write_json(path / "environment.json", environment())


def environment() -> dict[str, Any]:
    """Versions, git revision, command line and devices of this process."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "git_revision": git_revision(),
        "devices": [f"{d.device_kind} {d.id}" for d in jax.devices()],
        "processes": jax.process_count(),
    }


def git_revision() -> str | None:
    """Commit of the checkout that holds this file, with "+changes" if it was edited; or None."""
    here = Path(__file__).resolve().parent
    try:
        run = [subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, timeout=10)
               for args in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])]  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    if run[0].returncode:
        return None
    return run[0].stdout.strip() + ("+changes" if run[1].stdout.strip() else "")


def differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Leaves in which two nested dicts differ: `{dotted key: (old, new)}`."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = {}
        for key in sorted(old.keys() | new.keys()):
            found |= differences(old.get(key), new.get(key), f"{prefix}{key}.")
        return found
    return {} if old == new else {prefix.rstrip("."): (old, new)}


def write_json(path: epath.Path, value: Any) -> None:
    """Writes JSON so that a crash leaves the old file or the new one."""
    partial = path.parent / (path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
    partial.replace(path)
    logging.debug("wrote %s", path)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
