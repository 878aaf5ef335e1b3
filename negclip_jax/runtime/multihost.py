"""What the processes of one run agree on: that they do the same, when to stop, and why they end.

With one process all of this does nothing. With several, every function here that waits has a
time-out, and a failure of one process ends all of them with its reason, see `failure_monitor`.
"""

import contextlib
import json
import logging
import re
import secrets
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
from etils import epath

from negclip_jax.common.errors import InputError
from negclip_jax.common.problems import first
from negclip_jax.common.signals import Interrupted
from negclip_jax.runtime import console, failure_monitor, sharding
from negclip_jax.runtime.coordinator import CoordinatorStore, Late, Unreachable
from negclip_jax.runtime.workdir import differences

_SHOWN, _SHOWN_CHARACTERS = 5, 160
_COLLECTIVE = re.compile(r"\b(Gloo|NCCL) \w+ (failed|error)", re.IGNORECASE)
_VISIBLE_SECONDS = 60.0  # a network disk may show a file so late to another host


_team: failure_monitor.FailureMonitor | None = None  # stands for this process among the others


def join(
    distributed: str,
    *,
    process_id: int | None,
    num_processes: int | None,
    timeout: float = 600.0,
    heartbeat_timeout: float = 60.0,
) -> None:
    """Joins the processes of a TPU pod or a GPU cluster; call once, before JAX is used.

    Args:
      distributed: "off" (one process), "auto" (TPU pods, Slurm, MPI: JAX finds the others), or the
        coordinator, which is process 0, as "HOST:PORT", for which the next two are required.
      process_id, num_processes: number of this process, from 0, and how many there are.
      timeout: seconds to wait for another process, or for a disk.
      heartbeat_timeout: seconds without a heartbeat after which a process counts as dead.

    Where the others do not come in time, the process exits with a one-line message.
    """
    if distributed == "off":
        return
    place: tuple = ()
    if distributed != "auto":
        if process_id is None or num_processes is None:
            raise InputError(
                f"runtime.distributed={distributed!r} needs runtime.process_id and "
                "runtime.num_processes as well (or 'auto' where JAX can find them)"
            )
        place = (distributed, num_processes, process_id)

    def give_up() -> None:
        console.fail(
            f"not all processes came to {distributed} within {timeout:g} s (runtime.timeout): is "
            "process 0 running there, can its port be reached, and was every process started?"
        )
        failure_monitor.leave(1)

    # JAX would take SIGTERM for itself and know nothing of SIGINT: see `agreed_stop`.
    jax.config.update("jax_enable_preemption_service", False)
    timer = threading.Timer(timeout, give_up)  # JAX itself would abort the process from C++
    timer.daemon = True
    timer.start()
    try:
        # JAX too ends all processes when one is silent, without a reason: we do it first, with one.
        jax.distributed.initialize(
            *place,
            initialization_timeout=round(timeout) + 30,
            heartbeat_timeout_seconds=round(2 * heartbeat_timeout) + 30,
            shutdown_timeout_seconds=round(heartbeat_timeout),
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"the processes cannot be joined at {distributed!r}: {reason}. JAX finds TPU pods, "
            "Slurm and MPI by itself (auto); elsewhere give HOST:PORT of process 0 and each its "
            "number"
        ) from error
    finally:
        timer.cancel()
    index, count = sharding.process_place()
    if count > 1:
        global _team
        limits = {"timeout": timeout, "heartbeat_timeout": heartbeat_timeout}
        store = CoordinatorStore()
        _team = failure_monitor.FailureMonitor(store, index=index, count=count, **limits)
    logging.info("process %d of %d", index, count)


def is_single_process() -> bool:
    """Whether this process is the only one."""
    return _team is None


def barrier(what: str) -> None:
    """Waits until every process is here; InputError that names those that do not come."""
    if _team is None:
        return
    try:
        _team.store.barrier(_team.once(what), _team.timeout)
    except Late as late:
        raise _did_not_come(late.processes, what) from None


def from_main(what: str, value: Any) -> Any:
    """Process 0's `value`, a JSON value, on every process; the values of the others are ignored."""
    if _team is None:
        return value
    key = _team.once(what)
    if _team.index == 0:
        _team.store.put(key, value)
        return value
    try:
        return _team.store.wait_for(key, _team.timeout)
    except Late:
        raise _did_not_come([0], what) from None


