"""Values that make no sense, durations in steps, and which run may be resumed as which."""

import contextlib
import json
import math

import pytest
from etils import epath
from flax.traverse_util import flatten_dict

from configs import common
from negclip_jax.common import renamed_keys
from negclip_jax.common.errors import InputError
from negclip_jax.training.config import StepUnits, check_settings, record_or_compare

REQUIRED = {"model.checkpoint": "a", "data.pairs": "b", "data.images": "c"}


def settings(changes: dict | None = None) -> dict:
    return flatten_dict(common.base().to_dict(), sep=".") | REQUIRED | (changes or {})


def test_the_defaults_pass():
    check_settings(settings())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "model.dtype",
            "float16",
            r"config\.model\.dtype is 'float16'; it must be one of float32,",
        ),
        ("model.dtype", "", r"config\.model\.dtype is ''; it must be one of float32,"),
        ("data.workers", -1, r"config\.data\.workers is -1; it must be at least 0"),
        ("data.threads", 0, r"config\.data\.threads is 0; it must be at least 1"),
        ("data.foils", -1, r"config\.data\.foils is -1; it must be at least 0"),
        ("data.original_fraction", 1.5, r"is 1\.5; it must be between 0 and 1"),
        ("data.max_bad_images", -0.1, r"is -0\.1; it must be between 0 and 1"),
        ("train.ema_decay", 1.5, r"config\.train\.ema_decay is 1\.5; it must be between 0 and 1"),
        ("optim.lr", -1.0, r"config\.optim\.lr is -1\.0; it must be at least 0"),
        ("optim.lr", math.nan, r"config\.optim\.lr is nan; it must be at least 0"),
        ("optim.beta2", 2.0, r"config\.optim\.beta2 is 2\.0; it must be between 0 and 1"),
        ("optim.clip_norm", -1.0, r"config\.optim\.clip_norm is -1\.0; it must be at least 0"),
        ("log.profile_steps", "3-1", r"log\.profile_steps: cannot read '3-1'"),
        ("runtime.made_scenes", -1, r"config\.runtime\.made_scenes is -1; it must be at least 0"),
        ("checkpoint.keep", 0, r"config\.checkpoint\.keep is 0; it must be at least 1"),
    ],
)
def test_a_value_out_of_range_is_named(key, value, message):
    with pytest.raises(InputError, match=message):
        check_settings(settings({key: value}))


def test_images_are_wanted_unless_the_pairs_hold_them():
    check_settings(settings({"data.images": None, "data.pairs": "wds:a.tar"}))
    with pytest.raises(InputError, match=r"config\.data\.images is not set"):
        check_settings(settings({"data.images": None}))


UNITS = StepUnits(batch_size=32, steps_per_epoch=50, total_steps=400)


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ("500 steps", 500),
        ("1 step", 1),
        ("15 epochs", 750),
        ("0.5 epochs", 25),
        ("1_000 examples", 31),
        ("100_000 examples", 3125),
        ("1_008 examples", 32),
        ("1 examples", 1),
        ("10 percent", 40),
        ("2.5 percent", 10),
        ("1e3 steps", 1000),
        ("  7  steps ", 7),
        ("0 steps", 0),
        ("0 epochs", 0),
        ("0.001 percent", 1),
    ],
)
def test_steps_of_a_duration(duration, steps):
    assert UNITS.steps(duration, "eval.every") == steps


@pytest.mark.parametrize(
    "duration",
    ["", "5", "steps", "5 minutes", "-5 steps", "five steps", "5 steps 3", "1,000 steps"],
)
def test_what_cannot_be_read_names_key_and_units(duration):
    with pytest.raises(InputError, match=r"eval\.every: cannot read .*steps, epochs, examples"):
        UNITS.steps(duration, "eval.every")


def test_percent_needs_a_length():
    with pytest.raises(InputError, match=r"train\.total: cannot read '10 percent'"):
        StepUnits(batch_size=32, steps_per_epoch=50).steps("10 percent", "train.total")


def test_due_at_multiples_and_at_the_end():
    assert [step for step in range(1, 401) if UNITS.due(step, 150)] == [150, 300, 400]
    assert not any(UNITS.due(step, 0) for step in range(1, 401))


def recorded(path, changes: dict, *, allow_change: bool = False, **arguments) -> None:
    config = common.base()
    config.update_from_flattened_dict(changes)
    defaults = {"train.objective": "contrastive"}
    description = config.to_dict() | {"base_files": {"vocab.json": "1"}}
    settings = {"defaults": defaults, "allow_change": allow_change}
    record_or_compare(path, description, **settings, **arguments)


@pytest.mark.parametrize(
    ("recipe", "refused"),
    [
        ({}, False),
        ({"optim.warmup": "10 steps"}, False),
        ({"optim.warmup": "10 percent"}, True),
        ({"optim.schedule": "cosine"}, True),
    ],
)
def test_a_longer_run_is_another_run_if_the_rate_depends_on_its_end(tmp_path, recipe, refused):
    run = epath.Path(tmp_path)
    recorded(run, recipe | {"train.total": "20 steps"}, resumes=False)
    expected = pytest.raises(InputError, match=r"train\.total: '20 steps' -> '40 steps'")
    with expected if refused else contextlib.nullcontext():
        recorded(run, recipe | {"train.total": "40 steps"}, resumes=True)


def test_a_run_of_before_objectives_had_a_name_is_resumed_with_its_own(tmp_path, caplog):
    run, file = epath.Path(tmp_path), tmp_path / "config.json"
    recorded(run, {"train.objective": "contrastive"}, resumes=False)
    content = json.loads(file.read_text())
    del content["train"]["objective"]
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"train\.objective: 'contrastive' -> 'sigmoid'"):
        recorded(run, {"train.objective": "sigmoid"}, resumes=True)
    recorded(run, {"train.objective": "contrastive"}, resumes=True)
    warnings = [r for r in caplog.records if r.levelname == "WARNING"]
    assert not warnings and json.loads(file.read_text())["train"]["objective"] == "contrastive"


def test_a_run_with_old_names_is_resumed_with_a_warning(tmp_path, caplog):
    renamed_keys._warn.cache_clear()
    run, file = epath.Path(tmp_path), tmp_path / "config.json"
    recorded(run, {"data.caption_mode": "mix"}, resumes=False)
    content = json.loads(file.read_text())
    content["data"]["captions"] = content["data"].pop("caption_mode")
    content["runtime"]["silence"] = content["runtime"].pop("heartbeat_timeout")
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"data\.caption_mode: 'mix' -> 'negated'"):
        recorded(run, {}, resumes=True)
    recorded(run, {"data.caption_mode": "mix"}, resumes=True)
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert [message.split(";")[0] for message in sorted(warnings)] == [
        "config.data.captions is now called config.data.caption_mode",
        "config.runtime.silence is now called config.runtime.heartbeat_timeout",
    ]
    assert json.loads(file.read_text())["data"]["caption_mode"] == "mix"


def test_a_change_that_is_allowed_is_named(tmp_path, caplog):
    run = epath.Path(tmp_path)
    recorded(run, {}, resumes=False)
    recorded(run, {"optim.lr": 0.5, "data.workers": 3}, resumes=True, allow_change=True)
    messages = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert messages[:2] == [
        "changed since the start of this run: data.workers: 0 -> 3",
        "changed since the start of this run: optim.lr: 1e-06 -> 0.5",
    ]
