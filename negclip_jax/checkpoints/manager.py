"""Checkpoints of a run, through orbax: asynchronous, atomic, the most recent and the best.

    WORKDIR/frozen/             parameters that are not trained, written once
    WORKDIR/checkpoints/STEP/   trained parameters, optimizer state, moving average

An item that a step has is a subdirectory of its own, so exporting reads no optimizer state. Each
of these directories holds a `manifest` with the checksums of its files.
"""

import contextlib
import dataclasses
import errno
import logging
import math
import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from negclip_jax.checkpoints import manifest, orbax_internals
from negclip_jax.checkpoints.restore import check_space, complete_steps, saved_metrics
from negclip_jax.common import storage
from negclip_jax.common.errors import InputError
from negclip_jax.runtime import multihost, sharding

_ITEMS = ("params", "opt_state", "ema")
_REPLACED = ".replaced"  # a step that is being saved again


class State(Protocol):
    """A dataclass of what a step of a run saves; `training.step.TrainState` is one."""

    step: Any
    params: dict
    opt_state: Any
    ema: dict | None


S = TypeVar("S", bound=State)


class Checkpoints:
    """Saves and restores train states of one working directory."""

    def __init__(self, workdir: epath.Path, *, keep: int, best: str):
        """Opens (or makes) the directory of a run.

        `keep` is how many of the most recent checkpoints stay, and `best` a metric whose smallest
        value marks one more.
        """
        self._directory = workdir / "checkpoints"
        self._keep, self._best = max(1, keep), best
        self._last_good: int | None = None
        self._saving: int | None = None
        self._is_replacing = False
        orbax_internals.disable_throughput_log()
        orbax_internals.write_small_arrays_whole()
        with self._disk_errors("open"):
            self._settle_replaced()
            steps, damaged = complete_steps(self._directory), {}
            for step in steps:  # orbax reads the metrics of all of them
                with contextlib.suppress(InputError):  # of another format: `skip_damaged` says so
                    damaged[step] = manifest.problem(self._directory / str(step), "metrics")
        self._skip(damaged, rest=len(steps) - sum(map(bool, damaged.values())))
        with self._disk_errors("open"):
            self._manager = _manager(self._directory, self._keep, best, self._list_files)
        self._last_good = self._manager.latest_step()

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def skip_damaged(self) -> None:
        """Makes the newest checkpoint whose files are intact the latest step.

        A damaged one after it is set aside and named in a warning. Raises InputError where there
        are checkpoints and none is intact, or the newest is of another version's format.
        """
        problems: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            problems[step] = manifest.problem(self._directory / str(step))
            if not problems[step]:
                break
        if self._skip(problems, rest=list(problems.values()).count("")):
            self._manager.reload()
            self._last_good = min(problems)

    def _skip(self, problems: dict[int, str], *, rest: int) -> bool:
        """Sets steps with a problem aside, unless they are all there are; whether there are any."""
        damaged = {step: problem for step, problem in problems.items() if problem}
        if damaged and not rest:
            raise InputError(
                f"no checkpoint in {self._directory} can be used: {'; '.join(damaged.values())}. "
                "Bring the files back from a copy, or start over in another --workdir"
            )
        if damaged:
            multihost.barrier("checkpoints checked")  # before any of them is moved
            if sharding.is_main_process():
                for step, problem in damaged.items():
                    done = self._set_aside(self._directory / str(step))
                    message = "the checkpoint of step %d is skipped: %s; %s"
                    logging.warning(message, step, problem, done)
            multihost.barrier("damaged checkpoints set aside")
        return bool(damaged)

    def _set_aside(self, step: epath.Path) -> str:
        """Takes a damaged step out of the way of the next one of its number; what was done."""
        if storage.is_remote(step):  # moving folders is copying them
            step.rmtree()
            return "it was deleted"
        folder = self._directory.parent / "damaged"
        folder.mkdir(exist_ok=True)
        target = folder / f"{step.name}-{len(list(folder.iterdir()))}"
        step.rename(target)
        return f"it was moved to {target}"

    def remove_superseded(self) -> None:
        """Ends what a kill cut short: the deletion of a checkpoint that a newer one replaces."""
        steps = sorted(self._manager.all_steps())
        best = min(steps, key=lambda step: (self._value(step), -step), default=None)
        with self._disk_errors("clear up"):
            for step in steps[: -self._keep]:
                if step != best:
                    self._manager.delete(step)

    def best_value(self) -> float:
        """Smallest value of the `best` metric among the checkpoints kept; infinity if none."""
        return min(map(self._value, self._manager.all_steps()), default=math.inf)

    def _value(self, step: int) -> float:
        return saved_metrics(self._directory, step).get(self._best, math.inf)

    def metrics_checksum(self) -> int | None:
        """What the newest checkpoint's `save` was told; None for one of an earlier version."""
        step = self.latest_step
        return None if step is None else manifest.metrics_checksum(self._directory / str(step))

    def save(
        self,
        step: int,
        state: State,
        metrics: dict[str, float],
        *,
        metrics_checksum: int | None = None,
    ) -> None:
        """Starts saving; returns when the device memory may be overwritten.

        A checkpoint of the same step is replaced: a run that is asked to stop saves before the
        evaluation of that step, and once more with its results when it goes on. `metrics_checksum`,
        of the file of metrics as it is now, is kept in the manifest.

        Raises InputError if this save or an earlier one could not be written; checkpoints that
        were complete before stay as they are.
        """
        self.wait()
        with self._disk_errors(f"save step {step} to"):
            items = {"params": state.params, "opt_state": state.opt_state}
            if state.ema is not None:
                items["ema"] = state.ema
            check_space(self._directory, items)
            if step in self._manager.all_steps():
                self._make_way(step)
            self._saving, self._metrics_checksum = step, metrics_checksum
            args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
            kept = {self._best: metrics[self._best]} if self._best in metrics else {}
            self._manager.save(step, args=ocp.args.Composite(**args), metrics=kept, force=True)

    def restore(self, step: int, abstract: S) -> S:
        """The state at a step, placed as `abstract` (shapes with shardings) says."""
        items = {name: getattr(abstract, name) for name in _ITEMS}
        args = {n: ocp.args.StandardRestore(t) for n, t in items.items() if t is not None}
        directory = self._directory / str(step)
        try:
            with storage.announced(f"the checkpoint {directory} to be read"):
                restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        except storage.errors() as error:
            cause = storage.root_cause(error)
            raise InputError(
                f"checkpoint {directory} cannot be read: {cause}. Mend the disk and run the same "
                "command again"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"checkpoint {directory} does not fit this run: {error}") from error
        counter = jax.make_array_from_callback(
            (), abstract.step.sharding, lambda _: np.asarray(step, np.int32)
        )
        values = {name: restored.get(name) for name in _ITEMS}
        return dataclasses.replace(abstract, step=counter, **values)

    def wait(self) -> None:
        """Blocks until everything is on disk; raises InputError if it is not."""
        step = self._saving
        waited = storage.announced(f"the checkpoint of step {step} to reach {self._directory}")
        with self._disk_errors(f"finish saving step {step} to"), waited:
            self._manager.wait_until_finished()
            if self._is_replacing:
                self._settle_replaced()
                self._is_replacing = False
            self._last_good = self._manager.latest_step()
            if self._last_good is not None and not self._has(self._last_good):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def close(self) -> None:
        """Releases threads; does not raise for a save that failed."""
        with contextlib.suppress(Exception):
            self._manager.close()
        orbax_internals.join_writing_threads()

    def _make_way(self, step: int) -> None:
        """For a second save of a step; the first one stays until the second is complete."""
        if storage.is_remote(self._directory):  # moving folders is copying them
            self._manager.delete(step)
            return
        self._is_replacing = True
        multihost.barrier("a step is saved again")
        if sharding.is_main_process():
            path = self._directory / str(step)
            path.rename(self._directory / f"{step}{_REPLACED}")
        multihost.barrier("the former save is moved")
        self._manager.reload()

    def _settle_replaced(self) -> None:
        """Removes what a complete save has replaced; brings back what a kill left without one."""
        if sharding.is_main_process() and self._directory.exists():
            for former in self._directory.glob(f"*{_REPLACED}"):
                path = self._directory / former.name.removesuffix(_REPLACED)
                if path.exists():
                    former.rmtree()
                else:
                    former.rename(path)
        multihost.barrier("replaced checkpoints settled")

    def _has(self, step: int) -> bool:
        return (self._directory / str(step)).exists()

    def _list_files(self) -> None:
        """Called by orbax when the files of a step are complete and it is about to commit them."""
        directory = orbax_internals.directory_of_save(self._directory, self._saving)
        manifest.write(directory, self._metrics_checksum)

    @contextlib.contextmanager
    def _disk_errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # Orbax wraps what the disk said in exceptions of several kinds.
            good, advice = "there is no earlier checkpoint", "Mend the disk and run"
            if self._last_good is not None:
                good = f"the checkpoint of step {self._last_good} is intact"
                if not self._has(self._last_good):
                    good = f"it has vanished, with the checkpoint of step {self._last_good}"
                    advice = "Bring the directory back, or start over: run"
            raise InputError(
                f"cannot {action} {self._directory}: {storage.root_cause(error)}; {good}. "
                f"{advice} the same command again to continue"
            ) from error


def _manager(
    directory: epath.Path, keep: int, best: str, before_commit: Callable[[], None]
) -> ocp.CheckpointManager:
    def value(metrics: dict[str, float]) -> float:
        return metrics.get(best, math.inf)

    best_one = preservation_policy.BestN(
        n=1,
        get_metric_fn=value,
        reverse=True,  # the policy keeps the end of the sorted list
        keep_checkpoints_without_metrics=False,
    )
    kept = [preservation_policy.LatestN(n=keep), best_one]
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.AnyPreservationPolicy(kept),
        # Without these two orbax ranks by the metrics, but writes none: lost at the next start.
        best_fn=value,
        best_mode="min",
        cleanup_tmp_directories=True,
        create=True,
        async_options=ocp.AsyncOptions(post_finalization_callback=before_commit),
    )
    return ocp.CheckpointManager(directory, options=options)


def abstract_of(state: Any, placements: Any) -> Any:
    """Shapes with shardings: what `restore` needs to know of a state that does not exist yet."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, placements
    )
