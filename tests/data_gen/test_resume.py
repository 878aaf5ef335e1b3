"""Killed, interrupted, doubled: nothing is asked twice and the tables are equal byte for byte."""

import json
import os
import random
import signal
import time

import pytest
from fault_server import POOL, FaultServer, arguments, tables, world

from data_gen.cli import main

IMAGES = 16


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "w"
    return folder, world(folder, IMAGES)


@pytest.fixture(scope="module")
def undisturbed(scene, tmp_path_factory):
    """Tables and bodies of the calls of a run from beginning to end."""
    folder, shows = scene
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    with FaultServer(shows, POOL) as server:
        assert main(arguments(folder, out, server)) == 0
    return tables(out), server.counts.by_body


@pytest.fixture
def start(forked, tmp_path):
    """Function of a command to its process, which writes `tmp_path/log`."""
    return lambda command: forked.start(["-m", "data_gen", *command], tmp_path / "log")


def wait_for_calls(server: FaultServer, number: int, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while server.counts.calls < number and time.monotonic() < until:
        time.sleep(0.005)
    assert server.counts.calls >= number


def test_kill_9_at_any_moment(scene, start, undisturbed, tmp_path):
    """Killed after a random number of calls; what the cache had is not asked again."""
    folder, shows = scene
    expected, bodies = undisturbed
    with FaultServer(shows, POOL, latency=0.2) as server:
        command = arguments(folder, tmp_path / "run", server)
        moment = random.Random(7).randrange(15, 30)
        process = start(command)
        wait_for_calls(server, moment)
        time.sleep(0.5)  # answers are committed four times a second
        process.kill()
        process.wait(30)
        calls = server.counts.calls
        assert main(command) == 0
    assert tables(tmp_path / "run") == expected
    assert "labels/part-00000.parquet" in expected
    repeated = sum(n - 1 for n in server.counts.by_body.values())
    usual = sum(n - 1 for n in bodies.values())  # the probe of two roles is the same twice
    assert set(server.counts.by_body) == set(bodies)
    assert calls < sum(bodies.values())  # it was killed before the end
    assert repeated - usual <= 64  # what was in flight or not yet committed


def test_a_finished_run_asks_nothing(scene, undisturbed, tmp_path):
    folder, shows = scene
    with FaultServer(shows, POOL) as server:
        command = arguments(folder, tmp_path / "run", server)
        assert main(command) == 0
        calls = server.counts.calls
        assert main(command) == 0
        assert server.counts.calls == calls
    for path in (tmp_path / "run" / "done").iterdir():
        path.unlink()  # all shards again, from the cache alone
    assert main(command) == 0  # the server is gone
    assert tables(tmp_path / "run") == undisturbed[0]


def test_ctrl_c_drains_and_says_how_to_continue(scene, start, undisturbed, tmp_path):
    folder, shows = scene
    with FaultServer(shows, POOL, latency=0.05) as server:
        command = arguments(folder, tmp_path / "run", server, "--config.engine.window=2")
        process = start(command)
        wait_for_calls(server, 40)
        os.kill(process.pid, signal.SIGINT)
        status, error = process.wait(30), (tmp_path / "log").read_text()
        assert status == 130, error
        assert "stopped by SIGINT; to continue:\n  python -m data_gen run" in error
        assert "Traceback" not in error
        stopped = server.counts.calls
        assert main(command) == 0
    assert server.counts.calls <= sum(undisturbed[1].values()) and stopped < server.counts.calls
    assert tables(tmp_path / "run") == undisturbed[0]


def test_two_runs_in_one_directory(scene, start, tmp_path, capsys):
    folder, shows = scene
    with FaultServer(shows, POOL, latency=0.1) as server:
        command = arguments(folder, tmp_path / "run", server)
        process = start(command)
        wait_for_calls(server, 5)
        assert main(command) == 2
        assert f"is in use by process {process.pid} on" in capsys.readouterr().err
        process.kill()
        process.wait(30)


def test_more_images_and_other_settings_use_what_is_there(scene, tmp_path):
    folder, shows = scene
    out = tmp_path / "run"
    with FaultServer(shows, POOL) as server:
        assert main(arguments(folder, out, server, "--limit=6")) == 0
        few = server.counts.calls
        assert main(arguments(folder, out, server)) == 0
        bodies = server.counts.by_body
        repeated = sum(bodies.values()) - len(bodies)
        assert repeated <= server.counts.by_stage["probe"] and server.counts.calls > few
        verified = server.counts.by_stage["verify"]
        assert main(arguments(folder, out, server, "--config.rewrite.temperature=0.1")) == 0
        assert server.counts.by_stage["verify"] == verified
        assert main(arguments(folder, out, server, "--limit=6")) == 0
    marks = sorted(path.name for path in (out / "done").iterdir())
    assert marks == ["part-00000.json", "part-00001.json"]
    assert len(list((out / "pairs").iterdir())) == 2  # the longer run's parts are gone


def test_a_full_disk_is_one_sentence(scene, forked, tmp_path):
    """The limit of a file's size stands for the disk: writing past it fails the same way."""
    folder, shows = scene
    with FaultServer(shows, POOL) as server:
        command = arguments(
            folder, tmp_path / "run", server, "--config.verify.questions_per_round=0"
        )
        argv, limited = ["-m", "data_gen", *command], {"largest_file": 33_500}
        (end,) = forked.finish([argv], events=[limited])
        assert end.status == 5, end.output
        assert "Traceback" not in end.output and "to continue" in end.output
        assert main(command) == 0
    sessions = (tmp_path / "run" / "sessions.jsonl").read_text().splitlines()
    assert json.loads(sessions[-1])["status"] == "done"


def test_an_unwritable_directory(scene, tmp_path, capsys):
    folder, shows = scene
    (tmp_path / "file").write_text("")
    with FaultServer(shows, POOL) as server:
        assert main(arguments(folder, tmp_path / "file" / "run", server)) == 2
    assert "cannot be written to" in capsys.readouterr().err
