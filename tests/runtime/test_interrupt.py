"""Signals become a flag; the second one stops at once."""

import os
import signal
import threading

import pytest

from negclip_jax.common import signals
from negclip_jax.runtime.interrupt import StopSignal


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_only_sets_the_flag(signum, caplog):
    with StopSignal() as stop:
        assert stop.received is None
        os.kill(os.getpid(), signum)
        assert stop.received == signum
    assert "finishing this step, then saving" in caplog.text


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_stops_at_once(second):
    with pytest.raises(signals.Stopped) as stopped, StopSignal():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), second)
    assert stopped.value.signum == second


def test_work_is_done_unless_a_signal_comes():
    with StopSignal() as stop:
        assert stop.unless_asked(lambda: 3) == 3
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.unless_asked(lambda: 3) is None


def test_work_is_cut_short():
    done = []

    def work():
        try:
            done.append("begun")
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("gone on")
        finally:
            done.append("cleaned up")

    with StopSignal() as stop:
        assert stop.unless_asked(work) is None
        assert stop.received == signal.SIGTERM
        assert done == ["begun", "cleaned up"]


def test_only_the_work_is_cut_short():
    with StopSignal() as stop:
        with pytest.raises(ZeroDivisionError):
            stop.unless_asked(lambda: 1 / 0)
        stop.unless_asked(lambda: None)
        os.kill(os.getpid(), signal.SIGTERM)  # raises nothing here
        assert stop.received == signal.SIGTERM


def test_a_watching_thread_leaves_the_first_signal_to_the_loop(caplog):
    with StopSignal():
        (listener,) = signals._listeners
        assert listener(signal.SIGTERM) and not listener(signal.SIGTERM)
        assert caplog.text.count("finishing this step, then saving") == 1
    assert not signals._listeners


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopSignal():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_other_threads_work_without_handlers():
    seen = []

    def run():
        with StopSignal() as stop:
            seen.append(stop.received)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [None]
