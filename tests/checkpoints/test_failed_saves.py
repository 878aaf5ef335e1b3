"""What orbax logs of a save that failed in the background ends all processes."""

import logging
import threading

import pytest

from negclip_jax.checkpoints import failed_saves
from negclip_jax.runtime import multihost


@pytest.fixture
def told(monkeypatch) -> list:
    found: list = []
    monkeypatch.setattr(multihost, "is_single_process", lambda: False)
    monkeypatch.setattr(multihost, "end_all", lambda *arguments: found.append(arguments))
    return found


def log_in_thread(name: str, error: Exception | None) -> None:
    """As orbax does: through absl's logger, with the exception."""
    logger = logging.getLogger("absl")
    info = (type(error), error, None) if error is not None else None
    thread = threading.Thread(target=lambda: logger.error("failed", exc_info=info), name=name)
    thread.start()
    thread.join()


def test_a_failed_save_is_told_with_what_the_system_said(told):
    outer = ValueError("orbax wrapped it")
    outer.__cause__ = OSError(27, "File too large")
    with failed_saves.end_the_run("runs/x"):
        log_in_thread("async_save", outer)
    ((reason, error),) = told
    assert error is outer
    assert reason.startswith("cannot write a checkpoint to runs/x: OSError: [Errno 27] File too l")


def test_other_errors_and_other_threads_are_left_alone(told):
    with failed_saves.end_the_run("runs/x"):
        log_in_thread("async_save", None)
        log_in_thread("somebody", OSError("another matter"))
    log_in_thread("async_save", OSError("after the run"))
    assert told == []


def test_one_process_hears_of_it_from_orbax(told, monkeypatch):
    monkeypatch.setattr(multihost, "is_single_process", lambda: True)
    with failed_saves.end_the_run("runs/x"):
        log_in_thread("async_save", OSError("disk"))
    assert told == []


def test_orbax_still_logs_so():
    """The name of the thread and the exception are all that is relied on."""
    import inspect

    from orbax.checkpoint._src.checkpointers.async_checkpointer import _AsyncManager

    source = inspect.getsource(_AsyncManager)
    assert "name='async_save'" in source and "logging.error(msg, exc_info=True)" in source
