"""What a run leaves for a person, and what stops it."""

import json
import logging
import math
import os
import re
import resource
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.array import ArrayImpl
from tiny_runs import EVALUATORS, assert_equal, checkpoint_steps, read_metrics

from negclip_jax.common.errors import InputError
from negclip_jax.common.signals import Interrupted
from negclip_jax.training import loop, optim
from negclip_jax.training.loop import train
from negclip_jax.training.step import CompiledStep


def test_the_workdir_holds_all_that_describes_the_run(finished_run, make_config):
    workdir = finished_run.workdir
    names = {path.name for path in workdir.iterdir()}
    assert names == {
        "base",
        "checkpoints",
        "config.json",
        "environment.json",
        "examples",
        "features",
        "frozen",
        "metrics.jsonl",
        "tensorboard",
        "timing.jsonl",
        "train.log",
    }
    recorded = json.loads((workdir / "config.json").read_text())
    assert len(recorded.pop("data_fingerprint")) == 16
    assert recorded.pop("base_files").keys() == {p.name for p in (workdir / "base").iterdir()}
    resolved = {"train.objective": "contrastive", "model.dtype": "float32", "data.packing": True}
    config = make_config(finished_run.changes | resolved)
    assert recorded == json.loads(json.dumps(config.to_dict()))
    environment = json.loads((workdir / "environment.json").read_text())
    assert environment["packages"]["jax"] == jax.__version__
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?|None", str(environment["git_revision"]))
    assert (workdir / "base" / "vocab.json").exists()
    assert not list((workdir / "base").glob("*.safetensors"))


def test_metrics_of_every_step_and_every_evaluation(finished_run):
    metrics = read_metrics(finished_run.workdir)
    assert list(metrics) == list(range(21))
    evaluated = [step for step, numbers in metrics.items() if "val/loss" in numbers]
    assert evaluated == [0, 5, 10, 15, 20]
    assert evaluated == [step for step, numbers in metrics.items() if "custom/scale" in numbers]
    assert "loss" not in metrics[0]
    for step in range(1, 21):
        numbers = {k: v for k, v in metrics[step].items() if "/" not in k}
        assert set(numbers) == {
            "loss",
            "lr",
            "logit_scale",
            "grad_norm",
            "update_norm",
            "param_norm",
            "image_to_text_accuracy",
            "text_to_image_accuracy",
            "foil_accuracy",
        }
        assert all(math.isfinite(value) for value in numbers.values())
    # Evaluated is the moving average, which lags behind the parameters.
    assert metrics[20]["custom/scale"] == float(finished_run.state.ema["logit_scale"])
    assert metrics[20]["custom/scale"] != metrics[20]["logit_scale"]


def test_speed_is_measured_per_window_and_kept_apart(finished_run):
    lines = (finished_run.workdir / "timing.jsonl").read_text().splitlines()
    timing = [json.loads(line) for line in lines]
    assert {5, 10, 15, 20} <= {line["step"] for line in timing}
    for line in timing:
        assert set(line) == {
            "step",
            "pairs_per_second",
            "data_wait_share",
            "seconds_per_step",
            "eta_seconds",
            "teraflops_per_second",
        }
        assert line["teraflops_per_second"] > 0
        assert line["pairs_per_second"] > 0 and 0 <= line["data_wait_share"] <= 1


def test_the_log_tells_the_story(finished_run):
    text = (finished_run.workdir / "train.log").read_text()
    for said in (
        "80 pairs of 40 images: 64 to train on, 16 to validate",
        "M parameters trained",
        "compiled the training step for text ",
        "(packed)",
        "; per device ",
        "image features of 40 images come from ",
        "step 20/20  loss ",
        "step 15: val/",
        "custom/scale",
    ):
        assert said in text
    assert (len(list((finished_run.workdir / "tensorboard").iterdir()))) == 1


def test_the_last_line_says_what_to_do_next(finished_run):
    text = loop.describe_end(finished_run.state, "runs/b32/", 3725.0)
    assert text == (
        "done: 20 steps in 1:02:05; export with\n"
        "  python -m negclip_jax.interop.export --model=runs/b32/ --layout=huggingface "
        "--out=exported/b32"
    )


