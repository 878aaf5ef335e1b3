"""The Ray runner: tables equal to the local runner's, also when a worker is killed."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from fault_server import POOL, FaultServer, arguments, tables, world

from data_gen import settings
from data_gen.cli import main
from data_gen.generate import run_on_ray
from negclip_jax.common.errors import InputError

IMAGES = 8  # two shards


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "w"
    return folder, world(folder, IMAGES)


def test_without_ray_the_error_says_what_to_install(scene, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    config = settings.load(None, {"input.captions": str(scene[0] / "captions.json")})
    with pytest.raises(InputError, match=r"pip install -e '\.\[ray\]'"):
        run_on_ray(config, tmp_path / "run", workers=1)


def workers_of(process: subprocess.Popen) -> list[psutil.Process]:
    """Ray's processes that hold a ShardWorker."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "ShardWorker" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def test_a_killed_worker_costs_one_shard(scene, tmp_path):
    folder, shows = scene
    with FaultServer(shows, POOL, latency=0.1) as server:
        assert main(arguments(folder, tmp_path / "local", server)) == 0
        command = arguments(folder, tmp_path / "ray", server, "--runner=ray", "--workers=2")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        environment["RAY_USAGE_STATS_ENABLED"] = "0"
        process = subprocess.Popen(
            [sys.executable, "-m", "data_gen", *command],
            env=environment,
            cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE,
            text=True,
        )
        until = time.monotonic() + 120
        while not (victims := workers_of(process)) and time.monotonic() < until:
            time.sleep(0.05)
        assert victims, "no worker was found"
        started = server.counts.calls
        while server.counts.calls < started + 5 and time.monotonic() < until:
            time.sleep(0.02)
        victims[0].kill()
        _, error = process.communicate(timeout=180)
    assert process.returncode == 0, error[-3000:]
    assert tables(tmp_path / "ray") == tables(tmp_path / "local")
