"""What a result was made from: revision of the code, versions of packages, contents of files."""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from negclip_jax.common.errors import InputError


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


def package_versions(names: Iterable[str]) -> dict[str, str | None]:
    """Versions of installed distributions by name, None for those that are not installed."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def cores() -> int:
    """Processor cores that this process may use."""
    usable = hasattr(os, "sched_getaffinity")  # macOS has none
    return len(os.sched_getaffinity(0)) if usable else os.cpu_count() or 1


def file_facts(path: str | os.PathLike) -> dict[str, Any]:
    """Path, size in bytes and SHA-256 of a file. Raises InputError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            digest, size = hashlib.file_digest(file, "sha256"), file.tell()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    return {"path": str(path), "bytes": size, "sha256": digest.hexdigest()}


def content_hash(content: Any) -> str:
    """32 hexadecimal digits of blake2b-128 over the canonical JSON of `content`.

    Caches and runs of earlier versions are found by these hashes: they must never change.
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
