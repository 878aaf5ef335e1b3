"""What the processes of a run agree on, with two of them as threads of this one."""

import concurrent.futures
import contextlib
import http.server
import os
import subprocess
import sys
import threading

import jax
import pytest
from coordinators import connected
from etils import epath
from tiny_runs import ROOT

from negclip_jax.common import signals
from negclip_jax.common.errors import InputError
from negclip_jax.common.signals import Interrupted
from negclip_jax.runtime import failure_monitor, multihost

_here = threading.local()


class Left(BaseException):
    """Stands for the end of a process."""


class TeamOfThread:
    """Stands in `multihost._team` for the team of the thread that asks."""

    def __getattr__(self, name):
        return getattr(_here.team, name)

    def __setattr__(self, name, value):
        setattr(_here.team, name, value)


@pytest.fixture
def together(monkeypatch):
    """Function that runs a function of the process number in two threads, as two processes.

    Returns what each returned or raised.
    """
    monkeypatch.setattr(multihost, "_team", TeamOfThread())
    with connected(2) as stores:
        teams = [
            failure_monitor.FailureMonitor(
                store, index=i, count=2, timeout=1.0, heartbeat_timeout=60.0
            )
            for i, store in enumerate(stores)
        ]

        def run(function):
            def one(index: int):
                _here.team = teams[index]
                try:
                    return function(index)
                except BaseException as error:
                    return error

            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                return list(pool.map(one, range(2)))

        yield run


def test_one_process_agrees_with_itself(tmp_path):
    assert multihost.is_single_process()
    multihost.barrier("here")
    multihost.require_same("configuration", {"a": 1})
    multihost.require_one_folder(epath.Path(tmp_path))
    assert multihost.from_main("value", {"a": 1}) == {"a": 1}
    assert [multihost.agreed_stop(3, received) for received in (None, 15)] == [None, 15]
    with multihost.within_time("nothing") as keep_alive, multihost.end_together():
        keep_alive()
    with pytest.raises(SystemExit) as left:
        multihost.leave(4)
    assert left.value.code == 4


def test_the_main_process_decides(together):
    assert (
        together(lambda i: multihost.from_main("loss", {"loss": 0.25 + i})) == [{"loss": 0.25}] * 2
    )


def test_rounds_do_not_mix(together):
    def several(i: int) -> list:
        found = []
        for n in range(5):
            multihost.barrier("again")
            found.append(multihost.from_main("again", n + 100 * i))
        return found

    assert together(several) == [list(range(5))] * 2


def test_a_difference_is_named_by_its_keys(together):
    def check(i: int) -> None:
        config = {"optim": {"lr": [1e-3, 2e-3][i], "eps": 1e-8}, "seed": i}
        multihost.require_same("configuration", config)

    main, other = together(check)
    assert isinstance(other, InputError) and str(other) == (
        "process 1 differs from process 0 in its configuration: optim.lr: 0.002 instead of 0.001; "
        "seed: 1 instead of 0. All processes need the same"
    )
    # The other one is ended by its watch, or here by the time-out.
    assert "process 1 did not come to the point 'configuration' within 1 s" in str(main)


def test_many_and_long_differences_are_cut_short(together):
    def check(i: int) -> None:
        value = {f"k{n}": "x" * (1000 * i) for n in range(9)}
        multihost.require_same("data", value)

    _, other = together(check)
    assert str(other).count("instead of") == 5 and "and 4 more" in str(other)
    assert len(str(other)) < 1500


def test_the_same_value_passes(together):
    values = ({"b": (1, 2), "a": None}, {"a": None, "b": [1, 2]})  # as JSON they are equal
    assert together(lambda i: multihost.require_same("data", values[i])) == [None, None]


def test_a_process_that_does_not_come_is_named(together):
    ends = together(lambda i: multihost.barrier("meeting") if i == 0 else None)
    assert "process 1 did not come to the point 'meeting' within 1 s (runtime.timeout)" in str(
        ends[0]
    )
    ends = together(lambda i: multihost.from_main("value", 0) if i == 1 else None)
    assert "process 0 did not come to the point 'value'" in str(ends[1])


def test_one_folder_is_one_folder(together, tmp_path):
    same = epath.Path(tmp_path)
    assert together(lambda i: multihost.require_one_folder(same)) == [None, None]
    assert list(tmp_path.iterdir()) == []
    folders = [same / "a", same / "b"]
    for folder in folders:
        folder.mkdir()
    ends = together(lambda i: multihost.require_one_folder(folders[i]))
    assert str(ends[1]).startswith(f"process 1 does not see what process 0 writes to {same}/b")


def test_all_stop_together_when_interrupted(together):
    def run(i: int) -> None:
        with multihost.end_together(), multihost.end_together():
            raise Interrupted(15, 7)

    ends = together(run)
    assert [(type(e), e.step) for e in ends] == [(Interrupted, 7)] * 2


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (InputError("photo 7 is broken"), "photo 7 is broken"),
        (KeyError("a bug"), "KeyError: 'a bug'"),
    ],
)
def test_an_error_is_told_and_ends_all(together, monkeypatch, capsys, error, sentence):
    left: list = []
    told = threading.Event()

    def leave(status: int) -> None:
        left.append(status)
        told.set()
        raise Left

    monkeypatch.setattr(failure_monitor, "leave", leave)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)

    def run(i: int) -> None:
        with multihost.end_together():
            if i == 1:
                raise error
            told.wait(10)  # as in a collective
            _here.team.stop()
            raise InputError("woken for the test")

    ends = together(run)
    assert [type(end) for end in ends] == [Left, Left] and set(left) == {1}
    err = capsys.readouterr().err
    assert f"error: {sentence}\n" in err and f"error: process 1: {sentence}\n" in err
    assert "woken" not in err
    assert ("Traceback" in err) is isinstance(error, KeyError), "a bug shows where it is"


