"""Which checkpoints are kept, what can be read back, and what a bad disk does."""

import contextlib
import errno
import gc
import logging
import resource
import shutil
import subprocess
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from tiny_runs import assert_equal, checkpoint_steps, read_metrics

from negclip_jax.checkpoints import manager
from negclip_jax.checkpoints.manager import Checkpoints
from negclip_jax.checkpoints.restore import restore_params, save_frozen
from negclip_jax.common.errors import InputError
from negclip_jax.training import patterns
from negclip_jax.training.step import TrainState

TX = optax.adam(1e-3)


def make_state(step: int, *, ema: bool = True) -> TrainState:
    """A small state whose every number tells the step."""
    params = {"w": jnp.full((50, 100), step, jnp.float32), "b": jnp.arange(3.0) + step}
    state = TrainState.create(params, TX, ema=ema)
    average = jax.tree.map(lambda x: x / 2, params) if ema else None
    return TrainState(jnp.int32(step), params, state.opt_state, average)


def abstract(state: TrainState) -> TrainState:
    return manager.abstract_of(state, jax.tree.map(lambda x: x.sharding, state))


@pytest.fixture
def opened(tmp_path):
    checkpoints = Checkpoints(epath.Path(tmp_path), keep=1, best="val/loss")
    yield checkpoints
    checkpoints.close()


def test_only_best_and_last_are_kept(opened, tmp_path):
    assert opened.latest_step is None and opened.best_value() == float("inf")
    for step, loss in [(1, 3.0), (2, 1.0), (3, None), (4, 2.0), (5, None)]:
        metrics = {} if loss is None else {"val/loss": loss, "val/accuracy": 0.5}
        opened.save(step, make_state(step), metrics)
    opened.wait()
    assert checkpoint_steps(tmp_path) == [2, 5]
    assert opened.latest_step == 5 and opened.best_value() == 1.0


def test_the_best_is_known_after_a_restart(opened, tmp_path):
    opened.save(1, make_state(1), {"val/loss": 1.0})
    opened.save(2, make_state(2), {"val/loss": 2.0})
    opened.close()
    again = Checkpoints(epath.Path(tmp_path), keep=1, best="val/loss")
    assert again.best_value() == 1.0
    again.save(3, make_state(3), {"val/loss": 3.0})
    again.save(4, make_state(4), {})
    again.close()
    assert checkpoint_steps(tmp_path) == [1, 4]
    params, step = restore_params(str(tmp_path), "best")
    assert step == 1 and params["w"][0, 0] == 1


def test_more_recent_ones_on_request(tmp_path):
    checkpoints = Checkpoints(epath.Path(tmp_path), keep=3, best="val/loss")
    for step in range(1, 7):
        checkpoints.save(step, make_state(step), {"val/loss": float(step)})
    checkpoints.wait()
    checkpoints.close()
    assert checkpoint_steps(tmp_path) == [1, 4, 5, 6]


@pytest.mark.parametrize("how_far", ["not begun", "half"])
def test_a_deletion_that_a_kill_cut_short_is_ended(tmp_path, how_far):
    """After the last save of a run nothing else would delete what it replaced."""
    checkpoints = Checkpoints(epath.Path(tmp_path), keep=1, best="val/loss")
    directory = tmp_path / "checkpoints"
    for step, loss in [(1, 2.0), (2, 1.0), (3, 3.0)]:
        checkpoints.save(step, make_state(step), {"val/loss": loss})
        checkpoints.wait()
        shutil.copytree(directory / str(step), tmp_path / "copies" / str(step))
    checkpoints.close()
    shutil.move(tmp_path / "copies" / "1", directory)
    if how_far == "half":
        (directory / "1" / "metrics" / "metrics").unlink()
        shutil.rmtree(directory / "1" / "params")
    assert checkpoint_steps(tmp_path) == [1, 2, 3]
    again = Checkpoints(epath.Path(tmp_path), keep=1, best="val/loss")
    assert again.best_value() == 1.0
    again.remove_superseded()
    again.close()
    assert checkpoint_steps(tmp_path) == [2, 3]


