"""Parameters that are not trained: WORKDIR/frozen/, written once when a run starts."""

import errno
import os
import shutil
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from negclip_jax.checkpoints import manifest
from negclip_jax.common import storage
from negclip_jax.common.errors import InputError
from negclip_jax.runtime import sharding

_METADATA_BYTES = 2**20  # more than orbax writes beside the arrays


def save_frozen(workdir: epath.Path, frozen: dict) -> None:
    """Writes the parameters that never change, once, when a run starts.

    What an earlier attempt left, which may have started from other weights, is replaced.
    """
    path = workdir / "frozen"
    try:
        if not frozen:
            path.rmtree(missing_ok=True)
            return
        check_space(workdir, frozen)
        with ocp.StandardCheckpointer() as checkpointer, storage.announced(f"{path} to be written"):
            checkpointer.save(path, frozen, force=True)
            checkpointer.wait_until_finished()
        if sharding.is_main_process():
            manifest.write(path)
    except Exception as error:
        raise InputError(
            f"cannot write {path}: {storage.root_cause(error)}. Mend the disk and run the same "
            "command again"
        ) from error


def restore_frozen(workdir: epath.Path, abstract: dict) -> dict:
    """The parameters of `save_frozen`, placed as `abstract` says.

    Raises InputError where they are damaged or belong to another model.
    """
    if not abstract:
        return {}
    path = workdir / "frozen"
    check_frozen(path)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(path, abstract)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(f"{path} does not fit this run: {storage.root_cause(error)}") from error


def check_frozen(path: epath.Path) -> None:
    """Raises InputError, naming the file, where they are not those that were saved."""
    try:
        manifest.check(path)
    except manifest.DamagedError as error:
        raise InputError(
            f"{error}. These weights do not change in a run: bring {path} back from a copy, or "
            "start over in another --workdir"
        ) from error


def check_space(directory: epath.Path, tree: Any) -> None:
    """OSError where a disk is too full: orbax notices too, but by way of a hundred log lines."""
    if storage.is_remote(directory):
        return
    needed = sum(x.nbytes for x in jax.tree.leaves(tree)) + _METADATA_BYTES
    free = shutil.disk_usage(directory).free
    if free < needed:
        sizes = f"{needed / 2**20:.1f} MiB to write, {free / 2**20:.1f} MiB free"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({sizes})")
