"""Counted operations against those of XLA and of other ways to count; of a batch in any form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from negclip_jax.data.packing import Packing, Ragged
from negclip_jax.models import clip, flops
from negclip_jax.models.flops import StepFlops


@pytest.fixture(scope="module")
def config():
    return clip.CLIPConfig(
        text=clip.TextConfig(width=128, heads=2, mlp_width=512, layers=2, vocab_size=64),
        vision=clip.VisionConfig(
            width=128, heads=2, mlp_width=512, layers=2, image_size=64, patch_size=16
        ),
        projection_dim=96,
    )


def analysed(config, function, shape, dtype) -> float:
    graphdef, params = clip.abstract(config)

    def run(params, x):
        return getattr(nnx.merge(graphdef, params), function)(x)

    compiled = jax.jit(run).lower(params, jax.ShapeDtypeStruct(shape, dtype)).compile()
    return compiled.cost_analysis()["flops"]


def test_vision_forward_is_what_xla_counts(config):
    """XLA counts a loop's body once and elementwise work too, so one block of two is looped."""
    config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, layers=2))
    counted = 4 * flops.vision_forward(config)
    width, mlp, positions = 128, 512, config.vision.positions
    # The last block runs at the class token alone: its queries, output and MLP elsewhere are saved.
    saved = 4 * (positions - 1) * (4 * width**2 + 4 * width * mlp + 4 * width * positions)
    seen = analysed(config, "encode_image", (4, 64, 64, 3), jnp.float32)
    assert counted - saved == pytest.approx(seen, rel=0.05)


def test_text_forward_of_one_length_written_out(config):
    length, width, mlp, layers = 7, 128, 512, 2
    block = length * (4 * 2 * width**2 + 2 * 2 * width * mlp)
    scores = sum(2 * 2 * width * (i + 1) for i in range(length))
    expected = layers * (block + scores) + 2 * width * 96
    assert flops.text_forward(config.text, 96, np.array([length])) == expected


def test_what_is_read_is_less_and_agrees_where_all_is_read(config):
    lengths = np.array([5, 9])
    full = flops.text_forward(config.text, 96, lengths)
    read = flops.text_forward_read(config.text, 96, lengths)
    assert 0.5 * full < read < full
    one_token = np.array([1, 1])
    assert flops.text_forward_read(config.text, 96, one_token) == pytest.approx(
        flops.text_forward(config.text, 96, one_token)
    )


@pytest.fixture(scope="module")
def texts(tiny_config) -> Ragged:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 20, 16)
    ids = rng.integers(0, 500, lengths.sum()).astype(np.int32)
    ids[np.cumsum(lengths) - 1] = tiny_config.text.eos_token_id
    return Ragged(ids, np.concatenate([[0], np.cumsum(lengths)]))


@pytest.fixture(scope="module")
def forward(tiny_config, texts) -> float:
    return flops.text_forward(tiny_config.text, tiny_config.projection_dim, texts.lengths)


def test_padded_and_packed_captions_are_the_same_work(tiny_config, texts, forward):
    work = StepFlops(tiny_config, trains_text=True, trains_vision=False)
    captions = np.arange(16)
    packing = Packing(per_shard=8, row_length=32, max_captions_per_row=4, rows=9, row_step=1)
    for text in (texts.padded(captions, 24), packing.pack(texts, captions)):
        assert work({"text": text, "feature": np.zeros((16, 40))}) == 3 * forward


def test_images_count_where_they_are_encoded(tiny_config, texts, forward):
    images = np.zeros((16, 32, 32, 3), np.uint8)
    batch = {"text": texts.padded(np.arange(16), 24), "image": images}
    vision = 16 * flops.vision_forward(tiny_config)
    assert StepFlops(tiny_config, True, False)(batch) == pytest.approx(3 * forward + vision)
    assert StepFlops(tiny_config, True, True)(batch) == pytest.approx(3 * (forward + vision))


def test_what_is_trained_is_read_from_the_tree(tiny_config):
    trainable = {
        "text": {"a": np.array([False, True])},
        "text_projection": False,
        "vision": {"a": np.array([False, False])},
        "visual_projection": np.array(False),
        "logit_scale": True,
    }
    assert StepFlops.of(tiny_config, trainable) == StepFlops(tiny_config, True, False)
