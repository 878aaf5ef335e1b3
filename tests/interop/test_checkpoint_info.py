"""What is said of a model's arithmetic."""

import dataclasses

import pytest

from negclip_jax.interop import checkpoint_info
from negclip_jax.interop.files import CheckpointError
from negclip_jax.models import clip, siglip


def test_activation(tiny_config):
    assert checkpoint_info.describe_activation(tiny_config) == "quick_gelu"
    text = dataclasses.replace(tiny_config.text, hidden_act="gelu")
    mixed = dataclasses.replace(tiny_config, text=text)
    words = checkpoint_info.describe_activation(mixed)
    assert words == "gelu in the text tower, quick_gelu in the vision tower"
    same = checkpoint_info.with_activation(mixed, "gelu")
    assert checkpoint_info.describe_activation(same) == "gelu"
    assert dataclasses.replace(same, vision=mixed.vision) == mixed, "nothing else changes"
    with pytest.raises(CheckpointError, match="unknown activation 'relu'"):
        checkpoint_info.with_activation(mixed, "relu")


def test_pooling_and_preprocessing():
    config = clip.CLIPConfig()
    assert checkpoint_info.describe_pooling(config) == "the first token with id 49407"
    legacy = dataclasses.replace(config, text=clip.TextConfig(eos_token_id=2))
    assert checkpoint_info.describe_pooling(legacy) == "the first of the largest token id"
    assert checkpoint_info.describe_own_preprocessing(config) == "CLIP's own"
    other = siglip.SigLIPConfig()
    assert checkpoint_info.describe_pooling(other) == "the last position, padding included"
    assert checkpoint_info.describe_own_preprocessing(other) == "SigLIP's own"
