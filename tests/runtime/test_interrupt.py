"""Signals become a flag; the second one stops at once."""

import os
import signal
import threading

import pytest

from negclip_jax.runtime.interrupt import Interrupted, StopSignal


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_only_sets_the_flag(signum, caplog):
    with StopSignal() as stop:
        assert stop.received is None
        os.kill(os.getpid(), signum)
        assert stop.received == signum
    assert "finishing this step, then saving" in caplog.text


def test_the_second_signal_stops_at_once():
    with pytest.raises(KeyboardInterrupt), StopSignal():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


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


def test_what_was_stopped():
    assert str(Interrupted(signal.SIGTERM, 7)) == "stopped by SIGTERM after step 7"
