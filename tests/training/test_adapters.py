"""LoRA: adapters alone are trained and kept; whatever reads a run sees merged weights."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx, traverse_util
from tiny_runs import assert_close, assert_equal, read_metrics

from evals import models
from negclip_jax.checkpoints import restore
from negclip_jax.checkpoints.restore import restore_params
from negclip_jax.common.errors import InputError
from negclip_jax.interop import export
from negclip_jax.interop.readers import read_any
from negclip_jax.models import clip
from negclip_jax.models.lora import fold
from negclip_jax.runtime import sharding
from negclip_jax.training import optim, patterns
from negclip_jax.training.loop import train

ALL = ("text/blocks/.*",)
LINEAR = ("attn/query", "attn/key", "attn/value", "attn/out", "mlp/fc1", "mlp/fc2")
LORA = {"optim.lora_rank": 2, "optim.lora_alpha": 6.0, "optim.lr": 1e-2, "train.ema_decay": 0.8}
LORA |= {"train.total": "8 steps", "optim.freeze": None}
LORA |= {"eval.every": "4 steps", "checkpoint.every": "4 steps"}


def shapes(config) -> dict:
    return clip.abstract(config)[1]


def trained_names(mask: dict) -> dict[str, list]:
    flat = traverse_util.flatten_dict(mask, sep="/")
    return {name: np.ravel(value).tolist() for name, value in flat.items() if np.any(value)}


def test_attention_and_mlp_of_the_text_tower_have_adapters(tiny_config):
    tree, mask = optim.adapted(shapes(tiny_config), (), lora_rank=3, lora_matrices=ALL)
    ends = [f"text/blocks/{name}/lora_{x}" for name in LINEAR for x in "ab"]
    assert trained_names(mask) == {end: [True] for end in sorted(ends)}
    flat = traverse_util.flatten_dict(tree, sep="/")
    assert flat["text/blocks/mlp/fc1/lora_a"].shape == (2, 32, 3)
    assert flat["text/blocks/mlp/fc1/lora_b"].shape == (2, 3, 64)
    assert flat.keys() - {"lora_scale", *ends} == {
        *traverse_util.flatten_dict(shapes(tiny_config), sep="/")
    }


def test_layers_that_are_frozen_or_not_named_keep_what_they_are(tiny_config):
    """By number, as everywhere: adapters of other layers are stored beside and never move."""
    adapted = functools.partial(optim.adapted, shapes(tiny_config), lora_rank=2)
    _, frozen = adapted(("text/blocks/0/.*", "vision/.*"), lora_matrices=ALL)
    assert trained_names(frozen)["text/blocks/mlp/fc1/lora_a"] == [False, True]
    _, named = adapted(("vision/.*",), lora_matrices=("text/blocks/1/attn/.*",))
    assert set(trained_names(named)) == {
        f"text/blocks/{name}/lora_{x}" for name in LINEAR[:4] for x in "ab"
    }
    assert trained_names(named)["text/blocks/attn/out/lora_b"] == [False, True]
    _, vision = adapted((), lora_matrices=("vision/blocks/0/mlp/fc2/.*",))
    assert trained_names(vision) == {f"vision/blocks/mlp/fc2/lora_{x}": [True, False] for x in "ab"}


@pytest.mark.parametrize(
    ("freeze", "rank", "matrices", "message"),
    [
        ((), 2, ("text/block/.*",), r"optim\.lora_matrices: no parameter matches"),
        ((), 2, ("text/ln_final/.*",), r"optim\.lora_matrices: no parameter matches"),
        ((), 32, ALL, r"optim\.lora_rank=32: text/blocks/0/attn/key/kernel is 32 x 32, no larger"),
        (("text/.*",), 2, ALL, r"optim\.freeze leaves none of optim\.lora_matrices to adapt"),
        (("vison/.*",), 2, ALL, r"optim\.freeze: no parameter matches"),
    ],
)
def test_what_cannot_be_adapted_is_said(tiny_config, freeze, rank, matrices, message):
    with pytest.raises(InputError, match=message):
        optim.adapted(shapes(tiny_config), freeze, lora_rank=rank, lora_matrices=matrices)


def test_a_rank_makes_adapters_that_change_nothing_yet(tiny_config):
    _, params = clip.split(clip.CLIP(tiny_config, rngs=nnx.Rngs(0)))
    params = jax.device_get(params)
    tree, _ = optim.adapted(params, (), lora_rank=4, lora_matrices=ALL)
    first, again, other, plain = (
        optim.begun(params, tree, seed, alpha)
        for seed, alpha in ((3, 6.0), (3, 6.0), (4, 6.0), (3, None))
    )
    assert_equal(first, again)
    a = first["text"]["blocks"]["attn"]["key"]["lora_a"]
    assert not np.array_equal(a, other["text"]["blocks"]["attn"]["key"]["lora_a"])
    assert not np.array_equal(a, first["text"]["blocks"]["attn"]["query"]["lora_a"])
    assert 0.9 < np.abs(a).max() * 32**0.5 <= 1 and abs(a.mean()) < 0.02
    assert (first["lora_scale"], plain["lora_scale"]) == (1.5, 1)
    assert_equal(fold(first), params)
    assert optim.begun(params, params, 0, None).keys() == params.keys()


@pytest.fixture(scope="module")
def trained(make_config, tmp_path_factory):
    """Function of changes and devices to a run: its directory and state on the host."""

    @functools.cache
    def run(devices: int = 1, **changes):
        workdir = tmp_path_factory.mktemp("lora") / "run"
        given = LORA | {key.replace("__", "."): value for key, value in changes.items()}
        with pytest.MonkeyPatch.context() as patch:
            make_mesh = functools.partial(sharding.make_mesh, devices=jax.devices()[:devices])
            patch.setattr(sharding, "make_mesh", make_mesh)
            return workdir, jax.device_get(train(make_config(given), str(workdir)))

    return run


def test_the_run_learns_and_starts_at_the_base(trained):
    lora, full = (read_metrics(trained(**x)[0]) for x in ({}, {"optim__lora_rank": None}))
    assert lora[0]["val/loss"] == full[0]["val/loss"] and lora[1]["loss"] == full[1]["loss"]
    assert lora[8]["val/loss"] < lora[4]["val/loss"] < lora[0]["val/loss"]
    assert len({metrics["logit_scale"] for step, metrics in lora.items() if step}) == 1


def test_optimizer_and_checkpoints_hold_adapters_alone(trained, tiny_config):
    (workdir, state), (full_workdir, full) = trained(), trained(optim__lora_rank=None)
    count, of_full = (sum(x.size for x in jax.tree.leaves(s.opt_state)) for s in (state, full))
    sizes = 4 * (32 * 2 + 2 * 32) + 2 * (32 * 2 + 2 * 64)
    counters = count - 2 * 2 * sizes  # two moments of two layers, and how many updates
    assert 0 <= counters <= 4 and of_full > 20 * count
    assert {path[-1] for path in traverse_util.flatten_dict(state.params)} == {"lora_a", "lora_b"}
    assert {path[-1] for path in traverse_util.flatten_dict(state.ema)} == {"lora_a", "lora_b"}

    def stored(folder) -> int:
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

    assert stored(workdir / "checkpoints/8/params") < stored(full_workdir / "checkpoints/8/params")
    frozen = restore._to_host(workdir / "frozen")
    assert frozen.keys() == {*shapes(tiny_config), "lora_scale"}


@pytest.mark.parametrize("ema", [False, True])
def test_a_checkpoint_is_the_direct_merge_to_the_bit(trained, tiny_checkpoint, monkeypatch, ema):
    workdir, state = trained()
    merged, step = restore_params(str(workdir), "last", ema=ema)
    _, base, _ = read_any(tiny_checkpoint)
    kept = traverse_util.flatten_dict(state.ema if ema else state.params)
    expected = traverse_util.flatten_dict(base)
    for path in [path for path in kept if path[-1] == "lora_a"]:
        b, kernel = kept[*path[:-1], "lora_b"], (*path[:-1], "kernel")
        for layer, (a_layer, b_layer) in enumerate(zip(kept[path], b, strict=True)):
            added = np.float32(6 / 2) * (a_layer @ b_layer)
            expected[kernel] = expected[kernel].copy()
            expected[kernel][layer] += added
            assert np.abs(added).max() > 1e-4
    assert step == 8
    assert_equal(merged, traverse_util.unflatten_dict(expected))


def test_every_reader_sees_merged_weights(trained, tmp_path, capsys):
    workdir, _ = trained()
    merged, _ = restore_params(str(workdir), 8)
    assert_equal(read_any(f"{workdir}@8")[1], merged)
    assert_equal(jax.device_get(models.load(f"{workdir}@8").params), merged)
    for layout in ("huggingface", "open_clip"):  # OpenAI's has heads of 64 only
        out = tmp_path / layout
        assert (
            export.main([f"--workdir={workdir}", "--step=8", f"--layout={layout}", f"--out={out}"])
            == 0
        )
        assert "at most 0.0e+00" in capsys.readouterr().out
        assert_equal(read_any(out)[1], merged)
    assert "optim.lora_rank" in (tmp_path / "huggingface/README.md").read_text()
    average = ["--ema", "--step=8", f"--out={tmp_path / 'ema'}"]
    assert export.main([f"--workdir={workdir}", *average]) == 0
    assert_equal(read_any(tmp_path / "ema")[1], restore_params(str(workdir), 8, ema=True)[0])
    half = ["--alpha=0.5", "--step=8", f"--out={tmp_path / 'half'}"]
    assert export.main([f"--workdir={workdir}", *half]) == 0


def test_evaluations_during_training_see_them_too(make_config, tmp_path, one_device):
    seen = {}

    def build(context):
        def evaluate(params: dict) -> dict[str, float]:
            nnx.merge(context.graphdef, params)
            seen[len(seen)] = jax.device_get(params)
            return {"x": 0.0}

        return evaluate

    train(make_config(LORA), str(tmp_path / "run"), {"custom": build})
    merged, _ = restore_params(str(tmp_path / "run"), "last", ema=True)
    assert_close(seen[2], merged, rtol=1e-6, atol=1e-7)
    assert not np.array_equal(
        seen[0]["text"]["blocks"]["mlp"]["fc1"]["kernel"],
        merged["text"]["blocks"]["mlp"]["fc1"]["kernel"],
    )


def test_resumed_equals_uninterrupted(trained, make_config, tmp_path, one_device):
    workdir, state = trained()
    half, _ = trained(train__total="4 steps")
    copy = tmp_path / "run"
    shutil.copytree(half, copy)
    assert_equal(jax.device_get(train(make_config(LORA), str(copy))), state)
    assert (copy / "metrics.jsonl").read_bytes() == (workdir / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"optim\.lora_alpha: 6\.0 -> 7\.0"):
        train(make_config(LORA | {"optim.lora_alpha": 7.0}), str(copy))


MESH = {"mesh__data": 4, "mesh__fsdp": 2, "mesh__min_shard_size": 16}


@pytest.mark.parametrize(
    ("devices", "changes"),
    [
        pytest.param(8, MESH | {"train__microbatches": 2}, marks=pytest.mark.slow),
        pytest.param(8, MESH, marks=pytest.mark.long),
        pytest.param(1, {"train__microbatches": 4}, marks=pytest.mark.long),
    ],
    ids=["both", "8 devices", "micro-batches"],
)
def test_devices_and_parts_of_a_batch_change_nothing(trained, devices, changes):
    (one, state), (other, theirs) = trained(), trained(devices, **changes)
    ours, theirs_metrics = read_metrics(one), read_metrics(other)
    for step in range(1, 9):
        np.testing.assert_allclose(theirs_metrics[step]["loss"], ours[step]["loss"], rtol=1e-5)
    assert_close(theirs.params, state.params, rtol=1e-2, atol=2e-4)


@pytest.mark.slow
def test_a_rule_leaves_some_layers_alone(trained, tiny_checkpoint):
    freeze = ("vision/.*", "visual_projection", "text/blocks/0/.*")
    workdir, state = trained(optim__freeze=freeze)
    merged, base = restore_params(str(workdir), 8)[0], read_any(tiny_checkpoint)[1]
    flat, before = (traverse_util.flatten_dict(tree, sep="/") for tree in (merged, base))
    changed = {name for name in flat if not np.array_equal(flat[name], before[name])}
    assert changed == {f"text/blocks/{name}/kernel" for name in LINEAR}
    for name in changed:
        np.testing.assert_array_equal(flat[name][0], before[name][0])
        assert not np.array_equal(flat[name][1], before[name][1])
    assert not any(b[0].any() for b in [state.params["text"]["blocks"]["mlp"]["fc1"]["lora_b"]])


def test_a_run_of_an_earlier_version_goes_on(trained, make_config, tmp_path, one_device):
    workdir, _ = trained(optim__lora_rank=None)
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    recorded = json.loads((copy / "config.json").read_text())
    for key in ("lora_rank", "lora_alpha", "lora_matrices"):
        del recorded["optim"][key]
    (copy / "config.json").write_text(json.dumps(recorded))
    changes = {"optim.lora_rank": None, "optim.lora_alpha": None}
    train(make_config(LORA | changes), str(copy))


def test_the_names_of_rules_are_those_of_layers(tiny_config):
    tree, mask = optim.adapted(shapes(tiny_config), (), lora_rank=2, lora_matrices=ALL)
    rates = patterns.resolve(tree, ((".*/lora_b", 16.0), (".*", 1.0)), "optim.lr_rules")
    assert rates["text"]["blocks"]["mlp"]["fc1"]["lora_b"] == 16.0
    assert rates["text"]["blocks"]["mlp"]["fc1"]["lora_a"] == 1.0
    assert mask["text"]["token_embedding"] is False
