"""The training loop. There is one; objectives, data and evaluators are functions it is given."""

import contextlib
import logging
import math
import signal
import time
from collections.abc import Callable, Mapping

import jax
from ml_collections import ConfigDict

from negclip_jax.checkpoints import orbax_internals
from negclip_jax.common.errors import InputError, device_errors
from negclip_jax.common.progress import human_seconds
from negclip_jax.common.signals import Interrupted, StopSignal
from negclip_jax.models.lora import fold
from negclip_jax.runtime import multihost, sharding
from negclip_jax.runtime.console import TrainingProgress, log_to_file
from negclip_jax.runtime.profiling import Profile, parse_steps
from negclip_jax.runtime.timing import Chrono, peak_flops
from negclip_jax.runtime.workdir import create as create_workdir
from negclip_jax.runtime.workdir import disk_errors
from negclip_jax.runtime.writers import (
    JsonlWriter,
    MetricWriter,
    TensorBoardWriter,
    WandbWriter,
    Writers,
    is_evaluated,
)
from negclip_jax.training import patterns
from negclip_jax.training.evaluation import EvalContext, Evaluator
from negclip_jax.training.setup import Run, prepare
from negclip_jax.training.step import CHECKED, TrainState


def train(
    config: ConfigDict,
    workdir: str,
    evaluators: Mapping[str, Callable[[EvalContext], Evaluator]] | None = None,
) -> TrainState:
    """Trains to the end of the configured run, from its newest checkpoint if there is one.

    Args:
      config: see `configs/common.py`.
      workdir: receives checkpoints, metrics, logs and the resolved configuration.
      evaluators: by name, functions that build an evaluator for this run; their numbers are logged
        as `NAME/...` beside the validation loss `val/...`.

    Returns the final state. Raises InputError for bad input, a loss that is not finite, or a disk
    that does not take a checkpoint; Interrupted after SIGINT or SIGTERM, with the state saved.
    """
    run: Run | None = None

    def of_memory() -> str:
        needs = f"The training step needs {run.train_step.memory}. " if run is not None else ""
        return (
            f"{needs}Raise train.microbatches={config.train.microbatches}, which keeps the loss of "
            f"the whole batch, set model.remat=True (it is {config.model.remat}), or lower "
            f"train.batch_size={config.train.batch_size}"
        )

    is_main = sharding.is_main_process()
    stack, memory_errors = contextlib.ExitStack(), device_errors(of_memory)
    with stack, multihost.end_together(), disk_errors(workdir), memory_errors:
        if is_main:
            stack.callback(log_to_file(create_workdir(workdir)).detach)
        stack.enter_context(orbax_internals.end_on_failed_save(workdir))
        run = prepare(config, workdir)
        stack.callback(run.checkpoints.close)
        start = int(run.state.step)
        writers, log = Writers(), config.log
        if is_main:
            writers = _writers(run, start, log.tensorboard, log.wandb, config.to_dict())
        stack.callback(writers.close)
        built = {name: build(run.context) for name, build in (evaluators or {}).items()}
        if run.validation is not None:
            built = {"val": run.validation} | built
        progress = TrainingProgress(start=start, total=run.units.total_steps, enabled=is_main)
        steps, total = parse_steps(log.profile_steps), run.units.total_steps
        profile = Profile(steps, run.workdir, start=start, total=total)
        stack.callback(profile.close)
        with StopSignal() as stop, progress:
            device = run.mesh.devices.flat[0].device_kind
            peak = peak_flops(device, run.mesh.size, run.dtype)
            return _loop(run, StepLog(run, writers, progress, peak), built, stop, profile)


