"""Checksums of a checkpoint's files, and checkpoints that are not what was saved."""

import errno
import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from tiny_runs import assert_equal, checkpoint_steps

from negclip_jax.checkpoints import manager, manifest
from negclip_jax.checkpoints.manager import Checkpoints
from negclip_jax.checkpoints.restore import restore_frozen, restore_params, save_frozen
from negclip_jax.common.errors import InputError
from negclip_jax.training.step import TrainState

TX = optax.adam(1e-3)


def make_state(step: int) -> TrainState:
    """Numbers that do not compress and tell the step."""
    rng = np.random.default_rng(step)
    params = {"w": jnp.asarray(rng.normal(size=(50, 100)), jnp.float32), "b": jnp.zeros(3) + step}
    state = TrainState.create(params, TX, ema=False)
    return TrainState(jnp.int32(step), params, state.opt_state, None)


def abstract(state: TrainState) -> TrainState:
    return manager.abstract_of(state, jax.tree.map(lambda x: x.sharding, state))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with steps 1 and 2 and frozen parameters: copy it, do not write."""
    path = tmp_path_factory.mktemp("saved") / "run"
    path.mkdir()
    checkpoints = Checkpoints(epath.Path(path), keep=5, best="val/loss")
    for step in (1, 2):
        checkpoints.save(step, make_state(step), {"val/loss": float(step)})
    checkpoints.wait()
    checkpoints.close()
    save_frozen(epath.Path(path), make_state(3).params)
    return path


@pytest.fixture
def workdir(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def largest(directory):
    """The file of a checkpoint that holds the numbers."""
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def opened(workdir) -> Checkpoints:
    return Checkpoints(epath.Path(workdir), keep=5, best="val/loss")


def test_every_file_of_a_committed_step_is_listed(workdir):
    step = workdir / "checkpoints" / "2"
    listed = json.loads((step / "manifest.json").read_text())
    files = {str(p.relative_to(step)) for p in step.rglob("*") if p.is_file()}
    unlisted = files - listed["files"].keys()
    assert listed["format"] == manifest.FORMAT and listed["files"].keys() <= files
    assert {name.rpartition("/")[2] for name in unlisted} <= {
        "manifest.json",
        "_CHECKPOINT_METADATA",
        "commit_success.txt",
    }
    manifest.check(epath.Path(step))
    assert any(name.startswith("opt_state/") for name in listed["files"])


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (flip_bit, "is damaged: its checksum is another"),
        (cut, r"has [\d,]+ of [\d,]+ bytes: it was cut short"),
        (lambda path: path.unlink(), "is missing"),
    ],
)
def test_the_step_before_is_taken_and_the_file_named(workdir, caplog, harm, problem):
    file = largest(workdir / "checkpoints" / "2")
    harm(file)
    checkpoints = opened(workdir)
    checkpoints.skip_damaged()
    assert checkpoints.latest_step == 1
    assert_equal(checkpoints.restore(1, abstract(make_state(1))), make_state(1))
    assert f"the checkpoint of step 2 is skipped: {file} " in caplog.text
    assert f"it was moved to {workdir / 'damaged'}" in caplog.text
    caplog.clear()
    checkpoints.save(2, make_state(2), {})  # the number is free again
    checkpoints.close()
    assert checkpoint_steps(workdir) == [1, 2]
    manifest.check(epath.Path(workdir / "checkpoints" / "2"))
    assert len(list((workdir / "damaged").iterdir())) == 1
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_list_that_is_damaged_or_missing_is_a_damaged_checkpoint(workdir, caplog):
    path = workdir / "checkpoints" / "2" / "manifest.json"
    cut(path)
    with pytest.raises(manifest.DamagedError, match=r"2/manifest\.json is damaged: "):
        manifest.check(epath.Path(path.parent))
    path.unlink()
    checkpoints = opened(workdir)
    checkpoints.skip_damaged()
    checkpoints.close()
    assert checkpoints.latest_step == 1 and f"{path} is missing" in caplog.text


def test_damaged_metrics_are_no_metrics(workdir, caplog):
    """Orbax reads those of all steps at once: a flipped digit would choose another best."""
    for step, harm in ((1, flip_bit), (2, cut)):
        run = shutil.copytree(workdir, workdir.with_name(f"run{step}"))
        file = run / "checkpoints" / str(step) / "metrics" / "metrics"
        harm(file)
        with pytest.raises(InputError, match=f"step {step} cannot be used: {file} .*: {3 - step}$"):
            restore_params(str(run), "best")
        assert restore_params(str(run), "last")[1] == 2
        checkpoints = opened(run)
        checkpoints.skip_damaged()
        assert checkpoints.latest_step == 3 - step and checkpoints.best_value() == 3.0 - step
        checkpoints.close()
        assert f"the checkpoint of step {step} is skipped: {file} " in caplog.text
        assert [p.name for p in (run / "damaged").iterdir()] == [f"{step}-0"]


def test_damaged_metrics_of_all_steps_start_nothing_over(workdir):
    for step in (1, 2):
        cut(workdir / "checkpoints" / str(step) / "metrics" / "metrics")
    message = r"no checkpoint in .* can be used: .*1/metrics.*2/metrics"
    with pytest.raises(InputError, match=message):
        opened(workdir)
    assert checkpoint_steps(workdir) == [1, 2], "nothing was moved"


@pytest.mark.parametrize("content", ['{"val/loss": "low"}', "[1]", '{"val/loss": [1]}', "{" * 9000])
def test_metrics_of_a_stranger_are_numbers(workdir, content):
    """Whoever makes up a run can make up its checksums too."""
    step = epath.Path(workdir / "checkpoints" / "2")
    (step / "metrics" / "metrics").write_text(content)
    manifest.write(step)
    with pytest.raises(InputError, match="checkpoints/2/metrics/metrics holds no metrics: "):
        restore_params(str(workdir), "best")


def test_without_an_intact_one_nothing_is_guessed(workdir):
    files = [largest(workdir / "checkpoints" / str(step)) for step in (1, 2)]
    for file in files:
        flip_bit(file)
    checkpoints = opened(workdir)
    with pytest.raises(InputError, match=r"no checkpoint in .* can be used: ") as error:
        checkpoints.skip_damaged()
    checkpoints.close()
    assert all(str(file) in str(error.value) for file in files)
    assert "start over in another --workdir" in str(error.value)
    assert checkpoint_steps(workdir) == [1, 2], "nothing was moved"


def test_another_format_is_refused_with_both_numbers(workdir):
    path = workdir / "checkpoints" / "2" / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"format": 7}))
    checkpoints = opened(workdir)
    message = r"checkpoints/2 is a checkpoint of format 7, and this .* reads format 1: continue"
    with pytest.raises(InputError, match=message):
        checkpoints.skip_damaged()
    checkpoints.close()
    with pytest.raises(InputError, match=message):
        restore_params(str(workdir), "last")
    assert checkpoint_steps(workdir) == [1, 2]


def test_an_export_reads_no_other_step_than_it_was_asked_for(workdir):
    step = workdir / "checkpoints" / "2"
    flip_bit(largest(step / "opt_state"))
    assert restore_params(str(workdir), "last")[1] == 2, "an optimizer is not exported"
    file = largest(step / "params")
    flip_bit(file)
    message = f"step 2 cannot be used: {file} is damaged.* Other steps of this run: 1"
    with pytest.raises(InputError, match=message):
        restore_params(str(workdir), "last")
    assert restore_params(str(workdir), "best")[1] == 1


def test_frozen_parameters_come_back_or_are_refused(workdir):
    params = make_state(3).params
    places = jax.tree.map(lambda x: x.sharding, params)
    shapes = manager.abstract_of(params, places)
    assert_equal(restore_frozen(epath.Path(workdir), shapes), params)
    assert restore_frozen(epath.Path(workdir), {}) == {}
    other = {"other": shapes["w"]}
    with pytest.raises(InputError, match="frozen does not fit this run: "):
        restore_frozen(epath.Path(workdir), other)
    file = largest(workdir / "frozen")
    flip_bit(file)
    message = f"{file} is damaged: .* bring .*/frozen back from a copy, or start over"
    with pytest.raises(InputError, match=message):
        restore_frozen(epath.Path(workdir), shapes)
    with pytest.raises(InputError, match=message):
        restore_params(str(workdir), "last")


def test_a_disk_that_cannot_be_read_is_no_other_model(workdir, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(errno.EIO, "Input/output error")

    checkpoints = opened(workdir)
    monkeypatch.setattr(checkpoints._manager, "restore", fail)
    with pytest.raises(InputError, match=r"checkpoints/2 cannot be read: .*Input/output error"):
        checkpoints.restore(2, abstract(make_state(2)))
    checkpoints.close()


def test_a_directory_that_vanishes_is_not_called_intact(workdir):
    checkpoints = opened(workdir)
    shutil.rmtree(workdir)
    message = r"cannot .* to .*; it has vanished, with the checkpoint of step 2\. Bring the dir"
    with pytest.raises(InputError, match=message):
        checkpoints.save(3, make_state(3), {})
    checkpoints.close()
    assert not workdir.exists(), "a run must not go on in a directory that lacks what it needs"