def test_a_step_that_is_saved_again_has_the_later_metrics(opened, tmp_path):
    """A run that is asked to stop saves before it evaluates; continued, it evaluates first."""
    opened.save(1, make_state(1), {})
    opened.save(1, make_state(1), {"val/loss": 2.0})
    opened.wait()
    assert checkpoint_steps(tmp_path) == [1] and opened.best_value() == 2.0
    assert_equal(opened.restore(1, abstract(make_state(1))), make_state(1))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]


def test_killed_while_a_step_is_saved_again(opened, tmp_path):
    """The only checkpoint must not be lost meanwhile."""
    opened.save(1, make_state(1), {})
    opened.wait()
    opened._make_way(1)  # and now the kill
    assert checkpoint_steps(tmp_path) == []
    again = Checkpoints(epath.Path(tmp_path), keep=1, best="val/loss")
    assert again.latest_step == 1
    assert_equal(again.restore(1, abstract(make_state(1))), make_state(1))
    again.close()


@pytest.mark.slow
def test_saving_leaks_nothing(opened):
    """Not by a byte count, which allocators blur: objects of Python are counted."""

    def lists() -> int:
        gc.collect()
        return sum(type(x) is list for x in gc.get_objects())

    for step in range(1, 12):
        opened.save(step, make_state(step), {"val/loss": 1.0})
        opened.wait()
        if step == 3:
            before = lists()
    assert lists() - before < 16, "tensorstore's answers are 70 lists a save"


def test_reading_a_run_prints_nothing(opened, tmp_path, caplog):
    opened.save(1, make_state(1), {})
    opened.wait()
    caplog.clear()
    restore_params(str(tmp_path), "last")
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("ema", [True, False])
def test_a_state_comes_back_bit_by_bit(tmp_path, ema):
    state = make_state(7, ema=ema)
    checkpoints = Checkpoints(epath.Path(tmp_path), keep=1, best="val/loss")
    checkpoints.save(7, state, {})
    checkpoints.close()
    again = Checkpoints(epath.Path(tmp_path), keep=1, best="val/loss")
    assert_equal(again.restore(7, abstract(state)), state)
    again.close()


def test_another_model_does_not_fit(opened):
    opened.save(1, make_state(1), {})
    opened.wait()
    other = make_state(1)
    other.params["v"] = other.params.pop("w")
    with pytest.raises(InputError, match="checkpoints/1 does not fit this run"):
        opened.restore(1, abstract(other))


