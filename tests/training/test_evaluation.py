"""The validation loss is the mean over pairs of fixed batches, on one device or many."""

import types

import jax
import numpy as np
import pytest
from flax import nnx
from tiny_runs import pairs_of, random_batch

from negclip_jax.data.images import CLIP_MEAN, CLIP_STD
from negclip_jax.models import clip
from negclip_jax.models.normalisation import l2_normalise
from negclip_jax.runtime import sharding
from negclip_jax.training import evaluation
from negclip_jax.training.evaluation import ValidationLoss, recall_at_1
from negclip_jax.training.step import Objective

RECALLS = ("image_to_text_recall_at_1", "text_to_image_recall_at_1")
BATCH, PAIRS = 16, 40  # two whole batches and half of one


@pytest.fixture(scope="module")
def model(tiny_config):
    return clip.split(clip.CLIP(tiny_config, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def held_out(tiny_config) -> dict[str, np.ndarray]:
    batch = random_batch(tiny_config, 3 * BATCH, foils=1) | {"mask": np.arange(3 * BATCH) < PAIRS}
    return batch | {"is_affirmative": np.tile([True, False], (3 * BATCH, 1))}


@pytest.fixture(scope="module")
def loader(held_out):
    """What ValidationLoss needs of a PairLoader."""

    def batches(start, stop, rows):
        for step in range(start, stop):
            yield pairs_of(held_out, BATCH * step + rows)

    return types.SimpleNamespace(
        batch_size=BATCH,
        steps_per_epoch=3,
        batches=batches,
        examples=types.SimpleNamespace(image_of=np.arange(PAIRS) // 2),  # pairs share images
        shows_opposites=False,
    )


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_pairs_weigh_alike_and_padding_nothing(model, held_out, loader, devices):
    graphdef, params = model
    objective = Objective(graphdef, CLIP_MEAN, CLIP_STD)
    mesh = sharding.make_mesh(data=-1, fsdp=1, devices=jax.devices()[:devices])
    replicated = jax.device_put(params, sharding.replicated(mesh))
    result = ValidationLoss(loader, objective, mesh)(replicated)
    accuracies = {"image_to_text_accuracy", "text_to_image_accuracy", "foil_accuracy"}
    recalls = {name: result.pop(name) for name in RECALLS}
    assert set(result) == accuracies | {"loss"}
    image, text = jax.jit(objective.features)(params, held_out)
    unit = (np.asarray(l2_normalise(x))[:PAIRS] for x in (image, text[:, 0]))
    expected = recall_at_1(*unit, loader.examples.image_of)
    np.testing.assert_allclose(list(recalls.values()), expected)
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
    accuracies = {"image_to_text_accuracy", "text_to_image_accuracy"}
    assert set(result) == accuracies | {"loss", *RECALLS}


def recall_of_loops(scores, image_of) -> tuple[float, float]:
    """By image and text [U, N], one question at a time, in ranks."""
    images, texts = [], []
    for u, row in enumerate(scores):
        first = np.flatnonzero(row >= row.max() - 1e-5)
        images.append(np.mean(image_of[first] == u))
    for n, column in enumerate(scores.T):
        first = np.flatnonzero(column >= column.max() - 1e-5)
        texts.append(np.mean(first == image_of[n]))
    return float(np.mean(images)), float(np.mean(texts))


@pytest.mark.parametrize("scores", [1, 100, 2**24])
def test_recall_is_shared_by_ties_in_blocks_of_any_size(monkeypatch, scores):
    monkeypatch.setattr(evaluation, "_SCORES", scores)
    rng = np.random.default_rng(0)
    image_of = rng.permutation(np.arange(30) % 12)
    image = rng.integers(-1, 2, (12, 3)).astype(np.float32) + 0.1  # many are equal
    text = image[image_of] + rng.integers(0, 2, (30, 3))
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    found = recall_at_1(image[image_of], text, image_of)
    np.testing.assert_allclose(found, recall_of_loops(image @ text.T, image_of), rtol=1e-6)
    assert min(found) > 0 and max(found) < 1


def test_recall_of_a_collapsed_model_is_chance():
    same = np.tile(np.float32([1, 0]), (6, 1))
    found = recall_at_1(same, same, np.array([0, 0, 1, 1, 2, 2]))
    np.testing.assert_allclose(found, (1 / 3, 1 / 3))
