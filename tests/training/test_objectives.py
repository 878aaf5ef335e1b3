"""The contrastive loss against a double loop in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from negclip_jax.common.errors import InputError
from negclip_jax.training.objectives import (
    OBJECTIVES,
    check_objective,
    contrastive_loss,
    l2_normalise,
)
from negclip_jax.training.step import Objective

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


def ours(features, log_scale=LOG_SCALE, **arguments):
    foil = features.get("foil") if "foil_mask_BxK" in arguments else None
    return contrastive_loss(
        features["image"], features["text"], jnp.float32(log_scale), foil_BxKxD=foil, **arguments
    )


def test_equals_a_double_loop(features):
    loss, _ = ours(features)
    expected = reference(features["image"], features["text"], LOG_SCALE)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_each_image_chooses_between_its_caption_and_its_own_foils(features, foil_mask, weight):
    for mask in (None, foil_mask):
        loss, _ = ours(features, foil_mask_BxK=mask, foil_weight=weight)
        arguments = (features["image"], features["text"], LOG_SCALE, features["foil"], mask)
        np.testing.assert_allclose(loss, reference(*arguments, weight), rtol=1e-6)


def test_a_foil_as_good_as_the_caption_shares_the_point_and_images_without_foils_have_none():
    # Image 0 is nearer to its foil, image 1 to its caption, image 2 to both alike, image 3 alone.
    image = np.eye(4, dtype=np.float32)
    text = image + 0.5
    foil = np.stack([image[0], image[2], text[2], image[3]])[:, None]
    mask = np.array([[True], [True], [True], [False]])
    features = {"image": image, "text": text, "foil": foil}
    _, metrics = ours(features, foil_mask_BxK=mask)
    assert float(metrics["foil_accuracy"]) == (0 + 1 + 1 / 2) / 3
    assert "foil_accuracy" not in ours(features)[1]
    _, metrics = ours(features, foil_mask_BxK=mask, mask_B=np.array([True, False, True, True]))
    np.testing.assert_allclose(metrics["foil_accuracy"], (0 + 1 / 2) / 2, rtol=1e-6)
    _, metrics = ours(features, foil_mask_BxK=mask, mask_B=np.array([False, False, False, True]))
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
    masked, _ = ours(features, foil_mask_BxK=np.zeros((B, K), bool))
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
    loss, metrics = ours(features, mask_B=mask, foil_mask_BxK=foil_mask)
    smaller = {name: x[mask] for name, x in features.items()}
    expected, expected_metrics = ours(smaller, foil_mask_BxK=foil_mask[mask])
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

    def loss(inputs):
        return contrastive_loss(
            inputs["image"],
            inputs["text"],
            inputs["scale"],
            foil_BxKxD=inputs["foil"],
            foil_mask_BxK=foil_mask,
            mask_B=jnp.asarray(keep),
        )[0]

    def loss_without_foils(inputs):
        features = (inputs["image"], inputs["text"], inputs["scale"])
        return contrastive_loss(*features, mask_B=jnp.asarray(keep))[0]

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
    loss, metrics = ours(low, foil_mask_BxK=None)
    assert {x.dtype for x in [loss, *metrics.values()]} == {jnp.dtype("float32")}
    rounded = {name: np.asarray(x, np.float32) for name, x in low.items()}
    np.testing.assert_allclose(loss, ours(rounded, foil_mask_BxK=None)[0], rtol=1e-6)


def test_normalised_rows_have_length_one(features):
    lengths = np.linalg.norm(l2_normalise(features["image"]), axis=-1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-6)


def test_an_objective_is_chosen_by_its_name():
    clip, siglip = {"logit_scale": 0}, {"logit_scale": 0, "logit_bias": 0}
    assert check_objective("contrastive", clip) == check_objective("contrastive", siglip)
    assert check_objective("sigmoid", siglip) == "sigmoid"
    with pytest.raises(InputError, match=r"train\.objective: 'clip' is none of contrastive, sig"):
        check_objective("clip", clip)
    message = r"train\.objective=sigmoid needs logit_bias, .*can be trained with contrastive$"
    with pytest.raises(InputError, match=message):
        check_objective("sigmoid", clip)


def test_a_new_objective_is_a_function_and_a_line(features, monkeypatch):
    def distance(image_BxD, text_BxD, *, mask_B, **_):
        return jnp.abs(image_BxD - text_BxD).sum(), {"pairs": jnp.float32(len(image_BxD))}

    class Model(nnx.Module):
        def encode_text(self, text):
            return text

    monkeypatch.setitem(OBJECTIVES, "distance", (distance, ()))
    objective = Objective(nnx.split(Model())[0], (0.5,) * 3, (0.5,) * 3, name="distance")
    batch = {"feature": features["image"], "text": features["text"]}
    loss, metrics = objective.loss({}, batch)
    np.testing.assert_allclose(loss, np.abs(features["image"] - features["text"]).sum(), rtol=1e-6)
    assert metrics == {"pairs": B}
