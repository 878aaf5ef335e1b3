"""Where metrics go: `metrics.jsonl` always, TensorBoard and Weights & Biases by configuration.

`metrics.jsonl` holds one line per step and only numbers that the same run would give again, so two
runs can be compared byte by byte. What depends on the machine (speed, waiting) goes to
`timing.jsonl`.
"""

import abc
import contextlib
import json
import logging
import time
import zlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from etils import epath

from negclip_jax.common import extras, storage
from negclip_jax.common.errors import InputError


class MetricWriter(abc.ABC):
    """A destination for numbers by step."""

    @abc.abstractmethod
    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Adds metrics of a step; steps never go back."""

    def flush(self, *, durable: bool = True) -> None:  # noqa: B027
        """Makes everything written so far durable; otherwise just visible, when that is cheap."""

    def close(self) -> None:
        """Flushes and releases the destination."""
        self.flush()


class JsonlWriter(MetricWriter):
    """One JSON object per step; several writes to one step are merged into one line."""

    def __init__(
        self,
        path: epath.Path,
        *,
        resume_step: int,
        evaluated: bool = True,
        checksum: int | None = None,
    ):
        """Drops lines that the run is about to write again; says which are lost or changed.

        Args:
          resume_step: the last step to keep; 0 keeps nothing, for the run starts over.
          evaluated: whether an uninterrupted run evaluates at `resume_step`; if not, numbers of
            evaluators (`NAME/...`) are dropped from that line.
          checksum: of the lines up to `resume_step` when that checkpoint was saved, see `checksum`.
        """
        self._path = path
        self._lines: list[str] = []
        self._open: dict[str, Any] = {}
        saved = _lines_up_to(path, resume_step) if resume_step else []
        trained = _without_evaluation(saved, resume_step)
        kept = saved if evaluated else trained
        self._resumed = json.loads(kept[-1]) if kept else {}
        last = self._resumed.get("step", 0)
        if last != resume_step:  # all lines were written before the checkpoint was
            logging.warning(
                "%s lacks its lines after step %d: those up to step %d, where the run goes on, are "
                "lost", path, last, resume_step,
            )  # fmt: skip
        # A run that was stopped before an evaluation was saved without it; it is made up for later.
        elif resume_step and checksum not in (None, _checksum(saved), _checksum(trained)):
            logging.warning(
                "%s was changed since step %d was saved: its lines up to there have another "
                "checksum. Their numbers are not to be trusted; the run itself does not read them",
                *(path, resume_step),
            )
        self._file = storage.LineFile(path, kept)
        self.checksum = _checksum(kept)  # CRC-32 of all that was flushed so far

    def write(self, step: int, metrics: dict[str, float]) -> None:
        if self._resumed.get("step") == step:
            self._complete(metrics)
            return
        if self._open and self._open["step"] != step:
            self._close_line()
        self._open = {"step": step} | self._open | metrics

    def flush(self, *, durable: bool = True) -> None:
        if self._open:
            self._close_line()
        self._file.append(self._lines, durable=durable)
        self.checksum = _checksum(self._lines, self.checksum)
        self._lines = []

    def _close_line(self) -> None:
        self._lines.append(json.dumps(self._open) + "\n")
        self._open = {}

    def _complete(self, metrics: dict[str, float]) -> None:
        """Adds to the last line of the former process, which was stopped before an evaluation."""
        self._resumed |= metrics
        lines = storage.read_text(self._path).splitlines(keepends=True)[:-1]
        lines.append(json.dumps(self._resumed) + "\n")
        self._file, self.checksum = storage.LineFile(self._path, lines), _checksum(lines)


class TensorBoardWriter(MetricWriter):
    """Event files for TensorBoard, without TensorFlow.

    Written by this thread, unlike tensorboardX' own SummaryWriter, which on a full disk loses its
    thread and then blocks.
    """

    def __init__(self, directory: epath.Path, *, resume_step: int):
        """TensorBoard will hide what an earlier process wrote for later steps."""
        # Imported where it is used: tensorboardX imports torch where that is installed.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        self._event_pb2, self._summary_pb2 = event_pb2, summary_pb2
        directory.mkdir(parents=True, exist_ok=True)
        self._events = EventsWriter(str(directory / "events"))
        self._add(resume_step + 1, session_log=event_pb2.SessionLog(status=1))  # START

    def write(self, step: int, metrics: dict[str, float]) -> None:
        summary = self._summary_pb2.Summary
        values = [summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._add(step, summary=summary(value=values))

    def flush(self, *, durable: bool = True) -> None:
        self._events.flush()

    def close(self) -> None:
        self._events.close()

    def _add(self, step: int, **content: Any) -> None:
        event = self._event_pb2.Event(wall_time=time.time(), step=step, **content)
        self._events.write_event(event)


class WandbWriter(MetricWriter):
    """A Weights & Biases run, continued under the same id after a restart."""

    def __init__(self, project: str, workdir: epath.Path, config: dict):
        """Raises InputError where wandb is not installed."""
        name = workdir.name
        self._run = self.package().init(
            project=project, name=name, id=name, resume="allow", config=config
        )

    @staticmethod
    def package() -> ModuleType:
        """The module wandb; InputError where it is not installed."""
        try:
            import wandb
        except ImportError as error:
            raise InputError(
                f"log.wandb is set, but wandb is not installed: {extras.install('wandb')}"
            ) from error
        return wandb

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log(metrics, step=step)

    def close(self) -> None:
        self._run.finish()  # it has uploaded by itself


class Writers(MetricWriter):
    """Writes metrics, and the timing of a run, to several destinations each; some take both."""

    def __init__(self, metrics: Sequence[MetricWriter] = (), timing: Sequence[MetricWriter] = ()):
        self._metrics, self._timing = metrics, timing
        self._all = list(dict.fromkeys([*metrics, *timing]))

    def write(self, step: int, metrics: dict[str, float]) -> None:
        for writer in self._metrics:
            writer.write(step, metrics)

    def write_timing(self, step: int, timing: dict[str, float]) -> None:
        """Adds what depends on the machine."""
        for writer in self._timing:
            writer.write(step, timing)

    def flush(self, *, durable: bool = True) -> None:
        for writer in self._all:
            writer.flush(durable=durable)

    @property
    def checksum(self) -> int | None:
        """Of the lines of metrics that were flushed; None where this process writes none."""
        files = (w for w in self._metrics if isinstance(w, JsonlWriter))
        return next((file.checksum for file in files), None)

    def close(self) -> None:
        """Closes what can be closed: a disk that fails now has already failed a flush."""
        for writer in self._all:
            with contextlib.suppress(*storage.errors()):
                writer.close()


def _checksum(lines: list[str], before: int = 0) -> int:
    return zlib.crc32("".join(lines).encode(), before)


def is_evaluated(path: epath.Path, step: int) -> bool:
    """Whether the line of a step has numbers of evaluators (`NAME/...`)."""
    last = _lines_up_to(path, step)[-1:]
    return last != _without_evaluation(last, step)


def _without_evaluation(lines: list[str], step: int) -> list[str]:
    """The lines, the last without the numbers of evaluators if it is that of `step`."""
    last = json.loads(lines[-1]) if lines else {}
    if last.get("step") != step or not any("/" in name for name in last):
        return lines
    return [*lines[:-1], json.dumps({k: v for k, v in last.items() if "/" not in k}) + "\n"]


def _lines_up_to(path: epath.Path, step: int) -> list[str]:
    if not path.exists():
        return []
    kept, lines = [], storage.read_text(path).splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            if number < len(lines):  # the last one may have been cut short: it is written again
                logging.warning("%s, line %d is damaged and lost: %.80r", path, number, line)
    return kept
