"""Parameters of a run on disk: those of a checkpoint for other programs, and the frozen ones.

    WORKDIR/frozen/   parameters that are not trained, written once when a run starts

Nothing here needs the optimizer's state: an export reads `params` or `ema` of one step.
"""

import contextlib
import errno
import hashlib
import math
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util

from negclip_jax.checkpoints import manifest
from negclip_jax.common import storage, strict_json
from negclip_jax.common.errors import InputError
from negclip_jax.common.problems import first
from negclip_jax.models.lora import fold
from negclip_jax.runtime import sharding

_METADATA_BYTES = 2**20  # more than orbax writes beside the arrays
_UNPACKED_PER_BYTE, _UNPACKED_FREE = 100, 2**26  # bytes that an item may become


def restore_params(
    workdir: str, step: str | int = "best", *, ema: bool = False
) -> tuple[dict, int]:
    """All parameters of a run as float32 NumPy arrays, and the step they are from.

    Adapters are merged into the kernels that they adapt. `step` is "best", which falls back to
    "last" where nothing was evaluated, "last" or a number; `ema` takes the moving average.

    Raises InputError where there is no such run, step or average.
    """
    root = storage.path(workdir)
    directory = root / "checkpoints"
    if not directory.exists():
        raise InputError(f"{workdir} has no checkpoints/: it is not the --workdir of a run")
    number = _choose(directory, step)
    item = "ema" if ema else "params"
    if not (directory / str(number) / item).exists():
        raise InputError(f"step {number} of {workdir} holds no moving average (train.ema_decay)")
    _check_item(directory, number, item)
    trained = _to_host(directory / str(number) / item)
    path = root / "frozen"
    if not path.exists():
        return trained, number
    check_frozen(path)
    leaves = traverse_util.flatten_dict(_to_host(path)) | traverse_util.flatten_dict(trained)
    return fold(traverse_util.unflatten_dict(leaves)), number


def _check_item(directory: epath.Path, number: int, item: str) -> None:
    if wrong := manifest.problem(directory / str(number), item):
        others = [str(step) for step in complete_steps(directory) if step != number]
        raise InputError(
            f"step {number} cannot be used: {wrong}. Other steps of this run: "
            f"{', '.join(others) or 'none'}"
        )


def complete_steps(directory: epath.Path) -> list[int]:
    """Steps whose save was complete, in order."""
    return sorted(x.step for x in ocp.path.step.standard_name_format().find_all(directory))


def _choose(directory: epath.Path, step: str | int) -> int:
    steps = complete_steps(directory)
    if not steps:
        raise InputError(f"{directory} holds no complete checkpoint")
    if step == "last":
        return steps[-1]
    if step == "best":
        for each in steps:
            _check_item(directory, each, "metrics")
        scored = [(min(m.values()), s) for s in steps if (m := saved_metrics(directory, s))]
        return min(scored)[1] if scored else steps[-1]
    if not str(step).isdigit() or int(step) not in steps:
        raise InputError(f"no checkpoint of step {step}; there are: {', '.join(map(str, steps))}")
    return int(step)


def saved_metrics(directory: epath.Path, step: int) -> dict[str, float]:
    """What a step was saved with; InputError for what no run of ours would have saved."""
    path = directory / str(step) / "metrics" / "metrics"
    if not path.exists():
        return {}
    try:
        return {name: float(value) for name, value in strict_json.loads(path.read_bytes()).items()}
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(f"{path} holds no metrics: {error}") from error


def _to_host(path: epath.Path) -> dict:
    # One CPU device, whatever mesh the arrays were saved from.
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    # The handler, because a checkpointer would also look for a step's metadata: this is an item.
    with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
        saved = handler.metadata(path).tree
    if not storage.is_remote(path):
        # Untrusted metadata may name arrays of any size; a run's are about as large on disk.
        sizes = (math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(saved))
        files = (os.path.join(folder, f) for folder, _, names in os.walk(path) for f in names)
        claimed, stored = sum(sizes), sum(map(os.path.getsize, files))
        if claimed > _UNPACKED_PER_BYTE * stored + _UNPACKED_FREE:
            raise InputError(f"{path} of {stored:,} bytes unpacks to {claimed:,} bytes: refused")
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=host), saved)
    with ocp.StandardCheckpointer() as checkpointer:
        return jax.tree.map(np.asarray, checkpointer.restore(path, abstract))


def digests_of_files(base: Path) -> dict[str, str]:
    """Of sizes, preprocessing and vocabulary: a digit that changed would change numbers silently.

    A run keeps them as `base_files` in its config.json.
    """
    return {
        file.relative_to(base).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        for file in sorted(base.rglob("*"))
        if file.is_file()
    }


def check_base_files(run: Path) -> None:
    """Raises InputError, naming the files, where `base/` is not what the run was started with.

    Runs of the first versions kept no digests.
    """
    path = run / "config.json"
    recorded = strict_json.read_json(path, dict).get("base_files") if path.is_file() else None
    if not isinstance(recorded, dict):
        return
    found = digests_of_files(run / "base")
    names = sorted(recorded.keys() | {name for name in found if not name.startswith(".")})
    wrong = [name for name in names if recorded.get(name) != found.get(name)]
    if wrong:
        raise InputError(
            f"{run / 'base'} is not as this run began: {first(wrong)} changed, are missing or are "
            "new. Bring the files back from a copy"
        )


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
    if wrong := manifest.problem(path):
        raise InputError(
            f"{wrong}. These weights do not change in a run: bring {path} back from a copy, or "
            "start over in another --workdir"
        )


def check_space(directory: epath.Path, tree: Any) -> None:
    """OSError where a disk is too full: orbax notices too, but by way of a hundred log lines."""
    if storage.is_remote(directory):
        return
    needed = sum(x.nbytes for x in jax.tree.leaves(tree)) + _METADATA_BYTES
    free = shutil.disk_usage(directory).free
    if free < needed:
        sizes = f"{needed / 2**20:.1f} MiB to write, {free / 2**20:.1f} MiB free"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({sizes})")