def _loop(
    run: Run, log: "StepLog", evaluators: dict[str, Evaluator], stop: StopSignal, profile: Profile
) -> TrainState:
    """Step, then look and save: `step` always counts the updates that `state` has seen."""
    state, total = run.state, run.units.total_steps
    start, best = int(state.step), run.checkpoints.best_value()

    def look_and_save(step: int, state: TrainState) -> float:
        """Evaluates and saves what is due at this step; the best value so far."""
        results: dict[str, float] | None = {}
        if evaluators and (run.units.due(step, run.eval_every) or (step == 0 and run.eval_every)):
            results = log.evaluate(step, state, evaluators, stop)
        # All processes stop at the same step, or those left would wait in a collective.
        signum = multihost.agreed_stop(step, stop.received)
        is_asked = signum is not None and (step < total or results is None)
        value = (results or {}).get(run.best, math.inf)
        is_due = run.units.due(step, run.checkpoint_every) or value < best or step == total
        if step and (is_due or is_asked):
            log.flush()  # raises on a loss that is not finite, so no such state is ever saved
            if is_asked:
                message = "%s: saving step %d; until that is done, the one before counts"
                logging.info(message, signal.Signals(signum).name, step)
            started = time.monotonic()
            with log.chrono.pause():
                # Goes on while the run does.
                run.checkpoints.save(
                    step, state, results or {}, metrics_checksum=log.writers.checksum
                )
            if is_asked:
                run.checkpoints.wait()
                logging.info("saved step %d in %.1f s", step, time.monotonic() - started)
        if is_asked:
            raise Interrupted(signum, step)
        return min(best, value) if step else best

    # A run that a signal stopped before an evaluation was saved without it: made up for now.
    is_missing = sharding.is_main_process() and start > 0 and run.units.due(start, run.eval_every)
    is_missing = is_missing and not is_evaluated(run.workdir / "metrics.jsonl", start)
    is_missing = multihost.from_main("what the log holds", is_missing)
    if evaluators and (start == 0 or is_missing):
        best = look_and_save(start, state)
    log.chrono.begin(start)
    size = run.loader.batch_size
    rows = sharding.local_rows(run.mesh, size)  # this process loads these of each batch
    with contextlib.closing(run.loader.batches(start, total, rows)) as batches:
        for step in range(start + 1, total + 1):
            profile.begin(step, state)
            waiting = jax.profiler.TraceAnnotation("wait for data")
            within = multihost.within_time(f"the input of step {step}")
            with log.chrono.waiting(), waiting, within:
                batch = next(batches)
            # Other processes have as many pairs of the batch as this one.
            log.chrono.work(step, run.step_flops(batch) * size / len(rows))
            batch = sharding.to_global(run.mesh, batch)
            # The call returns before the step is done. Whatever reads a result makes the host wait,
            # and then the device, which has nothing to do until the next batch comes.
            with jax.transfer_guard_device_to_host("disallow"):
                try:
                    state, metrics = run.train_step(state, run.frozen, batch)
                except FloatingPointError as error:  # of `runtime.debug_nans`
                    log.flush()
                    raise InputError(f"step {step}: {error}; {log.stopped}") from None
            log.push(step, metrics)
            profile.end(step, state)
            best = look_and_save(step, state)
    run.checkpoints.wait()
    return state


