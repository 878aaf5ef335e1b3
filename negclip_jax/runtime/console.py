"""What is printed: a progress bar on a terminal, plain lines elsewhere, and `train.log`."""

import logging
import math
import sys
import threading
import time
from typing import Any, Self

from etils import epath
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from negclip_jax.common import storage
from negclip_jax.common.errors import printable, say
from negclip_jax.common.progress import EVERY_SECONDS, FIRST_SECONDS, estimate, human_seconds

_OURS = {"root", "__main__", "launch", "negclip_jax", "evals", "data_gen", "bench", "quickstart"}

# A notebook's kernel sets FORCE_COLOR, by which rich would take a pipe for a terminal.
_stderr = Console(stderr=True, highlight=False, force_terminal=sys.stderr.isatty())


def _is_ours_or_a_warning(record: logging.LogRecord) -> bool:
    """The libraries below us narrate at INFO (each request of an HTTP client); warnings pass."""
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] in _OURS


class LogFile(logging.Handler):
    """`train.log`: every message with its time, after what earlier processes wrote.

    Lines are lost on a disk that takes none: that is reported where it matters, when metrics are
    written.
    """

    def __init__(self, path: epath.Path):
        super().__init__()
        self.addFilter(_is_ours_or_a_warning)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._file = storage.LineFile(path)
        self._lines: list[str] = []
        self._writing = threading.Lock()

    def createLock(self) -> None:
        """No lock: while one thread waits for a bucket, the bucket's client must be able to log."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(printable(self.format(record)) + "\n")
        # A thread of the client could not wait for itself: its lines go with the next message.
        if threading.current_thread() is threading.main_thread():
            self._write(durable=False)

    def detach(self) -> None:
        """Stops logging to the file and writes what is left."""
        logging.getLogger().removeHandler(self)
        self._write(durable=True)
        self.close()

    def _write(self, *, durable: bool) -> None:
        if not self._writing.acquire(blocking=durable):
            return  # the next message takes this line along
        try:
            lines, self._lines = self._lines, []
            self._file.append(lines, durable=durable)
        except storage.errors():
            pass
        finally:
            self._writing.release()


class _ConsoleHandler(logging.Handler):
    """Messages above the progress bar, or as plain lines; per-window lines stay in the file."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "file_only", False):
            return
        style = "yellow" if record.levelno >= logging.WARNING else ""
        _stderr.print(Text(printable(record.getMessage()), style=style), soft_wrap=True)


def set_up_logging(*, only_warnings: bool = False) -> None:
    """Routes the root logger to the console; from a process that is not the main one, warnings."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    root.setLevel(logging.WARNING if only_warnings else logging.INFO)
    handler = _ConsoleHandler()
    handler.addFilter(_is_ours_or_a_warning)
    root.addHandler(handler)


def log_to_file(directory: epath.Path) -> LogFile:
    """Also routes it to `directory/train.log`."""
    handler = LogFile(directory / "train.log")
    logging.getLogger().addHandler(handler)
    return handler


class Bar:
    """A bar for long work; where there is no terminal, a line after 5 s and then every 10.

    A context manager.
    """

    def __init__(
        self, what: str, total: int | None, *columns: Any, done: int = 0, enabled: bool = True
    ):
        """`columns` of rich, instead of the usual ones; `done` of the `total` items already.

        `total`: None where it is not known.
        """
        self._what, self._total, self._done, self._before = what, total, done, done
        self._is_shown = enabled and _stderr.is_terminal
        self._progress = Progress(*columns, console=_stderr, disable=not self._is_shown)
        label = escape(printable(what))  # a name may hold what rich takes for markup
        self._task = self._progress.add_task(label, total=total, completed=done, status="")
        self._started = time.monotonic()
        self._last_line = self._started + FIRST_SECONDS - EVERY_SECONDS

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()

    def advance(self, count: int) -> None:
        """Adds `count` finished items."""
        self._done += count
        self._progress.advance(self._task, count)
        if self._takes_line():
            seconds = self._last_line - self._started
            told = estimate(self._done, self._total, seconds, self._before)
            logging.info("%s: %s", self._what, told)

    def _takes_line(self, *, at_once: bool = False) -> bool:
        """Whether a line is due, which is then the last one."""
        now = time.monotonic()
        is_due = at_once or now - self._last_line >= EVERY_SECONDS
        if self._is_shown or not is_due:
            return False
        self._last_line = now
        return True


class TrainingProgress(Bar):
    """A bar with loss, pairs/s, data-wait share and ETA; elsewhere a line now and then."""

    def __init__(self, *, start: int, total: int, enabled: bool = True):
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn())
        status = TextColumn("{task.fields[status]}")
        super().__init__("training", total, *columns, status, done=start, enabled=enabled)
        self._progress.update(self._task, status="first steps")
        self._enabled, self._last_line = enabled, -math.inf

    def update(self, step: int, losses: dict[str, float], timing: dict[str, float]) -> None:
        """Shows the state after `step` updates.

        `losses`: by name, that of the batch first; `timing`: what `Chrono.window` returned.
        """
        if not self._enabled or not timing:
            return
        shown = "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
        status = (
            f"{shown}  {timing['pairs_per_second']:,.0f} pairs/s  "
            f"data wait {timing['data_wait_share']:.0%}  "
            f"ETA {human_seconds(timing['eta_seconds'])}"
        )
        self._progress.update(self._task, completed=step, status=status)
        in_file_only = not self._takes_line(at_once=step == self._total)
        logging.info(f"step {step}/{self._total}  {status}", extra={"file_only": in_file_only})


def fail(message: str) -> None:
    """Prints an error message to stderr."""
    say(f"error: {message}", sys.stderr)
