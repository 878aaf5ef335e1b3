"""Operations of a batch, whatever form its captions have."""

import numpy as np
import pytest

from negclip_jax.data.packing import Packing, Ragged
from negclip_jax.models import flops
from negclip_jax.training.work import StepWork


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
    work = StepWork(tiny_config, trains_text=True, trains_vision=False)
    captions = np.arange(16)
    packing = Packing(per_shard=8, row_length=32, slots=4, rows=9, row_step=1)
    for text in (texts.padded(captions, 24), packing.pack(texts, captions)):
        assert work({"text": text, "feature": np.zeros((16, 40))}) == 3 * forward


def test_images_count_where_they_are_encoded(tiny_config, texts, forward):
    images = np.zeros((16, 32, 32, 3), np.uint8)
    batch = {"text": texts.padded(np.arange(16), 24), "image": images}
    vision = 16 * flops.vision_forward(tiny_config)
    assert StepWork(tiny_config, True, False)(batch) == pytest.approx(3 * forward + vision)
    assert StepWork(tiny_config, True, True)(batch) == pytest.approx(3 * (forward + vision))


def test_what_is_trained_is_read_from_the_tree(tiny_config):
    trainable = {
        "text": {"a": np.array([False, True])},
        "text_projection": False,
        "vision": {"a": np.array([False, False])},
        "visual_projection": np.array(False),
        "logit_scale": True,
    }
    assert StepWork.of(tiny_config, trainable) == StepWork(tiny_config, True, False)
