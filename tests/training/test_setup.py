"""Configurations and data that do not fit: a sentence that says what and where, at the start."""

import json
import shutil
import sys

import jax
import numpy as np
import pytest
from tiny_runs import read_metrics

from negclip_jax.common.errors import InputError
from negclip_jax.runtime import sharding
from negclip_jax.training.loop import train
from negclip_jax.training.setup import prepare


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.batch_size": 12}, r"train\.batch_size=12 is not divisible by 8 devices"),
        ({"eval.batch_size": 12}, r"eval\.batch_size=12 is not divisible by 8 devices"),
        ({"train.microbatches": 3}, r"train\.microbatches=3 does not divide the 2 pairs"),
        ({"mesh.fsdp": 3}, r"mesh\.fsdp=3 does not divide 8 devices"),
        (
            {"train.batch_size": 72},
            r"train\.batch_size=72 is larger than the 64 training pairs",
        ),
        ({"train.total": "5 minutes"}, r"train\.total: cannot read '5 minutes'"),
        ({"eval.every": "5 minutes"}, r"eval\.every: cannot read '5 minutes'"),
        ({"train.objective": "siglip"}, r"train\.objective: 'siglip' is none of contrastive, tru"),
        ({"train.objective": "sigmoid"}, r"train\.objective=sigmoid needs logit_bias, which this"),
        ({"optim.schedule": "cosin"}, r"optim\.schedule: 'cosin' is none of"),
        ({"optim.freeze": ("vison/.*",)}, r"optim\.freeze: no parameter matches \['vison/"),
        (
            {"train.objective": "truth"},
            "has no text that is known to be false: set data.statements",
        ),
        ({"train.anchor_weight": -1.0}, r"config\.train\.anchor_weight is -1"),
        ({"train.image_choice_weight": -1.0}, r"config\.train\.image_choice_weight is -1"),
        ({"optim.freeze": (".*",)}, r"optim\.freeze leaves nothing to train"),
        ({"mesh.rules": ((".*", "shard"),)}, r"mesh\.rules: 'shard' is neither"),
        ({"data.workers": -1}, r"config\.data\.workers is -1"),
        ({"data.caption_mode": "negate"}, r"data\.caption_mode: 'negate' is none of"),
        ({"data.crop": "centre"}, r"crop is 'centre'"),
        ({"data.validation_fraction": 1.5}, r"validation_fraction is 1\.5"),
        ({"data.split_by": "pair"}, r"split by \"image\" or by \"caption\""),
        ({"data.pairs": "missing.json"}, r"missing\.json"),
        ({"data.images": "missing/"}, r"missing/ does not exist"),
        ({"model.checkpoint": "no/such/checkpoint/anywhere"}, r"no/such/checkpoint/anywhere"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_do_not_fit(make_config, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        prepare(make_config(changes), str(tmp_path))
    assert not (tmp_path / "checkpoints" / "0").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"log.wandb": "project"}, r"log\.wandb is set, but wandb is not installed: pip install"),
        ({"checkpoint.every": "daily"}, r"checkpoint\.every: cannot read 'daily'"),
        ({"log.every": "10"}, r"log\.every: cannot read '10'"),
        ({"train.total": "10 percent"}, r"train\.total: cannot read '10 percent'"),
        ({"optim.warmup": "10 pairs"}, r"optim\.warmup: cannot read '10 pairs'"),
        ({"optim.schedule": "cosin"}, r"optim\.schedule: 'cosin' is none of"),
        ({"data.caption_mode": "negate"}, r"data\.caption_mode: 'negate' is none of"),
        ({"data.truncated": "yes"}, r"config\.data\.truncated is 'yes'"),
    ],
)
def test_settings_are_checked_before_any_work(make_config, tmp_path, monkeypatch, changes, message):
    monkeypatch.setitem(sys.modules, "wandb", None)
    workdir = tmp_path / "run"
    with pytest.raises(InputError, match=message):
        prepare(make_config(changes | {"data.pairs": "absent.json"}), str(workdir))
    assert not workdir.exists()


@pytest.mark.parametrize("key", ["model.checkpoint", "data.pairs", "data.images"])
def test_required_keys(make_config, tmp_path, key):
    config = make_config()
    section, name = key.split(".")
    config[section][name] = None
    with pytest.raises(InputError, match=rf"config\.{key} is not set: pass --config\.{key}=\.\.\."):
        prepare(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_compute_type_is_that_of_the_devices_and_then_of_the_run(
    make_config, tmp_path, one_device, monkeypatch, caplog
):
    """What a GPU began goes on elsewhere as it was: half a run of each type would be neither."""
    caplog.set_level("INFO")

    def runs(made_for: str, steps: int, **changes) -> str:
        monkeypatch.setattr(sharding, "fast_dtype", lambda mesh: made_for)
        settings = {"train.total": f"{steps} steps", "eval.every": "0 steps", **changes}
        state = train(make_config(settings), str(tmp_path))
        leaves = [*jax.tree.leaves((state.params, state.opt_state))]
        assert {str(x.dtype) for x in leaves} == {"float32", "int32"}  # Adam counts its updates
        recorded = json.loads((tmp_path / "config.json").read_text())["model"]["dtype"]
        said = [m for m in caplog.messages if m.startswith("model.dtype=")]
        caplog.clear()
        assert len(said) == (not changes) and all(f"model.dtype={recorded}, " in m for m in said)
        return recorded

    assert runs("bfloat16", 2) == "bfloat16"
    narrow = [x["loss"] for x in read_metrics(tmp_path).values() if "loss" in x]
    assert runs("float32", 4) == "bfloat16"
    with pytest.raises(InputError, match=r"model\.dtype: 'bfloat16' -> 'float32'"):
        runs("bfloat16", 4, **{"model.dtype": "float32"})
    shutil.rmtree(tmp_path)
    assert runs("bfloat16", 2, **{"model.dtype": "float32"}) == "float32"
    full = [x["loss"] for x in read_metrics(tmp_path).values() if "loss" in x]
    assert len(full) == 2 and narrow != full
    assert np.allclose(narrow, full, rtol=0.02)
    assert runs("bfloat16", 4) == "float32"
