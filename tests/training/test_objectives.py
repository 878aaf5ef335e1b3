"""The contrastive losses against double loops in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_runs import with_foils

from negclip_jax.common.errors import InputError
from negclip_jax.training.objectives import (
    OBJECTIVES,
    anchor_loss,
    check_objective,
    contrastive_loss,
    distillation_loss,
    image_choice_loss,
    l2_normalise,
)
from negclip_jax.training.step import Objective

# One program instead of hundreds; where NaNs are searched for, operation by operation.
compiled = jax.jit(contrastive_loss)

B, K, D = 6, 3, 5
LOG_SCALE = 1.7
# Which of the two an accuracy chooses among.
DIRECTIONS = {"image_to_text_accuracy": "text", "text_to_image_accuracy": "image"}


@pytest.fixture(scope="module")
def features() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"image": (B, D), "text": (B, D), "foil": (B, K, D)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def foil_mask() -> np.ndarray:
    mask = np.random.default_rng(1).random((B, K)) < 0.5
    mask[0], mask[1] = False, True  # no foil at all, and all of them
    return mask


def reference(image, text, log_scale, foil=None, foil_mask=None, foil_weight=1.0) -> float:
    """Symmetric InfoNCE and the choice among own foils in float64, one logit at a time."""
    image, text = image.astype(np.float64), text.astype(np.float64)
    scale, total = np.exp(float(log_scale)), 0.0

    def logit(a, b) -> float:
        return scale * float(a @ b / np.sqrt(a @ a) / np.sqrt(b @ b))

    for i in range(len(image)):
        texts = [logit(image[i], text[j]) for j in range(len(text))]
        images = [logit(image[j], text[i]) for j in range(len(image))]
        own = logit(image[i], text[i])
        total += (np.log(np.sum(np.exp(texts))) + np.log(np.sum(np.exp(images)))) / 2 - own
        if foil is not None:
            own_foils = [k for k in range(foil.shape[1]) if foil_mask is None or foil_mask[i, k]]
            choices = [own] + [logit(image[i], foil[i, k].astype(np.float64)) for k in own_foils]
            total += foil_weight * (np.log(np.sum(np.exp(choices))) - own)
    return total / len(image)


def ours(features, log_scale=LOG_SCALE, *, loss=compiled, **arguments):
    text, truth = features["text"][:, None], None
    if "foil_mask" in arguments:
        text, truth = with_foils(features["text"], features["foil"], arguments.pop("foil_mask"))
    scale = jnp.float32(log_scale)
    return loss(features["image"], text, scale, truth_BxM=truth, **arguments)


def test_equals_a_double_loop(features):
    loss, _ = ours(features)
    expected = reference(features["image"], features["text"], LOG_SCALE)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_each_image_chooses_between_its_caption_and_its_own_foils(features, foil_mask, weight):
    for mask in (None, foil_mask):
        loss, _ = ours(features, foil_mask=mask, foil_weight=weight)
        arguments = (features["image"], features["text"], LOG_SCALE, features["foil"], mask)
        np.testing.assert_allclose(loss, reference(*arguments, weight), rtol=1e-6)


def test_a_foil_as_good_as_the_caption_shares_the_point_and_images_without_foils_have_none():
    # Image 0 is nearer to its foil, image 1 to its caption, image 2 to both alike, image 3 alone.
    image = np.eye(4, dtype=np.float32)
    text = image + 0.5
    foil = np.stack([image[0], image[2], text[2], image[3]])[:, None]
    mask = np.array([[True], [True], [True], [False]])
    features = {"image": image, "text": text, "foil": foil}
    _, metrics = ours(features, foil_mask=mask)
    assert float(metrics["foil_accuracy"]) == (0 + 1 + 1 / 2) / 3
    assert "foil_accuracy" not in ours(features)[1]
    _, metrics = ours(features, foil_mask=mask, mask_B=np.array([True, False, True, True]))
    np.testing.assert_allclose(metrics["foil_accuracy"], (0 + 1 / 2) / 2, rtol=1e-6)
    _, metrics = ours(features, foil_mask=mask, mask_B=np.array([False, False, False, True]))
    assert np.isnan(metrics["foil_accuracy"])


@pytest.mark.parametrize("collapsed", [("text",), ("image",), ("image", "text")])
def test_a_collapsed_model_is_right_by_chance(features, collapsed):
    same = {name: np.broadcast_to(features[name][:1], (B, D)) for name in collapsed}
    # As packing does: equal texts differ in their last bits.
    same = {name: x * (1 + np.arange(B)[:, None] * 1e-7) for name, x in same.items()}
    _, metrics = ours({**features, **same})
    chance = [name for name, of in DIRECTIONS.items() if of in collapsed]
    for name in chance:
        np.testing.assert_allclose(metrics[name], 1 / B, rtol=1e-6)
    mask = np.arange(B) < 4
    _, metrics = ours({**features, **same}, mask_B=mask)
    for name in chance:
        np.testing.assert_allclose(metrics[name], 1 / 4, rtol=1e-6)


def test_absent_foils_change_nothing(features):
    without, _ = ours(features)
    masked, _ = ours(features, foil_mask=np.zeros((B, K), bool))
    np.testing.assert_array_equal(without, masked)


def test_masked_rows_make_a_smaller_batch(features):
    mask = np.array([True, False, True, True, False, True])
    loss, metrics = ours(features, mask_B=mask)
    smaller = {name: x[mask] for name, x in features.items()}
    expected_loss, expected_metrics = ours(smaller)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6)


def test_masked_rows_with_foils(features, foil_mask):
    mask = np.array([True, True, False, True, False, True])
    loss, metrics = ours(features, mask_B=mask, foil_mask=foil_mask)
    smaller = {name: x[mask] for name, x in features.items()}
    expected, expected_metrics = ours(smaller, foil_mask=foil_mask[mask])
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(
        metrics["foil_accuracy"], expected_metrics["foil_accuracy"], rtol=1e-6
    )


def test_accuracies_count_rows_and_columns_apart():
    # Text 1 is the best match of images 0 and 1; image 0 of texts 0 and 1.
    image = np.array([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.2]], np.float32)
    text = np.array([[1.0, -1.0], [1.0, 0.1], [-1.0, 0.0]], np.float32)
    _, metrics = ours({"image": image, "text": text})
    similarity = l2_normalise(image) @ l2_normalise(text).T
    rows, columns = similarity.argmax(1), similarity.argmax(0)
    assert rows.tolist() == [1, 1, 2] and columns.tolist() == [0, 0, 2]
    np.testing.assert_allclose(metrics["image_to_text_accuracy"], 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["text_to_image_accuracy"], 2 / 3, rtol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_equal_finite_differences_of_the_loop(features, foil_mask, masked):
    keep = np.array([True, False, True, True, False, True]) if masked else np.ones(B, bool)
    inputs = features | {"scale": np.float32(LOG_SCALE)}
    eager = functools.partial(ours, loss=contrastive_loss)

    def loss(inputs):
        return eager(inputs, inputs["scale"], foil_mask=foil_mask, mask_B=jnp.asarray(keep))[0]

    def loss_without_foils(inputs):
        return eager(inputs, inputs["scale"], mask_B=jnp.asarray(keep))[0]

    def loop(inputs) -> float:
        parts = [inputs[name][keep] for name in ("image", "text")]
        return reference(*parts, inputs["scale"], inputs["foil"][keep], foil_mask[keep])

    with jax.debug_nans(True):  # not even on the way, where a person's search for one would stop
        gradient = jax.grad(loss)(inputs)
        jax.grad(loss_without_foils)(inputs)
    assert all(np.isfinite(g).all() for g in gradient.values())
    rng = np.random.default_rng(2)
    for name, value in inputs.items():
        direction = rng.normal(size=np.shape(value))
        step = 1e-5 * direction
        wide = {key: np.asarray(x, np.float64) for key, x in inputs.items()}
        up, down = loop(wide | {name: wide[name] + step}), loop(wide | {name: wide[name] - step})
        np.testing.assert_allclose(
            np.sum(gradient[name] * direction), (up - down) / 2e-5, rtol=1e-4, atol=1e-6
        )
    for name in ("image", "text", "foil"):
        assert not gradient[name][~keep].any(), f"a padding row moves {name}"
    assert not gradient["foil"][~foil_mask].any(), "an absent foil is trained"


def test_low_precision_features_give_a_float32_loss(features):
    low = {name: jnp.asarray(x, jnp.bfloat16) for name, x in features.items()}
    loss, metrics = ours(low, foil_mask=None)
    assert {x.dtype for x in [loss, *metrics.values()]} == {jnp.dtype("float32")}
    rounded = {name: np.asarray(x, np.float32) for name, x in low.items()}
    np.testing.assert_allclose(loss, ours(rounded, foil_mask=None)[0], rtol=1e-6)


def test_normalised_rows_have_length_one(features):
    lengths = np.linalg.norm(l2_normalise(features["image"]), axis=-1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-6)


def labelled(texts: int = 5) -> dict[str, np.ndarray]:
    """Features of a batch with a caption and texts of every truth, an image without any of them."""
    rng = np.random.default_rng(3)
    truth = rng.integers(-1, 2, (B, texts)).astype(np.int8)
    truth[:, 0], truth[0, 1:] = 1, 0
    holds = (truth < 0) & (rng.random((B, texts)) < 0.5)
    holds[:, 0] = True
    shapes = {"image": (B, D), "text": (B, texts, D)}
    made = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return made | {"truth": truth, "holds": holds}


def dense(batch, log_scale, keep, xp=np):
    """Truth-labelled contrast as written in its docstring, one true text at a time."""
    unit = {
        k: batch[k] / xp.linalg.norm(batch[k], axis=-1, keepdims=True) for k in ("image", "text")
    }
    logits = xp.exp(log_scale) * xp.einsum("id,jmd->ijm", unit["image"], unit["text"])

    def choice(own, others):
        return xp.log(xp.sum(xp.exp(xp.stack([own, *others]))) / xp.exp(own)) if others else 0.0

    total, rows = 0.0, np.flatnonzero(keep)
    for i in rows:
        texts = range(batch["truth"].shape[1])
        false = [logits[i, i, m] for m in texts if batch["truth"][i, m] < 0]
        others = [logits[i, j, m] for j in rows for m in texts if j != i and batch["holds"][j, m]]
        true = [logits[i, i, m] for m in texts if batch["truth"][i, m] > 0]
        total += sum(choice(own, false + others) for own in true) / 2
        total += choice(logits[i, i, 0], [logits[j, i, 0] for j in rows if j != i]) / 2
        total += 0.7 * sum(choice(own, false) for own in true) / len(true)
    return total / len(rows)


@pytest.mark.parametrize("masked", [False, True])
def test_truth_labelled_contrast_equals_the_dense_formula(masked):
    batch = labelled()
    keep = np.array([True, False, True, True, False, True]) if masked else np.ones(B, bool)
    labels = {"truth_BxM": batch["truth"], "holds_caption_BxM": batch["holds"]}
    truth, _ = OBJECTIVES["truth"]

    def ours(image, text, scale):
        more = {**labels, "mask_B": jnp.asarray(keep), "foil_weight": 0.7}
        return truth(image, text, scale, **more)[0]

    def theirs(image, text, scale):
        return dense(batch | {"image": image, "text": text}, scale, keep, jnp)

    inputs = (batch["image"], batch["text"], jnp.float32(LOG_SCALE))
    wide = {name: batch[name].astype(np.float64) for name in ("image", "text")}
    expected = dense(batch | wide, LOG_SCALE, keep)
    np.testing.assert_allclose(jax.jit(ours)(*inputs), expected, rtol=1e-6)
    with jax.debug_nans(True):
        gradients = jax.grad(ours, argnums=(0, 1, 2))(*inputs)
    expected = jax.jit(jax.grad(theirs, argnums=(0, 1, 2)))(*inputs)
    for found, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    unknown = (batch["truth"] == 0) | ~keep[:, None]
    assert not np.asarray(gradients[1])[unknown].any(), "an unknown text is trained"


def test_with_one_true_text_and_no_false_one_it_is_infonce(features):
    """Also where there are places for more texts that nothing is known of."""
    text = np.random.default_rng(4).normal(size=(B, 3, D)).astype(np.float32)
    text[:, 0] = features["text"]
    places = np.broadcast_to(np.array([1, 0, 0], np.int8), (B, 3))
    expected, expected_metrics = ours(features)
    for texts, labels in ((text[:, :1], None), (text[:, 0], None), (text, places)):
        scores = features["image"], texts, jnp.float32(LOG_SCALE)
        loss, metrics = jax.jit(OBJECTIVES["truth"][0])(*scores, truth_BxM=labels)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        for name, value in expected_metrics.items():
            np.testing.assert_array_equal(metrics[name], value)
    np.testing.assert_allclose(
        expected, reference(features["image"], features["text"], LOG_SCALE), rtol=1e-6
    )


def test_true_texts_share_a_point_with_false_ones_that_are_as_good():
    """Of two images one prefers one of its two true texts, the other ties with its false one."""
    image = np.eye(2, dtype=np.float32)
    text = np.stack([np.stack([image[0], image[1], image[0] + image[1]]), image[[1, 0, 1]]])
    truth = np.array([[1, 1, -1], [1, 0, -1]], np.int8)
    _, metrics = compiled(image, text, jnp.float32(LOG_SCALE), truth_BxM=truth)
    assert float(metrics["foil_accuracy"]) == ((1 + 0) / 2 + 1 / 2) / 2


def test_texts_without_labels_are_refused(features):
    text = np.repeat(features["text"][:, None], 2, axis=1)
    with pytest.raises(ValueError, match="truth_BxM says"):
        contrastive_loss(features["image"], text, jnp.float32(LOG_SCALE))


def test_anchor_is_the_mean_squared_distance_of_unit_features(features):
    base, keep = features["image"], np.array([True, False, True, True, False, True])
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (features["text"], base)]
    expected = np.mean(np.sum((unit[0] - unit[1])[keep] ** 2, axis=1))
    np.testing.assert_allclose(anchor_loss(features["text"], base, keep), expected, rtol=1e-6)
    np.testing.assert_allclose(anchor_loss(3 * base, base, keep), 0, atol=1e-12)


def divergence(batch, base, log_scale, keep) -> float:
    """KL of both directions in float64, over the pairs that count."""
    image, text, base = (
        x[keep].astype(np.float64) / np.linalg.norm(x[keep], axis=1, keepdims=True)
        for x in (batch["image"], batch["text"], base)
    )
    total = 0.0
    for p, q in ((image @ base.T, image @ text.T), (base @ image.T, text @ image.T)):
        p, q = (np.exp(np.exp(log_scale) * x) for x in (p, q))
        p, q = (x / x.sum(axis=1, keepdims=True) for x in (p, q))
        total += np.mean(np.sum(p * np.log(p / q), axis=1)) / 2
    return total


@pytest.mark.parametrize("masked", [False, True])
def test_distillation_is_the_divergence_from_the_base(features, masked):
    keep = np.array([True, False, True, True, False, True]) if masked else np.ones(B, bool)
    base = features["text"] + 0.5 * features["foil"][:, 0]

    def loss(text, scale):
        return distillation_loss(features["image"], text, base, scale, jnp.asarray(keep))

    text, scale = jnp.asarray(features["text"]), jnp.float32(LOG_SCALE)
    expected = divergence(features, base, LOG_SCALE, keep)
    np.testing.assert_allclose(loss(text, scale), expected, rtol=1e-5)
    np.testing.assert_allclose(loss(base, scale), 0, atol=1e-6)
    with jax.debug_nans(True):
        gradient, of_scale = jax.grad(loss, argnums=(0, 1))(text, scale)
    assert of_scale == 0 and not np.asarray(gradient)[~keep].any()
    direction = np.random.default_rng(2).normal(size=text.shape)
    wide = {k: x.astype(np.float64) for k, x in features.items()}
    ends = [
        divergence(wide | {"text": wide["text"] + sign * 1e-5 * direction}, base, LOG_SCALE, keep)
        for sign in (1, -1)
    ]
    slope = (ends[0] - ends[1]) / 2e-5
    np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=1e-3, atol=1e-6)


def test_each_text_chooses_between_two_images(features):
    rng = np.random.default_rng(3)
    texts, others = features["foil"], rng.normal(size=(B, K, D)).astype(np.float32)
    truth, counts = rng.choice([-1, 0, 1], (B, K)), rng.random((B, K)) < 0.7
    keep = np.array([True, False, True, True, True, True])
    truth[:3], counts[2] = [[1, -1, 0]], False  # the third image has no other

    def unit(x):
        return x.astype(np.float64) / np.linalg.norm(x)

    total, points = 0.0, []
    for i in np.flatnonzero(keep):
        losses = []
        for k in range(K):
            if counts[i, k] and truth[i, k]:
                own = unit(features["image"][i]) @ unit(texts[i, k])
                right, wrong = own, unit(others[i, k]) @ unit(texts[i, k])
                if truth[i, k] < 0:
                    right, wrong = wrong, right
                logits = np.exp(LOG_SCALE) * np.array([right, wrong])
                losses.append(np.log(np.exp(logits).sum()) - logits[0])
                points.append(right > wrong)
        total += np.mean(losses) if losses else 0.0
    arrays = (features["image"], texts, others, truth, counts)
    loss, accuracy = image_choice_loss(*arrays, jnp.float32(LOG_SCALE), keep)
    np.testing.assert_allclose(loss, total / keep.sum(), rtol=1e-5)
    np.testing.assert_allclose(accuracy, np.mean(points), rtol=1e-6)
    softer = image_choice_loss(*arrays, jnp.float32(LOG_SCALE), keep, np.exp(LOG_SCALE) / 2)
    bounded = image_choice_loss(*arrays, jnp.float32(LOG_SCALE - np.log(2)), keep, 1e3)
    np.testing.assert_allclose(softer, bounded, rtol=1e-6)
    assert abs(softer[0] - loss) > 1e-3 and softer[1] == accuracy
    same = np.broadcast_to(features["image"][:, None], others.shape)
    loss, accuracy = image_choice_loss(*arrays[:2], same, *arrays[3:], jnp.float32(3.0), keep)
    assert accuracy == 0.5, "two images that are alike share the point"
    nothing = image_choice_loss(*arrays[:4], counts & False, jnp.float32(3.0), keep)
    assert nothing[0] == 0 and np.isnan(nothing[1])


def test_an_objective_is_chosen_by_its_name():
    clip, siglip = {"logit_scale": 0}, {"logit_scale": 0, "logit_bias": 0}
    assert check_objective("contrastive", clip) == check_objective("contrastive", siglip)
    assert check_objective("sigmoid", siglip) == "sigmoid"
    with pytest.raises(InputError, match=r"train\.objective: 'clip' is none of contrastive, tru"):
        check_objective("clip", clip)
    message = (
        r"train\.objective=sigmoid needs logit_bias, .*can be trained with contrastive, truth$"
    )
    with pytest.raises(InputError, match=message):
        check_objective("sigmoid", clip)


def test_a_new_objective_is_a_function_and_a_line(features, monkeypatch):
    def distance(image_BxD, text_BxMxD, *, mask_B, **_):
        return jnp.abs(image_BxD - text_BxMxD[:, 0]).sum(), {"pairs": jnp.float32(len(image_BxD))}

    class Model(nnx.Module):
        def encode_text(self, text):
            return text

    monkeypatch.setitem(OBJECTIVES, "distance", (distance, ()))
    objective = Objective(nnx.split(Model())[0], (0.5,) * 3, (0.5,) * 3, name="distance")
    batch = {"feature": features["image"], "text": features["text"]}
    loss, metrics = objective.loss({}, batch)
    np.testing.assert_allclose(loss, np.abs(features["image"] - features["text"]).sum(), rtol=1e-6)
    assert metrics == {"pairs": B}
