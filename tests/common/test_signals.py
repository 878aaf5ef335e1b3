"""A signal ends a command with a message and its status, even inside a compiler."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from tiny_runs import ROOT

from negclip_jax.common import signals
from negclip_jax.common.signals import Interrupted, StopSignal

# What the main thread does: Python, or C++ that looks at no signal, as a compiler.
COMMAND = """
import hashlib, signal, sys, threading, time
from negclip_jax.common import signals

def say(what):
    print(what + "; to continue: again", file=sys.stderr)

def say_ready():
    time.sleep(0.2)
    print("ready", flush=True)

def compile():
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

signals._UNWIND_SECONDS = 0.3
signals.end_on_signals(say)
if sys.argv[2] == "listener":
    heard = []
    signals._listeners.append(lambda signum: not heard and not heard.append(signum))
    for signum in signals.SIGNALS:
        signal.signal(signum, lambda *_: print("heard", flush=True))
try:
    # The main thread lets another one run only where it waits or is in C++: when it is ready.
    sys.setswitchinterval(60)
    threading.Thread(target=say_ready, daemon=True).start()
    {"python": lambda: time.sleep(60), "compiler": compile}[sys.argv[1]]()
except KeyboardInterrupt as stopped:
    print("cleaned up", flush=True)
    signals.end(stopped.signum, say)
"""


def start(*arguments: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    return process


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("place", ["python", "compiler"])
def test_a_signal_ends_the_process_wherever_it_is(place, signum):
    process = start(place, "nobody listens")
    started = time.monotonic()
    process.send_signal(signum)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + signum
    assert err == f"stopped at once by {signal.Signals(signum).name}; to continue: again\n"
    assert out == ("cleaned up\n" if place == "python" else "")
    assert time.monotonic() - started < 10


def test_a_listener_takes_the_first_signal_only():
    process = start("python", "listener")
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "heard\n"
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGINT
    assert err == "stopped at once by SIGINT; to continue: again\n"


def test_an_import_is_not_interrupted(tmp_path):
    """jaxlib crashes where an exception comes while it is loaded: it ends after the import."""
    (tmp_path / "slow.py").write_text(
        "import os, signal\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "for _ in range(10**5): pass\n"
        "print('imported', flush=True)\n"
    )
    command = COMMAND.replace('"python": lambda: time.sleep(60)', '"python": load')
    path = f"sys.path.insert(0, {str(tmp_path)!r})"
    load = f"def load():\n    {path}\n    import slow\n    time.sleep(60)\n"
    done = subprocess.run(
        [sys.executable, "-c", load + command, "python", "nobody listens"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert done.stderr == "stopped at once by SIGTERM; to continue: again\n"
    assert done.stdout.splitlines()[-2:] == ["imported", "cleaned up"]


def test_what_was_stopped():
    assert str(Interrupted(signal.SIGTERM, 7)) == "stopped by SIGTERM after step 7"
    assert str(Interrupted(signal.SIGINT)) == "stopped by SIGINT"


# A training loop asks for the signal: the first becomes a flag, the second stops at once.
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
