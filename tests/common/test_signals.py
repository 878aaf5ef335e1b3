"""A signal ends a command with a sentence and its status, even inside a compiler."""

import signal
import subprocess
import sys
import time

import pytest
from tiny_runs import ROOT

from negclip_jax.common.signals import Interrupted

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
assert signals.is_watched()
if sys.argv[2] == "listener":
    heard = []
    signals.add_listener(lambda signum: not heard and not heard.append(signum))
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