def require_same(what: str, value: dict[str, Any]) -> None:
    """InputError on each process whose `value`, a nested dict, is not that of process 0.

    `what` is how the message calls it, e.g. "configuration".
    """
    if _team is None:
        return
    here = json.loads(json.dumps(value))
    changed = differences(from_main(what, here), here)
    if changed:
        shown = [f"{k}: {_short(b)} instead of {_short(a)}" for k, (a, b) in changed.items()]
        raise InputError(
            f"process {_team.index} differs from process 0 in its {what}: "
            f"{first(shown, _SHOWN, separator='; ')}. All processes need the same"
        )
    barrier(what)


def require_one_folder(path: epath.Path) -> None:
    """InputError on each process that does not see in this folder what process 0 writes there."""
    if _team is None:
        return
    token = path / ".seen_by_all"
    if _team.index == 0:
        token.write_text(secrets.token_hex(8))
    written = from_main("token", token.read_text() if _team.index == 0 else None)
    until = time.monotonic() + min(_team.timeout, _VISIBLE_SECONDS)
    while not (token.exists() and token.read_text() == written):
        if time.monotonic() > until:
            raise InputError(
                f"process {_team.index} does not see what process 0 writes to {path}: all need "
                "the same folder, on a disk or in a bucket that they share"
            )
        time.sleep(0.2)
    barrier("shared folder")
    if _team.index == 0:
        token.unlink()


def agreed_stop(step: int, received: int | None) -> int | None:
    """The signal after which the run stops at this step, on every process at the same; or None.

    To be called once for each step, when it has been started: the device is not waited for.
    `received` is a signal that this process received.
    """
    return received if _team is None else _team.agreed_stop(step, received)


def within_time(what: str) -> contextlib.AbstractContextManager[Callable[[], None]]:
    """Ends all processes when the block takes longer than `runtime.timeout` on one of them.

    For reading what the others do not wait for with a time-out. Yields a function that starts the
    time anew. With one process nothing happens: its user sees it wait.
    """
    return contextlib.nullcontext(lambda: None) if _team is None else _team.within_time(what)


@contextlib.contextmanager
def end_together() -> Iterator[None]:
    """In this block a failure of one process ends all of them, each with that reason.

    An exception is told to the others and printed, and the process ends there and then: closing
    files, which comes after the block, may wait for processes that are gone. Only `Interrupted`,
    which all raise at one step, and a second signal pass. Such blocks may be nested.
    """
    if _team is None:
        yield
        return
    is_outermost = not _team.is_running
    if is_outermost:
        _team.start()
    stopped: Interrupted | None = None
    try:
        try:
            yield
        except Interrupted as agreed:
            stopped = agreed
        if is_outermost:
            barrier("end of the run")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            _team.fail(_message(error), suspicious=False)
            raise
        end_all(_message(error), error, trace=not isinstance(error, InputError))
    finally:
        if is_outermost:
            _team.stop()
    if stopped is not None:
        raise stopped


def end_all(reason: str, error: BaseException, *, trace: bool = False) -> NoReturn:
    """Ends all processes with this reason, or with that of another one which caused `error`.

    For a failure in a thread, where no caller could catch an exception. `trace` prints the
    traceback.
    """
    _team.fail(reason, suspicious=_is_of_jax(error))  # ends this process if it was another
    if trace:
        traceback.print_exception(error)
    console.fail(reason)
    logging.error(reason, extra={"file_only": True})
    failure_monitor.leave(1)


def leave(status: int) -> NoReturn:
    """Exits; with several processes at once, for an orderly exit would wait for the others."""
    if _team is not None:
        failure_monitor.leave(status)
    sys.exit(status)


def _did_not_come(processes: list[int], what: str) -> InputError:
    who = f"process {', '.join(map(str, processes))}" if processes else "a process"
    return InputError(
        f"{who} did not come to the point '{what}' within {_team.timeout:g} s (runtime.timeout); "
        "its own log may say why"
    )


def _message(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "stopped at once by Ctrl-C"  # `signals.Stopped` says by what
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


def _is_of_jax(error: BaseException | None) -> bool:
    """Whether it comes from the runtime, and so perhaps from a process that vanished."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError | Unreachable):
            return True
        if _COLLECTIVE.search(str(error)):  # some calls of JAX make a ValueError of it
            return True
        error = error.__cause__ or error.__context__
    return False


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
