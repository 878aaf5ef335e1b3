"""SigLIP's loss against a double loop and transformers, and fine-tuning its text tower with it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from interop import tiny
from tiny_runs import with_foils

from negclip_jax.interop import huggingface
from negclip_jax.models import clip
from negclip_jax.training import optim, patterns
from negclip_jax.training.objectives import sigmoid_loss
from negclip_jax.training.step import Objective, TrainState, make_train_step

B, K, D = 6, 3, 5
SCALE, BIAS = jnp.float32(1.7), jnp.float32(-2.5)


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(0)
    shapes = {"image": (B, D), "text": (B, D), "foil": (B, K, D)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def logit(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.exp(1.7) * float(a @ b / np.sqrt(a @ a) / np.sqrt(b @ b)) - 2.5


def reference(features, rows, foil_mask=None, foil_weight=1.0):
    """One pair at a time, float64: log(1 + exp(-z)), z the logit with the sign of the truth."""
    total = 0.0
    for i in rows:
        for j in rows:
            sign = 1 if i == j else -1
            total += np.log1p(np.exp(-sign * logit(features["image"][i], features["text"][j])))
        for k in range(K if foil_mask is not None else 0):
            if foil_mask[i, k]:
                z = logit(features["image"][i], features["foil"][i, k])
                total += foil_weight * np.log1p(np.exp(z))
    return total / len(rows)


def ours(features, **arguments):
    return sigmoid_loss(features["image"], features["text"][:, None], SCALE, BIAS, **arguments)


def test_equals_a_double_loop(features):
    np.testing.assert_allclose(ours(features)[0], reference(features, range(B)), rtol=1e-6)


def test_foils_with_weight_and_mask(features):
    mask = np.random.default_rng(1).random((B, K)) < 0.5
    mask[0], mask[1] = False, True
    text, truth = with_foils(features["text"], features["foil"], mask)
    labels = {"truth_BxM": truth, "foil_weight": 0.3}
    loss, metrics = sigmoid_loss(features["image"], text, SCALE, BIAS, **labels)
    np.testing.assert_allclose(loss, reference(features, range(B), mask, 0.3), rtol=1e-6)
    assert 0 <= float(metrics["foil_accuracy"]) <= 1


def test_padding_rows_neither_score_nor_count(features):
    mask = np.array([True, True, False, True, False, True])
    padded = {name: np.where(mask[:, None], features[name], 1e3) for name in ("image", "text")}
    loss, _ = ours(padded, mask_B=jnp.asarray(mask))
    np.testing.assert_allclose(loss, reference(features, np.flatnonzero(mask)), rtol=1e-6)
    gradient = jax.grad(lambda x: ours({**padded, "text": x}, mask_B=jnp.asarray(mask))[0])
    found = np.asarray(gradient(jnp.asarray(padded["text"])))
    assert np.isfinite(found).all() and not found[~mask].any() and found[mask].any()


def test_equals_transformers(features):
    """SiglipModel's own loss, which sums over images for each caption: the same sum."""
    model = tiny.torch_siglip()
    pixels = np.random.default_rng(0).standard_normal((4, 16, 16, 3)).astype(np.float32)
    ids = np.random.default_rng(1).integers(2, 99, (4, 12))
    images = torch.tensor(pixels).permute(0, 3, 1, 2)
    with torch.no_grad():
        out = model(input_ids=torch.tensor(ids), pixel_values=images, return_loss=True)
    image, text = (np.asarray(x) for x in (out.image_embeds, out.text_embeds))
    scale, bias = (jnp.float32(p.item()) for p in (model.logit_scale, model.logit_bias))
    loss, metrics = sigmoid_loss(image, text[:, None], scale, bias)
    np.testing.assert_allclose(loss, out.loss.item(), rtol=1e-5)
    own = np.asarray(out.logits_per_image.argmax(axis=1)) == np.arange(4)
    assert float(metrics["image_to_text_accuracy"]) == pytest.approx(own.mean())


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A SigLIP whose text tower was fine-tuned on 8 pairs with one foil each."""
    base = tiny.saved(tmp_path_factory.mktemp("siglip") / "base", tiny.torch_siglip())
    config, params = tiny.load(base)
    params |= {"logit_scale": np.float32(np.log(10)), "logit_bias": np.float32(-3)}
    graphdef, _ = clip.abstract(config)
    mask = patterns.trainable(params, ("vision/.*",))
    trained, frozen = patterns.partition(params, mask)
    rate = optax.constant_schedule(1e-2)
    tx = optim.adamw(
        params,
        mask,
        rate,
        beta1=0.9,
        beta2=0.999,
        eps=1e-8,
        clip_norm=None,
        weight_decay=0.0,
        weight_decay_rules=((".*", 1.0),),
        lr_rules=((".*", 1.0),),
    )
    objective = Objective(graphdef, (0.5,) * 3, (0.5,) * 3, name="sigmoid")
    step = make_train_step(objective, tx, schedule=rate, logit_scale_max=None, ema_decay=None)
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.integers(0, 256, (8, 16, 16, 3)), jnp.uint8),
        "text": jnp.asarray(rng.integers(2, 99, (16, 12))),
        "truth": jnp.tile(jnp.array([1, -1], jnp.int8), (8, 1)),
    }
    step, state, metrics = jax.jit(step), TrainState.create(trained, tx, ema=False), []
    for _ in range(40):
        state, numbers = step(state, frozen, batch)
        metrics.append(jax.device_get(numbers))
    return base, config, params, patterns.merge(frozen, jax.device_get(state.params)), metrics


def test_fine_tuning_the_text_tower(tuned):
    _, _, before, after, metrics = tuned
    assert metrics[-1]["loss"] < 0.3 * metrics[0]["loss"]
    assert metrics[-1]["foil_accuracy"] == 1 and metrics[-1]["image_to_text_accuracy"] == 1
    tiny.assert_equal_params(after["vision"], before["vision"])
    for name in ("logit_scale", "logit_bias"):
        assert after[name] != before[name], "scale and bias are trained"
    query, tuned_query = (tree["text"]["blocks"]["attn"]["query"] for tree in (before, after))
    assert not np.array_equal(query["kernel"], tuned_query["kernel"])


def test_what_was_trained_goes_back_to_transformers(tuned, tmp_path):
    from transformers import SiglipModel

    base, config, _, after, _ = tuned
    out = huggingface.save(tmp_path / "out", config, after, base=base)
    rng = np.random.default_rng(3)
    batch = rng.standard_normal((2, 16, 16, 3)).astype(np.float32), rng.integers(2, 99, (3, 12))
    theirs = tiny.torch_features(SiglipModel.from_pretrained(out).eval(), *batch)
    assert tiny.difference(tiny.our_features(config, after, *batch), theirs) < 1e-5
