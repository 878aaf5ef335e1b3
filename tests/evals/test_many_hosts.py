"""Two processes with two devices each and no disk in common encode together."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_runs import ROOT

from evals.encode import Encoder
from evals.images import DataRoots


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def hosts(tiny_checkpoint, photos, tmp_path_factory) -> Path:
    """Folder with `INDEX.npy` (features), `INDEX.json` and `cacheINDEX` of both."""
    data, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("out")
    (data / "photos").symlink_to(photos.data / "photos")
    (data / "bad.png").write_bytes(b"no image")
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    env["JAX_COMPILATION_CACHE_DIR"] = jax.config.jax_compilation_cache_dir
    command = [sys.executable, Path(__file__).with_name("host.py")]
    arguments = [str(free_port()), tiny_checkpoint, data, out]
    processes = [
        subprocess.Popen([*command, str(i), *arguments], env=env, stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    # A batch that only one of them runs would keep it waiting for ever.
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    return out


def left(out: Path, index: int) -> dict:
    return json.loads((out / f"{index}.json").read_text())


def test_both_have_all_features(hosts, tiny_model, photos, tmp_path):
    first, second = (np.load(hosts / f"{i}.npy") for i in range(2))
    np.testing.assert_array_equal(first, second)
    texts = [f"no {'x' * i}" for i in range(9)]
    alone = Encoder(tiny_model, photos.refs[:7], texts, DataRoots((photos.data,)), cache=tmp_path)
    expected = np.concatenate(alone.features(photos.refs[:7], texts))
    np.testing.assert_allclose(first, expected, atol=2e-6)


def test_both_know_the_image_that_one_of_them_could_not_read(hosts):
    for i in range(2):
        assert left(hosts, i)["message"].startswith("1 images cannot be used: bad.png: ")


def test_what_the_main_process_kept_is_sent_to_the_other(hosts):
    assert [left(hosts, i)["pending"] for i in range(2)] == [[1, 0], [1, 0]]
    assert {p.suffix for p in (hosts / "cache0").iterdir()} == {".bin", ".json"}
    assert {p.suffix for p in (hosts / "cache1").iterdir()} == {".json"}
