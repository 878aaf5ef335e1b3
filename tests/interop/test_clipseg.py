"""The text tower under CLIPSeg's names, and which towers fit."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_clipseg import write_clip, write_clipseg

from negclip_jax.interop import clipseg, huggingface
from negclip_jax.interop.files import CheckpointError
from negclip_jax.models.siglip import SigLIPConfig


@pytest.fixture(scope="module")
def directories(tiny_vocabulary, tmp_path_factory):
    """A CLIPSeg, and a CLIP with its weights."""
    path = tmp_path_factory.mktemp("clipseg")
    theirs = write_clipseg(path / "clipseg", tiny_vocabulary)
    return theirs, write_clip(path / "clip", theirs, tiny_vocabulary)


@pytest.fixture(scope="module")
def model(directories):
    config = huggingface.read_config(directories[1])
    return config, huggingface.load_params(directories[1], config)


def test_names_and_numbers_are_clipsegs(directories, model):
    stored = load_file(directories[0] / "model.safetensors")
    found = clipseg.text_tensors(*model)
    wanted = {name for name in stored if name.startswith(clipseg.TEXT_PREFIXES)}
    assert set(found) == wanted and len(wanted) > 30
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor, stored[name])
        assert tensor.flags.c_contiguous and tensor.dtype == np.float32


def test_its_own_tower_fits_and_is_related(directories, model):
    config = clipseg.read_config(directories[0])
    clipseg.check_fits(config, model[0], "same")
    stored = load_file(directories[0] / "model.safetensors")
    assert clipseg.is_related(stored[clipseg.POSITIONS], model[1])
    noise = np.random.default_rng(0).standard_normal(stored[clipseg.POSITIONS].shape)
    assert not clipseg.is_related(noise, model[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 64}, "64 wide where CLIPSeg's has 32"),
        ({"layers": 3}, "3 blocks where CLIPSeg's has 2"),
        ({"hidden_act": "gelu"}, "gelu activation where CLIPSeg's has quick_gelu"),
        ({"context_length": 77}, "77 positions where CLIPSeg's has 24"),
        ({"layer_norm_eps": 1e-6}, "1e-06 as epsilon of LayerNorm where CLIPSeg's has 1e-05"),
    ],
)
def test_a_tower_that_does_not_fit_is_refused_with_both_numbers(
    directories, model, changes, message
):
    config = model[0]
    other = dataclasses.replace(config, text=dataclasses.replace(config.text, **changes))
    with pytest.raises(CheckpointError, match=message):
        clipseg.check_fits(clipseg.read_config(directories[0]), other, "other")


def test_another_family_or_directory_is_refused(directories, model, tmp_path):
    config = clipseg.read_config(directories[0])
    with pytest.raises(CheckpointError, match="CLIPSeg holds CLIPs, and this is a SigLIP"):
        clipseg.check_fits(config, SigLIPConfig(), "siglip")
    with pytest.raises(CheckpointError, match="model_type is 'clip', not 'clipseg'"):
        clipseg.read_config(directories[1])
    raw = {"model_type": "clipseg", "text_config": {"hidden_size": "wide"}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=r"text_config\.hidden_size"):
        clipseg.read_config(tmp_path)
