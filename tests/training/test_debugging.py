"""What finds the fault of a run: one batch again and again, and the operation behind a NaN."""

import json
import logging
import re

import jax
import pytest
from tiny_runs import EVALUATORS, assert_equal, checkpoint_steps, read_metrics

from negclip_jax.common.errors import InputError
from negclip_jax.training.loop import train

OVERFIT = {
    "train.overfit_batch": True,
    "train.total": "120 steps",
    "train.logit_scale_max": 4.6052,
    "optim.lr": 1e-2,
    "eval.every": "60 steps",
    "checkpoint.every": "60 steps",
}


@pytest.fixture(scope="module")
def one_caption_each(tiny_pairs, tmp_path_factory) -> dict:
    """Pairs of which none shares its image with another: their loss can become zero."""
    file = tmp_path_factory.mktemp("distinct") / "pairs.jsonl"
    records = [
        {"image": f"{i:03d}.png", "caption": f"thing {i}", "negated": f"{i} no {i % 7}"}
        for i in range(40)
    ]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return {"data.pairs": str(file)}


@pytest.mark.slow
def test_one_batch_is_learnt_by_heart(make_config, one_caption_each, tmp_path, one_device, caplog):
    caplog.set_level(logging.INFO)
    config = make_config(OVERFIT | one_caption_each)
    state = train(config, str(tmp_path / "run"))
    metrics = read_metrics(tmp_path / "run")
    assert metrics[1]["loss"] > 2 and metrics[120]["loss"] < 0.05
    assert metrics[120]["text_to_image_accuracy"] == 1
    assert metrics[120]["val/loss"] > 2  # of other images, as in any run
    assert "every step trains on the same 16 examples of 16 images\n" in caplog.text

    changed = OVERFIT | one_caption_each | {"train.overfit_batch": False}
    with pytest.raises(InputError, match=r"train\.overfit_batch: True -> False"):
        train(make_config(changed), str(tmp_path / "run"))
    half = OVERFIT | one_caption_each | {"train.total": "60 steps"}
    train(make_config(half), str(tmp_path / "other"))
    continued = train(config, str(tmp_path / "other"))
    assert_equal(jax.device_get(continued), jax.device_get(state))
    ours, theirs = (tmp_path / name / "metrics.jsonl" for name in ("other", "run"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_captions_of_one_image_are_said_to_hold_the_loss_up(
    make_config, tmp_path, one_device, caplog
):
    caplog.set_level(logging.INFO)
    changes = {"train.overfit_batch": True, "train.total": "1 steps", "eval.every": "0 steps"}
    train(make_config(changes), str(tmp_path))
    assert re.search(r"same 16 examples of 1\d images; captions of one image cannot", caplog.text)


# The learning rate blows the scale up: its exponential overflows within a few steps. Each operation
# of the step is compiled alone to find it, so there is no gradient through the text tower.
DIVERGES = {"optim.lr": 200.0, "checkpoint.every": "1 steps", "eval.every": "0 steps"}
DIVERGES |= {"optim.freeze": ("vision/.*", "visual_projection", "text/.*")}


@pytest.mark.slow
def test_the_operation_behind_a_nan_is_named_with_its_line(make_config, tmp_path, one_device):
    with pytest.raises(InputError) as stopped:
        train(make_config(DIVERGES | {"runtime.debug_nans": True}), str(tmp_path))
    message = str(stopped.value)
    match = re.fullmatch(
        r"step (\d): \w+ is (nan|-?inf); its cause is \w+ of float32\[.*\] \(.* to .*\)"
        r" at negclip_jax/\w+/\w+\.py:\d+ in [\w.<>]+(, backward pass)?; "
        r"stopped, the last checkpoint is step (\d)",
        message,
    )
    assert match, message
    assert int(match[1]) - 1 == int(match[4]) == max(read_metrics(tmp_path))
    assert int(match[4]) in checkpoint_steps(tmp_path)


def test_without_it_the_message_says_how_to_find_out(make_config, tmp_path, one_device):
    with pytest.raises(InputError, match=r"at step \d .*--config\.runtime\.debug_nans=True names"):
        train(make_config(DIVERGES), str(tmp_path))


@pytest.mark.slow
def test_looking_for_nans_changes_no_number(finished_run, make_config, tmp_path, one_device):
    changes = finished_run.changes | {"runtime.debug_nans": True}
    state = train(make_config(changes), str(tmp_path), EVALUATORS)
    assert_equal(jax.device_get(state), finished_run.state)
    ours, theirs = (w / "metrics.jsonl" for w in (tmp_path, finished_run.workdir))
    assert ours.read_bytes() == theirs.read_bytes()
