"""What is said of a model's arithmetic."""

import dataclasses

import pytest

from negclip_jax.interop import origin
from negclip_jax.interop.files import CheckpointError
from negclip_jax.models import clip, siglip


def test_activation(tiny_config):
    assert origin.describe_activation(tiny_config) == "quick_gelu"
    text = dataclasses.replace(tiny_config.text, hidden_act="gelu")
    mixed = dataclasses.replace(tiny_config, text=text)
    words = origin.describe_activation(mixed)
    assert words == "gelu in the text tower, quick_gelu in the vision tower"
    same = origin.with_activation(mixed, "gelu")
    assert origin.describe_activation(same) == "gelu"
    assert dataclasses.replace(same, vision=mixed.vision) == mixed, "nothing else changes"
    with pytest.raises(CheckpointError, match="unknown activation 'relu'"):
        origin.with_activation(mixed, "relu")


def test_pooling_and_preprocessing():
    config = clip.CLIPConfig()
    assert origin.describe_pooling(config) == "the first token with id 49407"
    legacy = dataclasses.replace(config, text=clip.TextConfig(eos_token_id=2))
    assert origin.describe_pooling(legacy) == "the first of the largest token id"
    assert origin.describe_own_preprocessing(config) == "CLIP's own"
    other = siglip.SigLIPConfig()
    assert origin.describe_pooling(other) == "the last position, padding included"
    assert origin.describe_own_preprocessing(other) == "SigLIP's own"
