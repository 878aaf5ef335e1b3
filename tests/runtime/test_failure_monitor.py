"""Two monitors on one real store: failures, silence, deadlines, and one step to stop at."""

import signal
import threading
import time

import pytest
from coordinators import connected

from negclip_jax.runtime import failure_monitor as monitoring
from negclip_jax.runtime.failure_monitor import FailureMonitor


class Left(BaseException):
    """Stands for the end of a process."""


@pytest.fixture(autouse=True)
def ends(monkeypatch) -> list:
    """Exit statuses of the threads that would have ended this process."""
    found: list = []

    def leave(status):
        found.append((threading.current_thread(), status))
        raise Left

    monkeypatch.setattr(monitoring, "leave", leave)
    monkeypatch.setattr(monitoring, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(monitoring, "_SUSPECT_SECONDS", 0.3)
    monkeypatch.setattr(monitoring, "_ACKNOWLEDGE_SECONDS", 1.0)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)  # of Left
    return found


@pytest.fixture
def team(ends):
    """Three monitors of one run, started."""
    with connected(3) as stores:
        monitors = [
            FailureMonitor(store, index=i, count=3, timeout=1.0, heartbeat_timeout=60.0)
            for i, store in enumerate(stores)
        ]
        for monitor in monitors:
            monitor.start()
        yield monitors
        for monitor in monitors:
            monitor.stop()
            monitor._thread.join(10)


def wait_until(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


def threads(ends) -> set:
    return {thread for thread, status in ends if status == 1}


def test_a_failure_ends_the_others_with_its_reason(team, ends, capsys):
    team[1].fail("disk of B full", suspicious=False)
    wait_until(lambda: len(ends) == 2)
    assert threads(ends) == {team[0]._thread, team[2]._thread}
    assert capsys.readouterr().err.count("error: process 1: disk of B full\n") == 2


def test_the_main_process_goes_last(team, ends):
    """Its end takes the store away, so the others must have read it."""
    team[0].fail("disk of A full", suspicious=False)
    assert threads(ends) == {team[1]._thread, team[2]._thread}


def test_the_first_of_two_failures_is_the_reason(team, ends, capsys):
    for monitor in team:
        monitor.stop()  # nobody reads: as if both happened at once
    team[2].fail("first", suspicious=False)
    with pytest.raises(Left):
        team[1].fail("second", suspicious=False)
    assert capsys.readouterr().err == "error: process 2: first\n"


def test_one_that_vanished_is_the_reason_of_a_broken_collective(team, ends, capsys):
    team[2]._over.set()  # beats no more
    with pytest.raises(Left):  # by then its thread has ended it already
        team[1].fail("JaxRuntimeError: Connection closed by peer", suspicious=True)
    wait_until(lambda: {team[0]._thread, team[1]._thread} <= threads(ends))
    err = capsys.readouterr().err
    assert err.count("process 2: no sign of life for 0 s: killed, crashed, or its host") >= 2
    assert "Connection closed" not in err


def test_silence_alone_is_noticed(team, ends, capsys):
    team[0]._heartbeat_timeout = 0.3
    team[1]._over.set()
    wait_until(lambda: len(threads(ends)) == 2)
    assert threads(ends) == {team[0]._thread, team[2]._thread}
    assert "process 1: no sign of life" in capsys.readouterr().err


def test_the_main_process_is_missed_too(team, ends, capsys):
    team[2]._heartbeat_timeout = 0.3
    team[0]._over.set()
    wait_until(lambda: len(threads(ends)) == 2)
    assert "process 0: no sign of life" in capsys.readouterr().err


def test_what_takes_too_long_ends_all(team, ends, capsys):
    with team[1].within_time("photo 7"):
        wait_until(lambda: len(ends) == 3)
    err = capsys.readouterr().err
    assert err.count("process 1: waited longer than 1 s (runtime.timeout) for photo 7") == 3


def test_what_takes_its_time_in_parts_does_not(team, ends):
    with team[1].within_time("photos") as keep_alive:
        for _ in range(6):
            time.sleep(0.25)
            keep_alive()
    time.sleep(0.1)
    assert ends == []


def test_a_signal_stops_all_at_one_step_that_nobody_has_passed(team, ends):
    """Each runs at a pace of its own, up to the step that a collective would allow."""
    stopped: dict[int, tuple[int, int]] = {}
    started = [0, 0, 0]

    def run(index: int) -> None:
        for step in range(1, 400):
            while step > min(started) + 2:  # a collective holds back those that are ahead
                time.sleep(0.001)
            started[index] = step
            received = signal.SIGTERM if (index, step) == (1, 20) else None
            signum = team[index].agreed_stop(step, received)
            if signum is not None:
                stopped[index] = (step, signum)
                started[index] = 10**6
                return
            time.sleep(0.002 * index)

    runners = [threading.Thread(target=run, args=(i,)) for i in range(3)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join(20)
    assert len(stopped) == 3 and len(set(stopped.values())) == 1
    step, signum = stopped[0]
    assert 20 <= step < 390 and signum == signal.SIGTERM


def test_without_a_signal_nobody_stops(team):
    assert [monitor.agreed_stop(step, None) for monitor in team for step in (1, 2, 3)] == [None] * 9
