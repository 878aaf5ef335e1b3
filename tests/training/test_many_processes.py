"""One process, two and four, on any mesh: the same numbers, and each process does its part."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_benchmark
from tiny_benchmark import write_items
from tiny_runs import assert_close, read_metrics

from evals import registry
from evals.in_training import configured
from negclip_jax.checkpoints.restore import restore_params
from negclip_jax.runtime import sharding
from negclip_jax.training.loop import train

STEPS, HALF = 6, 3
CHANGES = {
    "train.total": f"{STEPS} steps",
    "train.ema_decay": 0.8,
    "data.caption_mode": "mix",
    "data.foils": 1,
    "data.validation_fraction": 0.025,  # one image, two pairs: fewer than there are processes
    "optim.lr": 2e-3,
    "optim.eps": 1e-3,  # large, so that updates are smooth in the gradient
    "eval.every": f"{HALF} steps",
    "eval.batch_size": 8,
    "eval.benchmarks": "tiny",
    "checkpoint.every": f"{HALF} steps",
    "log.every": "2 steps",
    "mesh.min_shard_size": 64,
    "runtime.timeout": 60.0,
}
# For runs that are compared by their updates alone: compiling evaluators is what takes time here.
UPDATES_ONLY = {"eval.every": "0 steps", "eval.benchmarks": ""}


@pytest.fixture(scope="module")
def settings(short_run, tiny_pairs, tmp_path_factory) -> dict:
    """Of all runs here: everything that can be on is on, and nothing divides by anything."""
    data = tmp_path_factory.mktemp("benchmark")
    (data / "photos").mkdir()
    for i in range(3):
        shutil.copy(tiny_pairs / "images" / f"{i:03d}.png", data / "photos" / f"{i}.png")
    write_items(data, images=3)
    return short_run | CHANGES | {"eval.data": str(data)}


@pytest.fixture(scope="module")
def train_here(settings, make_config, tmp_path_factory):
    """Function of mesh and changes to the workdir of a run in this process, on some devices."""

    def run(data: int, fsdp: int, changes: dict | None = None, workdir: Path | None = None) -> Path:
        workdir = workdir or tmp_path_factory.mktemp("here") / "run"
        config = make_config(settings | {"mesh.data": data, "mesh.fsdp": fsdp} | (changes or {}))
        make_mesh, devices = sharding.make_mesh, jax.devices()[: data * fsdp]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sharding, "make_mesh", lambda **axes: make_mesh(**axes, devices=devices))
            patch.setattr(registry, "BENCHMARKS", {"tiny": lambda: tiny_benchmark.BENCHMARK})
            keys = ("benchmarks", "data", "allow_subset")
            evaluators = configured(workdir=str(workdir), **{key: config.eval[key] for key in keys})
            train(config, str(workdir), evaluators)
        return workdir

    return run


@pytest.fixture(scope="module")
def alone(train_here) -> Path:
    """Workdir of the undisturbed run of one process."""
    return train_here(4, 1)


def assert_all_well(ends) -> None:
    assert [end.status for end in ends] == [0] * len(ends), "\n\n".join(e.output for e in ends)


def assert_same_run(workdir: Path, expected: Path, *, first: int = 1) -> None:
    """Same numbers from step `first` on, and the same parameters, to 1e-6."""
    ours, theirs = read_metrics(workdir), read_metrics(expected)
    assert max(ours) == max(theirs) == STEPS
    for step in range(first, STEPS + 1):
        assert "val/loss" in ours[step] if step == 0 else "loss" in ours[step]
        assert ours[step].keys() <= theirs[step].keys()
        for name, value in ours[step].items():
            tolerance = 1e-6 if "loss" in name else 1e-5
            np.testing.assert_allclose(
                value, theirs[step][name], tolerance, 1e-6, err_msg=f"{step} {name}"
            )
    for ema in (False, True):
        (a, step), (b, _) = (restore_params(str(w), "last", ema=ema) for w in (workdir, expected))
        assert step == STEPS
        assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_the_reference_trains_and_evaluates(alone):
    metrics = read_metrics(alone)
    assert list(metrics) == list(range(STEPS + 1))
    assert abs(metrics[1]["loss"] - metrics[STEPS]["loss"]) > 1e-2
    for step in (0, HALF, STEPS):
        assert {"val/loss", "bench/tiny/accuracy"} <= metrics[step].keys()
    assert (alone / "features").is_dir()


# One device continues a run below.
OTHER_MESHES = [pytest.param(*mesh, marks=pytest.mark.long) for mesh in ((1, 1), (8, 1), (4, 2))]


@pytest.mark.parametrize(
    ("data", "fsdp"), [pytest.param(2, 4, marks=pytest.mark.slow), *OTHER_MESHES]
)
def test_any_mesh_gives_the_same_numbers(train_here, alone, data, fsdp):
    cache = {"data.cache_dir": str(alone / "features")}  # computed on four devices
    assert_same_run(train_here(data, fsdp, UPDATES_ONLY | cache), alone)


@pytest.fixture(scope="module")
def half_by_two(forked, settings, tmp_path_factory) -> Path:
    """Workdir of half a run of two processes of two devices each."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    changes = {"train.total": f"{HALF} steps", "mesh.fsdp": 4}
    changes |= {"log.profile_steps": "2-3", "runtime.debug_nans": True}  # change no number
    events = {i: counted(workdir, i) | {"tiny_benchmark": True} for i in range(2)}
    ends = forked.run(
        settings | changes, workdir, processes=2, devices=2, events=events, seconds=120
    )
    assert_all_well(ends)
    assert f"done: {HALF} steps" in ends[0].output
    assert not any("done" in end.output or "step " in end.output for end in ends[1:])
    return workdir