@contextlib.contextmanager
def largest_file(size: int):
    """Lets no file of this process grow beyond `size` bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def running_threads() -> set[threading.Thread]:
    """Without those of asyncio, which wait for work."""
    return {t for t in threading.enumerate() if not t.name.startswith("asyncio")}


def random_state(step: int) -> TrainState:
    """Like `make_state`, but numbers that do not compress."""
    state = make_state(step)
    rng = np.random.default_rng(step)
    noise = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), state.params)
    return TrainState(state.step, noise, state.opt_state, noise)


def test_a_disk_that_fails_while_saving(opened, tmp_path):
    good = random_state(1)
    opened.save(1, good, {"val/loss": 1.0})
    opened.wait()
    message = r"checkpoints: .*; the checkpoint of step 1 is intact\. Mend the disk and run the"
    before = running_threads()
    with largest_file(8_000), pytest.raises(InputError, match=message):
        opened.save(2, random_state(2), {"val/loss": 0.5})
        opened.wait()
    opened.close()
    assert running_threads() <= before, "whoever still writes would disturb the next one"
    # The same directory, after the disk was mended: nothing is lost and saving goes on.
    again = Checkpoints(epath.Path(tmp_path), keep=1, best="val/loss")
    assert again.latest_step == 1
    assert_equal(again.restore(1, abstract(good)), good)
    again.save(2, random_state(2), {"val/loss": 0.5})
    again.close()
    assert checkpoint_steps(tmp_path) == [2]


def test_a_disk_without_space_is_noticed_before_writing(opened, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=2**20 + 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    message = r"cannot save step 3 to .*No space left on device \(1\.1 MiB to write, 1\.0 MiB free"
    with pytest.raises(InputError, match=message + r"\); there is no earlier checkpoint"):
        opened.save(3, make_state(3), {})
    with pytest.raises(InputError, match=r"cannot write .*/frozen: .*No space left"):
        save_frozen(epath.Path("/tmp"), make_state(3).params)


def test_what_orbax_says_of_the_disk_is_passed_on(opened, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("save failed") from OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(opened._manager, "save", fail)
    with pytest.raises(InputError, match=r"cannot save step 3 to .*OSError: .*Read-only file syst"):
        opened.save(3, make_state(3), {})


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 4 MB; mounting one takes root."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small file system is not permitted here")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.mark.slow
def test_a_real_full_disk(small_disk):
    checkpoints = Checkpoints(epath.Path(small_disk), keep=100, best="val/loss")
    with pytest.raises(InputError, match=r"No space left on device .*is intact") as error:
        for step in range(1, 100):
            checkpoints.save(step, random_state(step), {})
    checkpoints.close()
    last = checkpoint_steps(small_disk)[-1]
    assert last > 5 and f"the checkpoint of step {last} is intact" in str(error.value)
    again = Checkpoints(epath.Path(small_disk), keep=100, best="val/loss")
    assert_equal(again.restore(last, abstract(random_state(last))), random_state(last))
    again.close()


def test_a_run_keeps_its_best_and_its_last(finished_run):
    losses = {
        step: metrics["val/loss"]
        for step, metrics in read_metrics(finished_run.workdir).items()
        if "val/loss" in metrics and step
    }
    best = min(losses, key=losses.get)
    assert best != 20, "the test needs a run whose best is not its last"
    assert checkpoint_steps(finished_run.workdir) == [best, 20]
    assert restore_params(str(finished_run.workdir), "best")[1] == best


def test_params_of_a_run_by_step_and_average(finished_run, tiny_checkpoint):
    from negclip_jax.interop import huggingface

    workdir, state = str(finished_run.workdir), finished_run.state
    start = huggingface.load_params(tiny_checkpoint, huggingface.read_config(tiny_checkpoint))
    for choice in ("last", 20, "20"):
        params, step = restore_params(workdir, choice)
        assert step == 20
        expected = patterns.merge(start, state.params)
        assert_equal(params, expected)
        assert all(type(x) is np.ndarray for x in jax.tree.leaves(params))
    average, _ = restore_params(workdir, "last", ema=True)
    assert_equal(average, patterns.merge(start, state.ema))
    assert np.abs(average["text_projection"] - params["text_projection"]).max() > 0
    best, _ = restore_params(workdir, "best")
    assert np.abs(best["text_projection"] - params["text_projection"]).max() > 0
    assert_equal(best["vision"], start["vision"])


def test_what_a_run_does_not_have(finished_run, tmp_path):
    workdir = str(finished_run.workdir)
    with pytest.raises(InputError, match=r"no checkpoint of step 3; there are: \d+, 20"):
        restore_params(workdir, 3)
    with pytest.raises(InputError, match="no checkpoint of step newest; there are"):
        restore_params(workdir, "newest")
    with pytest.raises(InputError, match=r"has no checkpoints/: it is not the --workdir of a run"):
        restore_params(str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match="checkpoints holds no complete checkpoint"):
        restore_params(str(tmp_path))


def test_no_average_without_its_setting(tmp_path):
    checkpoints = Checkpoints(epath.Path(tmp_path), keep=1, best="val/loss")
    checkpoints.save(4, make_state(4, ema=False), {})
    checkpoints.close()
    params, step = restore_params(str(tmp_path), "best")  # nothing was evaluated: the last
    assert step == 4
    assert_equal(params, jax.device_get(make_state(4).params))
    with pytest.raises(InputError, match=r"step 4 .* holds no moving average \(train\.ema_decay\)"):
        restore_params(str(tmp_path), "last", ema=True)
