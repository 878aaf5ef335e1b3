"""Runs on tars and on Parquet are those on the folder: killed, continued, by several processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import nursery
from tiny_runs import read_metrics
from tiny_shards import write_parquet
from tiny_tars import write_photos

from negclip_jax.training.loop import train

STEPS = 4
CHANGES = {
    "train.total": f"{STEPS} steps",
    "data.caption_mode": "mix",
    "eval.every": "2 steps",
    "eval.batch_size": 8,
    "checkpoint.every": "2 steps",
    "optim.eps": 1e-3,  # large, so that updates are smooth in the gradient
    "data.cache_features": False,
    "data.exact_resize": True,
    "runtime.timeout": 60.0,
}


def tars(images: Path, folder: Path) -> str:
    names = sorted(os.listdir(images))
    for i in range(3):
        write_photos(folder / f"t-{i}.tar", images, names[i::3])
    return f"wds:{folder}/t-{{0..2}}.tar"


SOURCES = {"wds": tars, "parquet": lambda *where: f"parquet:{write_parquet(*where)}"}


@pytest.fixture(scope="module")
def specs(tiny_pairs, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("sources")
    return {name: write(tiny_pairs / "images", folder) for name, write in SOURCES.items()}


@pytest.mark.parametrize("source", SOURCES)
def test_killed_and_started_again(
    source, specs, finished_run, short_run, make_config, tmp_path, one_device
):
    """The features of images are kept here; the run that nothing disturbed read the folder."""
    changes = finished_run.changes | {"data.images": specs[source]}
    (tmp_path / "changes.json").write_text(json.dumps(short_run | changes))
    workdir = tmp_path / "run"
    killed = subprocess.run(
        [sys.executable, Path(__file__).with_name("killed_run.py"), tmp_path / "changes.json",
         workdir, "3"],
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": ""},
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    evaluators = {"custom": lambda _: lambda params: {"scale": float(params["logit_scale"])}}
    train(make_config(changes), str(workdir), evaluators)
    ours, theirs = (w / "metrics.jsonl" for w in (workdir, finished_run.workdir))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.fixture(scope="module")
def by_one(make_config, tmp_path_factory) -> dict:
    """Metrics of a run of one process on the folder."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    train(make_config(CHANGES), str(workdir))
    return read_metrics(workdir)


@pytest.fixture(scope="module")
def forked(tmp_path_factory):
    with nursery(tmp_path_factory.mktemp("logs")) as opened:
        yield opened


FOUR = [pytest.param(source, 4, marks=pytest.mark.long) for source in SOURCES]


@pytest.mark.parametrize(("source", "processes"), [("wds", 2), ("parquet", 2), *FOUR])
def test_several_processes_equal_one(source, processes, specs, short_run, by_one, forked, tmp_path):
    cached = (source == "wds") == (processes == 2)
    changes = CHANGES | {"data.images": specs[source], "data.cache_features": cached}
    ends = forked.run(
        short_run | changes,
        tmp_path / "run",
        processes=processes,
        devices=4 // processes,
        seconds=180,
    )
    assert [end.status for end in ends] == [0] * processes, "\n\n".join(e.output for e in ends)
    found = read_metrics(tmp_path / "run")
    assert list(found) == list(by_one)
    for step, numbers in found.items():
        for name in numbers.keys() - {"grad_norm"}:
            np.testing.assert_allclose(
                numbers[name], by_one[step][name], 1e-5, 1e-6, err_msg=f"{step} {name}"
            )