@pytest.mark.parametrize(
    ("error", "is_of_jax"),
    [
        (jax.errors.JaxRuntimeError("UNKNOWN: Gloo"), True),
        (ValueError("UNKNOWN: Gloo AllGather failed: pair.cc:538] Connection reset by peer"), True),
        (ValueError("another model"), False),
        (InputError("a sentence"), False),
        (OSError("disk"), False),
    ],
)
def test_errors_of_the_runtime_are_known_through_what_wraps_them(error, is_of_jax):
    assert multihost._is_of_jax(error) is is_of_jax
    wrapped = InputError("cannot save")
    wrapped.__cause__ = error
    assert multihost._is_of_jax(wrapped) is is_of_jax


def test_a_signal_that_ends_one_process_at_once_ends_all(together, monkeypatch, capsys):
    """Blocks are nested in a run; the process that received it says itself how to continue."""
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    told = threading.Event()

    def leave(status: int) -> None:
        told.set()
        raise Left

    monkeypatch.setattr(failure_monitor, "leave", leave)

    def run(i: int) -> None:
        with multihost.end_together(), multihost.end_together():
            if i == 1:
                raise signals.Stopped(15)
            told.wait(10)
            _here.team.stop()
            raise InputError("woken for the test")

    ends = together(run)
    assert [type(end) for end in ends] == [Left, signals.Stopped]
    assert "error: process 1: stopped at once by SIGTERM\n" in capsys.readouterr().err


@pytest.fixture
def joined(monkeypatch):
    calls = []
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda *args, **seconds: calls.append((args, seconds))
    )
    yield calls
    jax.config.update("jax_enable_preemption_service", True)


def test_processes_join_only_when_asked(joined):
    multihost.join("off", process_id=None, num_processes=None)
    assert joined == []
    multihost.join("auto", process_id=None, num_processes=None)
    multihost.join("host:1234", process_id=0, num_processes=2, timeout=50, heartbeat_timeout=10)
    assert [place for place, _ in joined] == [(), ("host:1234", 2, 0)]
    assert joined[1][1] == {
        "initialization_timeout": 80,  # our own messages come first
        "heartbeat_timeout_seconds": 50,
        "shutdown_timeout_seconds": 10,
    }


def test_jax_leaves_sigterm_to_us(joined):
    multihost.join("auto", process_id=None, num_processes=None)
    assert jax.config.jax_enable_preemption_service is False


@pytest.mark.parametrize("given", [{}, {"process_id": 0}, {"num_processes": 2}])
def test_a_coordinator_needs_number_and_count_of_processes(joined, given):
    arguments = {"process_id": None, "num_processes": None} | given
    message = r"runtime\.distributed='host:1' needs runtime\.process_id and runtime\.num_processes"
    with pytest.raises(InputError, match=message):
        multihost.join("host:1", **arguments)
    assert joined == []


def test_joining_gives_up_with_a_message(monkeypatch, capsys):
    gone = threading.Event()
    monkeypatch.setattr(failure_monitor, "leave", lambda status: gone.set())

    def late(*_, **__):
        assert gone.wait(5)

    monkeypatch.setattr(jax.distributed, "initialize", late)
    multihost.join("auto", process_id=None, num_processes=None, timeout=0.05)
    assert "error: not all processes came to auto within 0.05 s" in capsys.readouterr().err

    def refuse(*_, **__):
        raise ValueError("no cluster here\nand more")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    with pytest.raises(InputError, match=r"cannot be joined at 'auto': no cluster here\. JAX"):
        multihost.join("auto", process_id=None, num_processes=None, timeout=5.0)
    jax.config.update("jax_enable_preemption_service", True)


METADATA = {
    "worker-network-endpoints": "unused:1:127.0.0.1,unused:2:127.0.0.1",
    "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-16'\nTYPE: 'V5LITE_POD'\n",
}
ON_A_POD = """
import os
from jax._src.clusters import cloud_tpu_cluster

cloud_tpu_cluster.running_in_cloud_tpu_vm = True  # what JAX finds out from libtpu and the TPU
os.environ.pop("TPU_SKIP_MDS_QUERY", None)  # elsewhere JAX sets it
from negclip_jax.runtime import multihost

multihost.join("auto", process_id=None, num_processes=None, timeout=60.0)
import jax

print("place", jax.process_index(), jax.process_count(), jax.device_count(), flush=True)
multihost.barrier("joined")
"""  # An orderly exit: were the first one to leave at once, the other would lose its coordinator.


def test_the_vms_of_a_pod_find_each_other_through_their_metadata():
    """Two processes with a metadata server each, which answers as that of a TPU VM does."""

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.headers["Metadata-Flavor"] == "Google"
            prefix, _, key = self.path.rpartition("/")
            assert prefix == "/computeMetadata/v1/instance/attributes"
            known = METADATA | {"agent-worker-number": str(self.server.number)}
            self.send_response(200 if key in known else 404)
            self.end_headers()
            self.wfile.write(known.get(key, "").encode())

        def log_message(self, *_):
            pass

    started = []
    with contextlib.ExitStack() as stack:
        for number in range(2):
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
            server.number = number
            stack.callback(server.server_close)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            place = {"GCE_METADATA_IP": f"127.0.0.1:{server.server_port}"}
            one_device = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
            process = subprocess.Popen(
                [sys.executable, "-c", ON_A_POD],
                env=os.environ | place | one_device,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.callback(process.kill)
            started.append(process)
        ended = [process.communicate(timeout=120) for process in started]
    for number, (out, err) in enumerate(ended):
        assert f"place {number} 2 2\n" in out, err
    assert [process.returncode for process in started] == [0, 0]