def test_evaluation_and_saving_in_any_unit(make_config, tmp_path, one_device, caplog):
    # 64 training pairs in batches of 16: 4 steps an epoch.
    changes = {
        "train.total": "3 epochs",
        "eval.every": "50 percent",
        "checkpoint.every": "64 examples",
        "checkpoint.keep": 100,
        "data.validation_fraction": 0.2,
    }
    with jax.log_compiles(True):
        train(make_config(changes), str(tmp_path))
    metrics = read_metrics(tmp_path)
    assert [s for s, numbers in metrics.items() if "val/loss" in numbers] == [0, 6, 12]
    assert set(checkpoint_steps(tmp_path)) >= {4, 8, 12}
    compiled = [r.getMessage() for r in caplog.records if "jit(train_step)" in r.getMessage()]
    assert len([m for m in compiled if m.startswith("Finished XLA compilation")]) == 1


def test_the_loop_moves_nothing_unasked(make_config, tmp_path, one_device, monkeypatch):
    """No hidden copies between host and device, and no compilation, from step to step."""

    def prepare_guarded(config, workdir):
        run = prepare(config, workdir)
        step = run.train_step

        def guarded(state, frozen, batch):
            with jax.transfer_guard("disallow"):
                return step(state, frozen, batch)

        run.train_step = guarded
        return run

    prepare = loop.prepare
    monkeypatch.setattr(loop, "prepare", prepare_guarded)
    train(make_config({"train.total": "10 steps", "data.validation_fraction": 0.0}), str(tmp_path))
    assert list(read_metrics(tmp_path)) == list(range(1, 11))


def test_the_device_is_read_at_the_end_of_a_log_window_only(
    make_config, tmp_path, one_device, monkeypatch
):
    """The guard sees no reads on a CPU, whose arrays the host may touch, so they are counted."""
    reads, started, allowed = [], [], []
    value, push, drain = ArrayImpl._value, loop.StepLog.push, loop.StepLog._drain

    def counted_value(array):
        if started and not allowed:
            reads.append(started[-1])
        return value.fget(array)

    def counted_push(log, step, metrics):
        started.append(step)
        push(log, step, metrics)

    def counted_drain(log):
        allowed.append(started[-1])
        drain(log)
        allowed.pop()
        windows.append(started[-1])

    windows = []
    monkeypatch.setattr(ArrayImpl, "_value", property(counted_value))
    monkeypatch.setattr(loop.StepLog, "push", counted_push)
    monkeypatch.setattr(loop.StepLog, "_drain", counted_drain)
    changes = {"train.total": "12 steps", "data.validation_fraction": 0.0, "log.every": "5 steps"}
    train(make_config(changes | {"checkpoint.every": "0 steps"}), str(tmp_path))
    assert [step for step in reads if step < 12] == []  # step 12 is saved
    assert windows[:2] == [6, 11]  # each one step late


@pytest.fixture
def diverges_at_7(monkeypatch):
    """The update of step 7 makes all parameters NaN."""

    def schedule(**settings):
        return lambda count: jnp.where(count == 6, jnp.nan, 1e-3)

    monkeypatch.setattr(optim, "learning_rate", schedule)


def test_a_diverged_run_stops_without_a_bad_checkpoint(
    make_config, tmp_path, one_device, diverges_at_7
):
    changes = {"checkpoint.every": "1 steps", "checkpoint.keep": 100, "log.every": "100 steps"}
    with pytest.raises(InputError) as error:
        train(make_config(changes), str(tmp_path))
    assert re.match(
        r"param_norm is nan at step 7 \(learning rate nan, logit scale nan\); stopped, the last "
        r"checkpoint is step 6\. Try a smaller optim\.lr, optim\.clip_norm=1\.0",
        str(error.value),
    )
    assert checkpoint_steps(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert max(read_metrics(tmp_path)) == 6


def test_a_loss_that_is_not_finite_stops_too(make_config, tmp_path, one_device, monkeypatch):
    poisoned = make_config({"checkpoint.every": "2 steps"})
    prepare = loop.prepare

    def prepare_poisoned(config, workdir):
        run = prepare(config, workdir)
        step = run.train_step

        def broken(state, frozen, batch):
            after, metrics = step(state, frozen, batch)
            if int(after.step) == 5:
                metrics["loss"] = jnp.float32(jnp.inf)
            return after, metrics

        run.train_step = broken
        return run

    monkeypatch.setattr(loop, "prepare", prepare_poisoned)
    with pytest.raises(InputError, match=r"loss is inf at step 5 .*the last checkpoint is step 4"):
        train(poisoned, str(tmp_path))
    assert max(checkpoint_steps(tmp_path)) == 4


def evaluator_that(act, at: int):
    """An evaluator that calls `act` at its n-th call and reports nothing."""
    calls = iter(range(1, 1000))

    def evaluate(params) -> dict:
        if next(calls) == at:
            act()
        return {}

    return lambda context: evaluate


def test_too_little_memory_is_one_line_with_the_ways_out(
    make_config, tmp_path, one_device, monkeypatch
):
    def out_of_memory(self, state, frozen, batch):
        return jnp.ones((2**23, 2**22)).block_until_ready(), {}  # 128 TiB

    monkeypatch.setattr(CompiledStep, "__call__", out_of_memory)
    with pytest.raises(InputError) as stopped:
        train(make_config(), str(tmp_path))
    message = str(stopped.value)
    assert "too little memory (RESOURCE_EXHAUSTED: Out of memory allocating" in message
    assert re.search(r"needs per device \d+\.\d MiB arguments and \d+\.\d MiB temporar", message)
    for way_out in ("train.microbatches=1", "model.remat=True", "train.batch_size=16"):
        assert way_out in message
    assert "\n" not in message


def test_a_step_that_does_not_fit_when_it_is_compiled_is_one_line_too(
    make_config, tmp_path, one_device, monkeypatch
):
    def too_big(self, state, frozen, batch):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 21.90G of 7.48G hbm. Exceeded hbm capacity by 14.42G.\n\nTotal"
        )

    monkeypatch.setattr(CompiledStep, "compiled_for", too_big)
    with pytest.raises(InputError) as stopped:
        train(make_config(), str(tmp_path))
    message = str(stopped.value)
    for part in ("Used 21.90G of 7.48G hbm", "train.microbatches=1", "model.remat=True"):
        assert part in message
    assert "\n" not in message and "train.batch_size=16" in message


