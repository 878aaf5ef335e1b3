"""Traces of a few training steps: what host and device did when, for TensorBoard and Perfetto."""

import contextlib
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from etils import epath

from negclip_jax.common import remote, storage
from negclip_jax.common.errors import InputError
from negclip_jax.runtime import sharding

_STEPS = re.compile(r"\s*([0-9]{1,9})\s*(?:-\s*([0-9]{1,9})\s*)?")


def parse_steps(text: str | None) -> range:
    """Steps of `log.profile_steps`, "11-13" or "11", counted from 1; empty for None or ""."""
    if not text:
        return range(0)
    match = _STEPS.fullmatch(text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last:
        raise InputError(
            f"log.profile_steps: cannot read {text!r}; write a step or a range of steps, counted "
            "from 1, as in '11-13'"
        )
    return range(first, last + 1)


class Profile:
    """Traces the steps of a range that a run takes; every process writes what it did itself.

    A trace begins when the device has nothing to do and ends when the last step is done. It lies in
    `WORKDIR/profile`, in the layout of TensorBoard's plugin, written on the local disk first:
    neither JAX nor a profiler's server knows buckets. Metrics are those of a run without it.
    """

    def __init__(self, steps: range, workdir: epath.Path, *, start: int, total: int):
        """`start` of the `total` steps are done. InputError for steps that the run does not have.

        A run that goes on behind them traces nothing.
        """
        if steps and steps[-1] > total:
            raise InputError(
                f"log.profile_steps={steps[0]}-{steps[-1]} ends after the run, which has {total} "
                "steps (train.total)"
            )
        self._steps = steps[max(0, start + 1 - steps.start) :]
        if steps and not self._steps:
            logging.info("log.profile_steps lies before step %d: nothing is traced", start + 1)
        self._workdir, self._last = workdir, 0
        self._trace, self._annotation = contextlib.ExitStack(), contextlib.ExitStack()

    def begin(self, step: int, state: Any) -> None:
        """Before the input of a step is asked for; `state` is what the step before it returned."""
        if step not in self._steps:
            return
        if step == self._steps[0]:
            jax.block_until_ready(state)
            self._trace.enter_context(self._traced())
        self._last = step
        self._annotation.enter_context(jax.profiler.StepTraceAnnotation("train", step_num=step))

    def end(self, step: int, state: Any) -> None:
        """After a step was started, which will return `state`."""
        self._annotation.close()
        if step in self._steps and step == self._steps[-1]:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Writes what was traced, of a run that stops before the last of the steps too."""
        self._annotation.close()
        self._trace.close()

    @contextlib.contextmanager
    def _traced(self) -> Iterator[None]:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # every call of a Python function would hide the rest
        with remote.staging() as stage:
            jax.profiler.start_trace(stage, create_perfetto_trace=True, profiler_options=options)
            try:
                yield
            finally:
                jax.profiler.stop_trace()
                self._keep(stage)

    def _keep(self, stage: Path) -> None:
        name = f"steps_{self._steps[0]}-{self._last}"
        place = self._workdir / "profile" / "plugins" / "profile" / name
        process, _ = sharding.process_place()
        with remote.uploaded(place) as folder:
            folder.mkdir(parents=True, exist_ok=True)
            for suffix in ("xplane.pb", "perfetto_trace.json.gz"):
                (written,) = stage.rglob(f"*{suffix}")
                shutil.copyfile(written, folder / f"process_{process}.{suffix}")
        logging.info(
            "traced steps %d to %d: tensorboard --logdir=%s (with the package xprof), or open %s "
            "at https://ui.perfetto.dev",
            *(self._steps[0], self._last, storage.path(self._workdir) / "profile"),
            place / f"process_{process}.perfetto_trace.json.gz",
        )
