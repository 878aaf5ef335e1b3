"""Stopped and continued equals uninterrupted, to the bit; onto another mesh, to 1e-6."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from processes import train_and_be_killed
from tiny_runs import EVALUATORS, assert_equal, checkpoint_steps, read_metrics, use_one_device

from negclip_jax.checkpoints.restore import restore_params
from negclip_jax.common.errors import InputError
from negclip_jax.training.config import ADDED_KEYS
from negclip_jax.training.loop import train


@pytest.fixture(scope="module")
def stopped_at_12(finished_run, make_config, tiny_checkpoint, tmp_path_factory) -> dict:
    """The run of `finished_run`, ended at step 12; its base checkpoint is deleted afterwards.

    12 is no step at which the longer run evaluates.
    """
    path = tmp_path_factory.mktemp("stopped")
    shutil.copytree(tiny_checkpoint, path / "base")
    changes = finished_run.changes | {"model.checkpoint": str(path / "base")}
    with pytest.MonkeyPatch.context() as patch:
        use_one_device(patch)
        config = make_config(changes | {"train.total": "12 steps"})
        train(config, str(path / "run"), EVALUATORS)
    shutil.rmtree(path / "base")
    return {"workdir": path / "run", "changes": changes}


def continued(stopped, tmp_path) -> Path:
    return Path(shutil.copytree(stopped["workdir"], tmp_path / "run"))


def test_with_other_workers_and_without_the_base_checkpoint(
    finished_run, stopped_at_12, make_config, tmp_path, one_device
):
    workdir = continued(stopped_at_12, tmp_path)
    assert "val/loss" in read_metrics(workdir)[12]
    config = make_config(stopped_at_12["changes"] | {"data.workers": 2})
    state = train(config, str(workdir), EVALUATORS)
    assert_equal(jax.device_get(state), finished_run.state)
    ours, theirs = (w / "metrics.jsonl" for w in (workdir, finished_run.workdir))
    assert ours.read_bytes() == theirs.read_bytes()
    reference = str(finished_run.workdir)
    for step in ("last", "best"):
        assert_equal(restore_params(str(workdir), step), restore_params(reference, step))


def test_a_run_that_is_older_than_many_keys(
    finished_run, stopped_at_12, make_config, tmp_path, one_device
):
    """Its `config.json` has none of them, its directory no prepared examples: it goes on."""
    workdir = continued(stopped_at_12, tmp_path)
    content = json.loads((workdir / "config.json").read_text())
    for key in ADDED_KEYS:
        section, name = key.split(".")
        del content[section][name]
    assert not {"sources", "fields", "examples_dir"} & content["data"].keys()
    (workdir / "config.json").write_text(json.dumps(content))
    shutil.rmtree(workdir / "examples")
    # Of what came later, those that change numbers are set to what such a run did.
    as_then = {"data.truncated": "keep"}
    state = train(make_config(stopped_at_12["changes"] | as_then), str(workdir), EVALUATORS)
    assert_equal(jax.device_get(state), finished_run.state)
    ours, theirs = (w / "metrics.jsonl" for w in (workdir, finished_run.workdir))
    assert ours.read_bytes() == theirs.read_bytes()
    with pytest.raises(InputError, match=r"data\.original_fraction: "):
        changed = stopped_at_12["changes"] | as_then | {"data.original_fraction": 0.3}
        train(make_config(changed | {"train.total": "22 steps"}), str(workdir), EVALUATORS)


@pytest.mark.slow
def test_onto_another_mesh(finished_run, stopped_at_12, make_config, tmp_path):
    workdir = continued(stopped_at_12, tmp_path)
    mesh = {"mesh.data": 4, "mesh.fsdp": 2, "mesh.min_shard_size": 64}
    state = train(make_config(stopped_at_12["changes"] | mesh), str(workdir), EVALUATORS)
    assert len(state.params["text"]["token_embedding"].sharding.device_set) == 8
    ours, theirs = read_metrics(workdir), read_metrics(finished_run.workdir)
    assert ours.keys() == theirs.keys()
    for step in range(13, 21):
        np.testing.assert_allclose(ours[step]["loss"], theirs[step]["loss"], rtol=1e-6)
    np.testing.assert_allclose(ours[20]["val/loss"], theirs[20]["val/loss"], rtol=1e-6)


def test_killed_and_started_again(
    finished_run, short_run, make_config, forked, tmp_path, one_device
):
    workdir, changes = tmp_path / "run", short_run | finished_run.changes
    train_and_be_killed(forked, changes, tmp_path / "changes.json", workdir, 4)
    assert 0 < checkpoint_steps(workdir)[-1] < 15
    assert max(read_metrics(workdir)) < 15  # the fourth evaluation is at step 15
    state = train(make_config(finished_run.changes), str(workdir), EVALUATORS)
    assert_equal(jax.device_get(state), finished_run.state)
    ours, theirs = (w / "metrics.jsonl" for w in (workdir, finished_run.workdir))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_finished_run_has_nothing_to_do(finished_run, make_config, tmp_path, one_device):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run.workdir, workdir)
    before = (workdir / "metrics.jsonl").read_bytes()
    state = train(make_config(finished_run.changes), str(workdir), EVALUATORS)
    assert_equal(jax.device_get(state), finished_run.state)
    assert (workdir / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "changed",
    [
        {"optim.lr": 2e-3},
        {"seed": 1},
        {"train.batch_size": 32},
        {"data.crop": "transformers"},
        {"train.ema_decay": 0.5},
        {"optim.freeze": ("vision/.*",)},
        {"data.validation_fraction": 0.3},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_change_of_the_result_is_refused(
    stopped_at_12, make_config, tmp_path, one_device, changed
):
    workdir = continued(stopped_at_12, tmp_path)
    before = (workdir / "config.json").read_bytes()
    key = next(iter(changed))
    with pytest.raises(InputError) as error:
        train(make_config(stopped_at_12["changes"] | changed), str(workdir), EVALUATORS)
    message = str(error.value)
    assert f"{workdir} was started differently" in message and f"{key}: " in message
    assert "--config.runtime.allow_config_change=True" in message
    assert (workdir / "config.json").read_bytes() == before


def test_other_pairs_are_refused(stopped_at_12, make_config, tiny_pairs, tmp_path, one_device):
    workdir = continued(stopped_at_12, tmp_path)
    content = json.loads((tiny_pairs / "pairs.json").read_text())
    for annotation in content["annotations"][:10]:
        annotation["updated_caption"] += "!"
    (tmp_path / "edited.json").write_text(json.dumps(content))
    config = make_config(stopped_at_12["changes"] | {"data.pairs": str(tmp_path / "edited.json")})
    with pytest.raises(InputError, match="was started differently: data_fingerprint: "):
        train(config, str(workdir), EVALUATORS)


def test_changed_files_of_the_base_are_refused(stopped_at_12, make_config, tmp_path, one_device):
    workdir = continued(stopped_at_12, tmp_path)
    path = workdir / "base" / "preprocessor_config.json"
    path.write_text(path.read_text().replace("0.4", "0.5"))
    (workdir / "base" / "README.md").write_text("new")
    with pytest.raises(InputError, match="was started differently") as error:
        train(make_config(stopped_at_12["changes"]), str(workdir), EVALUATORS)
    assert "base_files.preprocessor_config.json: '" in str(error.value)
    assert "base_files.README.md: None -> " in str(error.value)


def test_a_digit_that_changed_in_the_metrics_is_noticed(
    stopped_at_12, make_config, tmp_path, one_device, caplog
):
    config = make_config(stopped_at_12["changes"] | {"train.total": "12 steps"})  # nothing to do
    train(config, str(continued(stopped_at_12, tmp_path / "sound")), EVALUATORS)
    assert "was changed" not in caplog.text
    workdir = continued(stopped_at_12, tmp_path)
    path = workdir / "metrics.jsonl"
    text = path.read_text()
    digit = text.index('"loss": ') + len('"loss": 0.0')
    path.write_text(f"{text[:digit]}{9 - int(text[digit])}{text[digit + 1 :]}")
    train(config, str(workdir), EVALUATORS)
    assert f"{path} was changed since step 12 was saved" in caplog.text


def test_allowed_changes_are_logged_and_made(
    stopped_at_12, make_config, tmp_path, one_device, caplog
):
    workdir = continued(stopped_at_12, tmp_path)
    changes = stopped_at_12["changes"] | {"train.total": "12 steps", "log.every": "2 steps"}
    train(make_config(changes), str(workdir), EVALUATORS)
    assert "log.every: '5 steps' -> '2 steps'" in caplog.text
    forced = {"seed": 5, "runtime.allow_config_change": True}
    train(make_config(changes | forced), str(workdir), EVALUATORS)
    assert "seed: 4 -> 5" in caplog.text
    recorded = json.loads((workdir / "config.json").read_text())
    assert (recorded["seed"], recorded["log"]["every"]) == (5, "2 steps")


@pytest.mark.slow
def test_restart_before_the_first_checkpoint_starts_over(
    finished_run, make_config, tmp_path, one_device, tiny_checkpoint
):
    """What an attempt without a checkpoint left behind must not leak into the next one."""
    workdir = tmp_path / "run"
    changes = {"train.total": "2 steps", "optim.lr": float("inf")}
    with pytest.raises(InputError, match=r"at step 1 .*no checkpoint was saved"):
        train(make_config(changes), str(workdir))
    assert list(read_metrics(workdir)) == [0]
    # Other weights, now with the first block of the text tower frozen as well.
    from flax import nnx

    from negclip_jax.interop import huggingface
    from negclip_jax.models import clip

    config = huggingface.read_config(tiny_checkpoint)
    _, params = clip.split(clip.CLIP(config, rngs=nnx.Rngs(7)))
    huggingface.save(tmp_path / "other", config, params, base=tiny_checkpoint)
    other = {"train.total": "2 steps", "model.checkpoint": str(tmp_path / "other")}
    train(make_config(finished_run.changes | other), str(workdir))
    assert list(read_metrics(workdir)) == [0, 1, 2]
    restored, _ = restore_params(str(workdir), "last")
    ours, theirs = (
        jax.tree.map(lambda x: np.asarray(x[0]), tree["text"]["blocks"])
        for tree in (restored, params)
    )
    assert_equal(ours, theirs)
    assert_equal(restored["vision"], jax.device_get(params["vision"]))
