"""Checkpoints of a run, through orbax: asynchronous, atomic, the most recent and the best.

    WORKDIR/frozen/             parameters that are not trained, written once
    WORKDIR/checkpoints/STEP/   trained parameters, optimizer state, moving average

An item that a step has is a subdirectory of its own, so exporting reads no optimizer state.
"""

import contextlib
import errno
import logging
import math
import os
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from negclip_jax.errors import InputError
from negclip_jax.training import patterns
from negclip_jax.training.state import TrainState

_METADATA_BYTES = 2**20  # more than orbax writes beside the arrays
_ITEMS = ("params", "opt_state", "ema")


class Checkpoints:
    """Saves and restores train states of one working directory."""

    def __init__(self, workdir: epath.Path, *, keep: int, best: str):
        """Opens (or makes) the directory.

        Args:
          workdir: of the run.
          keep: most recent checkpoints to keep.
          best: metric whose smallest value marks one more to keep.
        """
        self._directory = workdir / "checkpoints"
        self._best = best
        self._last_good: int | None = None
        with self._disk_errors("open"):
            self._manager = _manager(self._directory, keep, best)
        self._last_good = self._manager.latest_step()

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def best_value(self) -> float:
        """Smallest value of the `best` metric among the checkpoints kept; infinity if none."""
        values = [_metrics(self._manager, s).get(self._best) for s in self._manager.all_steps()]
        return min((v for v in values if v is not None), default=float("inf"))

    def save(self, step: int, state: TrainState, metrics: dict[str, float]) -> None:
        """Starts saving; returns when the device memory may be overwritten.

        Raises InputError if this save or an earlier one could not be written; checkpoints that
        were complete before stay as they are.
        """
        with self._disk_errors(f"save step {step} to"):
            self._manager.wait_until_finished()
            self._last_good = self._manager.latest_step()
            items = {"params": state.params, "opt_state": state.opt_state}
            if state.ema is not None:
                items["ema"] = state.ema
            _check_space(self._directory, items)
            args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
            kept = {self._best: metrics[self._best]} if self._best in metrics else {}
            self._manager.save(step, args=ocp.args.Composite(**args), metrics=kept, force=True)

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state at a step, placed as `abstract` (shapes with shardings) says."""
        items = {name: getattr(abstract, name) for name in _ITEMS}
        args = {n: ocp.args.StandardRestore(t) for n, t in items.items() if t is not None}
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise InputError(
                f"checkpoint {self._directory / str(step)} does not fit this run: {error}"
            ) from error
        counter = jax.make_array_from_callback(
            (), abstract.step.sharding, lambda _: np.asarray(step, np.int32)
        )
        return TrainState(counter, restored["params"], restored["opt_state"], restored.get("ema"))

    def wait(self) -> None:
        """Blocks until everything is on disk; raises InputError if it is not."""
        with self._disk_errors("finish writing to"):
            self._manager.wait_until_finished()
            self._last_good = self._manager.latest_step()

    def close(self) -> None:
        """Releases threads; does not raise for a save that failed."""
        with contextlib.suppress(Exception):
            self._manager.close()

    @contextlib.contextmanager
    def _disk_errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # Orbax wraps what the disk said in exceptions of several kinds.
            good = "there is no earlier checkpoint"
            if self._last_good is not None:
                good = f"the checkpoint of step {self._last_good} is intact"
            raise InputError(
                f"cannot {action} {self._directory}: {_root_cause(error)}; {good}. "
                "Mend the disk and run the same command again to continue"
            ) from error


def save_frozen(workdir: epath.Path, frozen: dict) -> None:
    """Writes the parameters that never change, once, when a run starts.

    What an earlier attempt left, which may have started from other weights, is replaced.
    """
    path = workdir / "frozen"
    try:
        if not frozen:
            path.rmtree(missing_ok=True)
            return
        _check_space(workdir, frozen)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, frozen, force=True)
    except Exception as error:
        raise InputError(f"cannot write {path}: {_root_cause(error)}") from error


def restore_frozen(workdir: epath.Path, abstract: dict) -> dict:
    """The parameters of `save_frozen`, placed as `abstract` says."""
    if not abstract:
        return {}
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(workdir / "frozen", abstract)


def restore_params(
    workdir: str, step: str | int = "best", *, ema: bool = False
) -> tuple[dict, int]:
    """All parameters of a run as float32 NumPy arrays, and the step they are from.

    Args:
      workdir: of a training run.
      step: "best", "last" or a step number; "best" falls back to "last" where nothing was
        evaluated.
      ema: the moving average instead of the parameters themselves.

    Raises InputError where there is no such run, step or average.
    """
    root = epath.Path(workdir).absolute() if "://" not in workdir else epath.Path(workdir)
    directory = root / "checkpoints"
    if not directory.exists():
        raise InputError(f"{workdir} has no checkpoints/: it is not the --workdir of a run")
    with _manager(directory, None, "") as manager:
        number = _choose(manager, step)
        item = "ema" if ema else "params"
        if not (directory / str(number) / item).exists():
            raise InputError(
                f"step {number} of {workdir} holds no moving average (train.ema_decay)"
            )
        trained = _to_host(directory / str(number) / item)
    frozen = root / "frozen"
    return patterns.merge(_to_host(frozen) if frozen.exists() else {}, trained), number


def _manager(directory: epath.Path, keep: int | None, best: str) -> ocp.CheckpointManager:
    def value(metrics: dict[str, float]) -> float:
        return metrics.get(best, math.inf)

    policy = preservation_policy.PreserveAll()
    if keep is not None:
        policy = preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(n=max(1, keep)),
                preservation_policy.BestN(
                    n=1,
                    get_metric_fn=value,
                    reverse=True,  # the policy keeps the end of the sorted list
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        # Without these two orbax ranks by the metrics, but writes none: lost at the next start.
        best_fn=value,
        best_mode="min",
        cleanup_tmp_directories=keep is not None,
        create=keep is not None,
    )
    return ocp.CheckpointManager(directory, options=options)


def _choose(manager: ocp.CheckpointManager, step: str | int) -> int:
    steps = sorted(manager.all_steps())
    if not steps:
        raise InputError(f"{manager.directory} holds no complete checkpoint")
    if step == "last":
        return steps[-1]
    if step == "best":
        scored = [(min(m.values()), s) for s in steps if (m := _metrics(manager, s))]
        return min(scored)[1] if scored else steps[-1]
    if not str(step).isdigit() or int(step) not in steps:
        raise InputError(f"no checkpoint of step {step}; there are: {', '.join(map(str, steps))}")
    return int(step)


def _metrics(manager: ocp.CheckpointManager, step: int) -> dict[str, float]:
    if not (manager.directory / str(step) / "metrics").exists():
        return {}
    return manager.metrics(step) or {}


def _to_host(path: epath.Path) -> dict:
    # One CPU device, whatever mesh the arrays were saved from.
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    # The handler, because a checkpointer would also look for a step's metadata: this is an item.
    with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
        saved = handler.metadata(path).tree
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=host), saved)
    with ocp.StandardCheckpointer() as checkpointer:
        return jax.tree.map(np.asarray, checkpointer.restore(path, abstract))


def _check_space(directory: epath.Path, tree: Any) -> None:
    """OSError where the disk is too full: orbax notices too, but by way of a hundred log lines."""
    if "://" in str(directory):
        return
    needed = sum(x.nbytes for x in jax.tree.leaves(tree)) + _METADATA_BYTES
    free = shutil.disk_usage(directory).free
    if free < needed:
        sizes = f"{needed / 2**20:.1f} MiB to write, {free / 2**20:.1f} MiB free"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({sizes})")


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    logging.debug("disk error", exc_info=error)
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return f"{type(error).__name__}: {first_line[:300]}"


def abstract_of(state: Any, placements: Any) -> Any:
    """Shapes with shardings: what `restore` needs to know of a state that does not exist yet."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, placements
    )
