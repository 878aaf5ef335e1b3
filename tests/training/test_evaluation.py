"""The validation loss is the mean over pairs of fixed batches, on one device or many."""

import types

import jax
import numpy as np
import pytest
from flax import nnx
from tiny_runs import pairs_of, random_batch

from negclip_jax.data.images import CLIP_MEAN, CLIP_STD
from negclip_jax.models import clip
from negclip_jax.runtime import sharding
from negclip_jax.training.evaluation import ValidationLoss
from negclip_jax.training.step import Objective

BATCH, PAIRS = 16, 40  # two whole batches and half of one


@pytest.fixture(scope="module")
def model(tiny_config):
    return clip.split(clip.CLIP(tiny_config, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def held_out(tiny_config) -> dict[str, np.ndarray]:
    return random_batch(tiny_config, 3 * BATCH, foils=1) | {"mask": np.arange(3 * BATCH) < PAIRS}


@pytest.fixture(scope="module")
def loader(held_out):
    """What ValidationLoss needs of a PairLoader."""

    def batches(start, stop, rows):
        for step in range(start, stop):
            yield pairs_of(held_out, BATCH * step + rows)

    return types.SimpleNamespace(batch_size=BATCH, steps_per_epoch=3, batches=batches)


@pytest.mark.parametrize("devices", [1, 8])
def test_pairs_weigh_alike_and_padding_nothing(model, held_out, loader, devices):
    graphdef, params = model
    objective = Objective(graphdef, CLIP_MEAN, CLIP_STD)
    mesh = sharding.make_mesh(data=-1, fsdp=1, devices=jax.devices()[:devices])
    replicated = jax.device_put(params, sharding.replicated(mesh))
    result = ValidationLoss(loader, objective, mesh)(replicated)
    accuracies = {"image_to_text_accuracy", "text_to_image_accuracy", "foil_accuracy"}
    assert set(result) == accuracies | {"loss"}
    loss = jax.jit(objective.loss)
    total, weights = {name: 0.0 for name in result}, {name: 0 for name in result}
    for start in range(0, PAIRS, BATCH):
        rows = slice(start, min(start + BATCH, PAIRS))
        part = pairs_of({n: x for n, x in held_out.items() if n != "mask"}, rows)
        value, metrics = loss(params, part)
        for name, number in (metrics | {"loss": value}).items():
            with_foil = int((part["truth"] < 0).any(axis=1).sum())
            weight = with_foil if name == "foil_accuracy" else rows.stop - rows.start
            total[name] += float(number) * weight
            weights[name] += weight
    assert weights["foil_accuracy"] < weights["loss"] == PAIRS
    for name, number in total.items():
        np.testing.assert_allclose(result[name], number / weights[name], rtol=1e-5, err_msg=name)


def test_without_any_foil_there_is_no_accuracy_of_foils(model, held_out, loader, monkeypatch):
    monkeypatch.setitem(held_out, "truth", np.maximum(held_out["truth"], 0))
    graphdef, params = model
    mesh = sharding.make_mesh(data=1, fsdp=1, devices=jax.devices()[:1])
    result = ValidationLoss(loader, Objective(graphdef, CLIP_MEAN, CLIP_STD), mesh)(params)
    assert set(result) == {"image_to_text_accuracy", "text_to_image_accuracy", "loss"}