class StepLog:
    """Collects metrics on the device and reads them once per window, one step late.

    Reading blocks until the step is done. The window that ends at step n is read after step n + 1
    was started, so the device always has work.
    """

    def __init__(self, run: Run, writers: Writers, progress: TrainingProgress, peak: float | None):
        self.writers, self._run, self._progress = writers, run, progress
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        self.chrono = Chrono(run.loader.batch_size, peak)

    def push(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of the step that has just been started."""
        if self._pending and self._run.units.due(self._pending[-1][0], self._run.log_every):
            self.flush(durable=False)
        self._pending.append((step, metrics))

    def flush(self, *, durable: bool = True) -> None:
        """Reads and writes everything; afterwards all steps so far are known to be sound."""
        self._drain()
        self.writers.flush(durable=durable)

    @property
    def stopped(self) -> str:
        """What is left of a run that cannot go on."""
        last = self._run.checkpoints.latest_step
        saved = "no checkpoint was saved"
        return f"stopped, {saved if last is None else f'the last checkpoint is step {last}'}"

    def evaluate(
        self, step: int, state: TrainState, evaluators: dict[str, Evaluator], stop: StopSignal
    ) -> dict[str, float] | None:
        """Runs the evaluators on the averaged parameters if there are any, else on the current.

        None where a signal came first: the grace time may be shorter than an evaluation.
        """
        self._drain()
        params = state.params if state.ema is None else state.ema

        def all_results() -> dict[str, float]:
            full = fold(patterns.merge(self._run.frozen, params))
            return {
                f"{name}/{key}": value
                for name, evaluator in evaluators.items()
                for key, value in evaluator(full).items()
            }

        logging.info("step %d: evaluating", step, extra={"file_only": True})
        with self.chrono.pause():
            # Of several processes none may leave an evaluation that the others wait in.
            is_single = multihost.is_single_process()
            results = stop.unless_asked(all_results) if is_single else all_results()
            # Whether to save depends on them: no last digit may differ between processes.
            results = multihost.from_main(f"results of step {step}", results)
        if results is None:
            logging.info("step %d: not evaluated; the run begins with it when it goes on", step)
            return None
        self.writers.write(step, results)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in results.items())
        logging.info("step %d: %s", step, shown)
        return results

    def _drain(self) -> None:
        """Reads what is pending, which waits for the device, and checks that it is finite."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        values = jax.device_get([metrics for _, metrics in pending])
        for (step, _), metrics in zip(pending, values, strict=True):
            numbers = {name: float(value) for name, value in metrics.items()}
            bad = [n for n in CHECKED if not math.isfinite(numbers[n])]
            if bad:
                self.writers.flush()
                raise InputError(
                    f"{bad[0]} is {numbers[bad[0]]} at step {step} (learning rate "
                    f"{numbers['lr']:.2e}, logit scale {numbers['logit_scale']:.3f}); "
                    f"{self.stopped}. Try a smaller optim.lr, optim.clip_norm=1.0 or "
                    "train.logit_scale_max=4.6052; --config.runtime.debug_nans=True names the "
                    "operation"
                )
            # NaN is left what nothing in this batch has: a foil, or an original caption.
            self.writers.write(step, {k: x for k, x in numbers.items() if not math.isnan(x)})
        timing = self.chrono.window(step, self._run.units.total_steps)
        self.writers.write_timing(step, timing)
        of_sources = {n: x for n, x in numbers.items() if n.startswith("loss/")}
        self._progress.update(step, {"loss": numbers["loss"]} | of_sources, timing)


def _writers(run: Run, start: int, tensorboard: bool, wandb: str | None, settings: dict) -> Writers:
    """Destinations of metrics and of timing; lines after the restored step are dropped."""
    shared: list[MetricWriter] = []
    if tensorboard:
        shared.append(TensorBoardWriter(run.workdir / "tensorboard", resume_step=start))
    if wandb is not None:
        shared.append(WandbWriter(wandb, run.workdir, settings))
    metrics = JsonlWriter(
        run.workdir / "metrics.jsonl",
        resume_step=start,
        # A run that ended here was evaluated at its end; one that goes on may not be.
        evaluated=run.units.due(start, run.eval_every),
        checksum=run.checkpoints.metrics_checksum(),
    )
    timing = JsonlWriter(run.workdir / "timing.jsonl", resume_step=start)
    return Writers([metrics, *shared], [timing, *shared])


def describe_end(state: TrainState, workdir: str, seconds: float) -> str:
    """The last line of a run: what was done, and what to do with it."""
    return (
        f"done: {int(state.step)} steps in {human_seconds(seconds)}; export with\n"
        f"  python -m negclip_jax.interop.export --model={workdir} --layout=huggingface "
        f"--out=exported/{workdir.rstrip('/').rsplit('/', 1)[-1]}"
    )