def counted(workdir: Path, process: int) -> dict[str, str]:
    """The event that writes which images a process reads."""
    return {"count_reads": str(workdir.parent / f"reads{process}.json")}


def assert_each_reads_its_part(workdir: Path, processes: int) -> None:
    files = [workdir.parent / f"reads{i}.json" for i in range(processes)]
    reads = [json.loads(file.read_text()) for file in files]
    names, size = {f"{i:03d}.png" for i in range(40)}, 40 // processes
    hashed = [set(r["read"]) for r in reads]
    assert [len(part) for part in hashed] == [size] * processes and set.union(*hashed) == names
    opened = [[name for name in r["open"] if name in names] for r in reads]
    assert set().union(*opened) == names
    for i, part in enumerate(opened):
        assert len(part) == size and all(not set(part) & set(other) for other in opened[:i])


def test_each_process_reads_its_part(half_by_two):
    assert_each_reads_its_part(half_by_two, 2)


def test_only_the_main_process_writes(half_by_two):
    described = json.loads((half_by_two / "config.json").read_text())
    assert described["runtime"]["process_id"] == 0
    assert json.loads((half_by_two / "environment.json").read_text())["processes"] == 2
    log = (half_by_two / "train.log").read_text()
    assert log.count("compiled the training step") == 1 and log.count("step 3: val/") == 1


def test_two_processes_equal_one(half_by_two, alone):
    """Each evaluates on three photos and two pairs, which four devices share."""
    ours, theirs = read_metrics(half_by_two), read_metrics(alone)
    assert list(ours) == list(range(HALF + 1))
    for step, numbers in ours.items():
        assert numbers.keys() == theirs[step].keys()
        for name in numbers.keys() - {"grad_norm"}:
            np.testing.assert_allclose(
                numbers[name], theirs[step][name], 1e-6, 1e-6, err_msg=f"{step} {name}"
            )


def test_each_process_traces_its_steps(half_by_two):
    folder = half_by_two / "profile" / "plugins" / "profile" / "steps_2-3"
    suffixes = ("perfetto_trace.json.gz", "xplane.pb")
    assert {p.name for p in folder.iterdir()} == {
        f"process_{i}.{suffix}" for i in range(2) for suffix in suffixes
    }


@pytest.mark.slow
def test_what_two_processes_began_one_continues(half_by_two, train_here, alone, tmp_path):
    workdir = Path(shutil.copytree(half_by_two, tmp_path / "run"))
    train_here(1, 1, UPDATES_ONLY, workdir)
    assert_same_run(workdir, alone, first=HALF + 1)


@pytest.mark.long  # above are two processes, and four devices that share parameters
def test_four_processes_equal_one(forked, settings, alone, tmp_path):
    """Of one device each, whose parameters lie in parts on two."""
    workdir, changes = tmp_path / "run", {"mesh.fsdp": 2, "eval.benchmarks": ""}
    events = {i: counted(workdir, i) for i in range(4)}
    ends = forked.run(
        settings | changes, workdir, processes=4, devices=1, events=events, seconds=120
    )
    assert_all_well(ends)
    assert_each_reads_its_part(workdir, 4)
    assert_same_run(workdir, alone, first=0)
    assert "val/loss" in read_metrics(workdir)[STEPS]


@pytest.mark.long  # above is one that continues
def test_what_two_processes_began_four_continue(forked, half_by_two, settings, alone, tmp_path):
    workdir = Path(shutil.copytree(half_by_two, tmp_path / "run"))
    changes = UPDATES_ONLY | {"mesh.fsdp": 2}
    ends = forked.run(settings | changes, workdir, processes=4, devices=1, seconds=120)
    assert_all_well(ends)
    assert f"continuing from step {HALF} " in ends[0].output
    assert_same_run(workdir, alone, first=HALF + 1)
