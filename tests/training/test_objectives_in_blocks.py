"""Logits in blocks of rows give the loss, metrics and gradients of all logits at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench.hlo import Program
from negclip_jax.runtime import sharding
from negclip_jax.training.objectives import (
    OBJECTIVES,
    WHOLE,
    Blocks,
    contrastive_loss,
    distillation_loss,
)

B, M, D = 48, 4, 20  # on 8 devices 6 rows each, a number no other axis has
ROW_MIB = 4 * B / 2**20
MESHES = {"one device": None, "8x1": (8, 1), "2x4": (2, 4)}


def blocks_of(mesh: str, rows: int) -> Blocks:
    """At most so many rows a block."""
    sizes = MESHES[mesh]
    placed = None if sizes is None else sharding.make_mesh(data=sizes[0], fsdp=sizes[1])
    return Blocks(placed, rows * ROW_MIB)


@pytest.fixture(scope="module")
def features() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"image": (B, D), "text": (B, M, D)}
    made = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    made["text"][7] = made["text"][8]  # a tie
    made["text"] += 0.5 * made["image"][:, None]
    return made | {"scale": np.float32(2.5), "bias": np.float32(-1.5)}


def labels() -> dict[str, np.ndarray]:
    """Texts of every truth beside the captions, some of which hold the caption."""
    rng = np.random.default_rng(1)
    truth, holds = rng.integers(-1, 2, (B, M)).astype(np.int8), rng.random((B, M)) < 0.5
    truth[:, 0], holds[:, 0] = 1, True
    return {"truth_BxM": truth, "holds_caption_BxM": holds & ((truth < 0) | (np.arange(M) == 0))}


LABELS = {**labels(), "mask_B": np.arange(B) % 5 != 0}


def loss_of(loss: str, blocks: Blocks):
    """Function of features to the loss with labels and masks, and to its metrics."""
    function, scalars = OBJECTIVES[loss]

    def compute(features):
        learned = [features[name.removeprefix("logit_")] for name in scalars]
        more = {**LABELS, "foil_weight": 0.7, "blocks": blocks}
        return function(features["image"], features["text"], *learned, **more)

    return compute


# Every mesh, and every loss on the one that has both axes, which is slow; the others are long.
GRID = [
    pytest.param(
        mesh,
        loss,
        marks=() if loss == "truth" else pytest.mark.slow if mesh == "2x4" else pytest.mark.long,
    )
    for mesh in MESHES
    for loss in OBJECTIVES
]


@pytest.fixture(scope="module")
def whole(features):
    """Function of a loss to what all logits at once give."""

    @functools.cache
    def compute(loss: str):
        function = jax.jit(jax.value_and_grad(loss_of(loss, WHOLE), has_aux=True))
        return jax.device_get(function(features))

    return compute


@pytest.mark.parametrize(("mesh", "loss"), GRID)
def test_blocks_change_nothing(features, whole, loss, mesh):
    compute = loss_of(loss, blocks_of(mesh, rows=2))
    (value, metrics), gradients = jax.jit(jax.value_and_grad(compute, has_aux=True))(features)
    (expected, expected_metrics), expected_gradients = whole(loss)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert metrics.keys() == expected_metrics.keys()
    for name, metric in metrics.items():
        np.testing.assert_allclose(metric, expected_metrics[name], rtol=1e-6, err_msg=name)
    assert 0.1 < metrics["image_to_text_accuracy"] < 1
    for name, gradient in gradients.items():
        largest = np.abs(expected_gradients[name]).max()
        assert name == "bias" or largest > 1e-3
        np.testing.assert_allclose(
            gradient, expected_gradients[name], rtol=1e-5, atol=1e-6 * largest, err_msg=name
        )


@pytest.mark.parametrize("mesh", ["one device", "2x4"])
def test_distillation_in_blocks(features, mesh):
    def compute(text, blocks):
        base, mask = features["text"][:, 1], jnp.asarray(LABELS["mask_B"])
        return distillation_loss(features["image"], text, base, features["scale"], mask, blocks)

    text = jnp.asarray(features["text"][:, 0])
    expected = jax.jit(jax.value_and_grad(lambda x: compute(x, WHOLE)))(text)
    blocks = blocks_of(mesh, rows=2)
    found = jax.jit(jax.value_and_grad(lambda x: compute(x, blocks)))(text)
    assert expected[0] > 0.1
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-6)


def test_rows_and_columns_that_do_not_count_have_no_gradient(features):
    compute = loss_of("truth", blocks_of("8x1", rows=2))
    gradients = jax.jit(jax.grad(lambda f: compute(f)[0]))(features)
    for name in ("image", "text"):
        assert not np.asarray(gradients[name])[~LABELS["mask_B"]].any()
        assert np.asarray(gradients[name])[LABELS["mask_B"]].any(axis=1).all()


@pytest.mark.parametrize(
    ("batch", "devices", "mebibytes", "count"),
    [
        (512, 1, 64.0, 1),
        (4096, 1, 64.0, 1),
        (32_768, 8, 64.0, 8),  # 512 MiB a device
        (32_768, 8, 512.0, 1),
        (32_768, 1, 64.0, 64),
        (48, 8, 4 * 48 * 5 / 2**20, 2),  # 6 rows a device, of which 5 would fit: 3
        (56, 8, 4 * 56 * 5 / 2**20, 7),  # 7 rows a device have no other divisor
        (56, 8, 0.0, 7),
        (8, 8, 0.0, 1),
    ],
)
def test_the_fewest_blocks_that_keep_the_bound(batch, devices, mebibytes, count):
    mesh = sharding.make_mesh(data=1, fsdp=devices, devices=jax.devices()[:devices])
    assert Blocks(mesh, mebibytes).count(batch) == count


def test_no_device_ever_holds_its_rows_of_the_logits():
    blocks = blocks_of("8x1", rows=2)
    placed = sharding.batch(blocks.mesh)
    matrix = jax.ShapeDtypeStruct((B, D), jnp.float32, sharding=placed)

    def program(blocks: Blocks) -> str:
        def loss(image, text):
            return contrastive_loss(image, text[:, None], jnp.float32(2.5), blocks=blocks)[0]

        return jax.jit(jax.grad(loss, argnums=(0, 1))).lower(matrix, matrix).compile().as_text()

    in_blocks, at_once = program(blocks), program(Blocks(blocks.mesh))
    assert f"f32[{B // 8},{B}]" in at_once and f"f32[{B // 8},{B}]" not in in_blocks
    assert f"f32[2,{B}]" in in_blocks and f"[{B},{B}]" not in in_blocks
    read = Program(in_blocks, devices=8)
    matrices = [c for c in read.collectives if c.size >= B * D * 4 / 8]
    # Texts are gathered once and their gradient is scattered once, outside of the loops.
    assert sorted((c.kind, c.times, c.loops) for c in matrices) == [
        ("all-gather", 1, 0),
        ("reduce-scatter", 1, 0),
    ]
    assert not [c for c in read.collectives if c.loops]