def test_interrupted_saved_and_continued(finished_run, make_config, tmp_path, one_device):
    config, workdir = make_config(finished_run.changes), str(tmp_path / "run")
    interrupt = evaluator_that(lambda: os.kill(os.getpid(), signal.SIGINT), at=2)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted) as stopped:
        train(config, workdir, EVALUATORS | {"stop": interrupt})
    assert (stopped.value.step, stopped.value.signum) == (5, signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert checkpoint_steps(tmp_path / "run")[-1] == 5
    state = train(config, workdir, EVALUATORS)
    assert_equal(jax.device_get(state), finished_run.state)
    ours, theirs = (w / "metrics.jsonl" for w in (tmp_path / "run", finished_run.workdir))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.slow
def test_a_disk_that_fails_in_the_middle(finished_run, make_config, tmp_path, one_device):
    """No file may grow any more from step 10 on; mended, the run continues as if nothing was."""
    often = {"checkpoint.every": "4 steps"}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))

    config, workdir = make_config(finished_run.changes | often), str(tmp_path / "run")
    try:
        with pytest.raises(InputError, match=r"cannot .* the same command again to continue"):
            train(config, workdir, EVALUATORS | {"fill": evaluator_that(fill, at=3)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert 5 <= checkpoint_steps(tmp_path / "run")[-1] < 10
    state = train(config, workdir, EVALUATORS)
    assert_equal(jax.device_get(state), finished_run.state)
    ours, theirs = (w / "metrics.jsonl" for w in (tmp_path / "run", finished_run.workdir))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("cached", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_photo_that_cannot_be_read_is_named_once_and_replaced(
    make_config, tiny_pairs, tmp_path, one_device, caplog, cached
):
    import shutil

    shutil.copytree(tiny_pairs, tmp_path / "pairs")
    content = json.loads((tiny_pairs / "pairs.json").read_text())
    broken = content["images"][3]["file_name"]
    photo = tmp_path / "pairs" / "images" / broken
    photo.write_bytes(photo.read_bytes()[:200])
    changes = {
        "data.pairs": str(tmp_path / "pairs" / "pairs.json"),
        "data.images": str(tmp_path / "pairs" / "images"),
        "train.total": "8 steps",  # two epochs: the photo is met twice
        "data.max_bad_images": 0.05,
        "data.cache_features": cached,
    }
    caplog.set_level(logging.WARNING)
    train(make_config(changes), str(tmp_path / "run"))
    named = [r.getMessage() for r in caplog.records if broken in r.getMessage()]
    assert len(named) == 1 and "damaged or cut short" in named[0]
    with pytest.raises(InputError, match=rf"images could not be read, more than .*{broken}"):
        train(make_config(changes | {"data.max_bad_images": 0.0}), str(tmp_path / "other"))


def test_no_validation_and_no_evaluators(make_config, tmp_path, one_device):
    changes = {"data.validation_fraction": 0.0, "train.total": "2 steps", "eval.every": "0 steps"}
    train(make_config(changes), str(tmp_path))
    assert all("/" not in name for line in read_metrics(tmp_path).values() for name in line)
    assert np.isfinite(read_metrics(tmp_path)[2]["loss"])
