"""The text tower in Stable Diffusion pipelines."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from interop import tiny
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from negclip_jax.interop import diffusers
from negclip_jax.interop.files import CheckpointError
from negclip_jax.interop.readers import read_any


@pytest.fixture(scope="module")
def full(tmp_path_factory, tiny_vocabulary):
    """`(model of transformers, configuration, parameters, export)`."""
    model = tiny.torch_clip({"hidden_act": "gelu"})
    config, params = tiny.load(tiny.saved(tmp_path_factory.mktemp("full"), model))
    out = tmp_path_factory.mktemp("out") / "sd"
    return model, config, params, diffusers.save(out, config, params, tokenizer=tiny_vocabulary)


def test_both_classes_of_pipelines_read_it(full):
    """SD 1.x takes all states of CLIPTextModel, SDXL the projection as well."""
    model, config, _, out = full
    _, ids = tiny.inputs(config)
    with torch.no_grad():
        expected = model.text_model(torch.tensor(ids))
        states = CLIPTextModel.from_pretrained(out / "text_encoder")(torch.tensor(ids))
        _, texts = tiny.torch_features(model, *tiny.inputs(config))
        encoder = CLIPTextModelWithProjection.from_pretrained(out / "text_encoder")
        projected = encoder(torch.tensor(ids), output_hidden_states=True)
    assert torch.equal(states.last_hidden_state, expected.last_hidden_state)
    np.testing.assert_array_equal(projected.text_embeds.numpy(), texts)
    assert encoder.config.hidden_act == "gelu"
    assert (out / "tokenizer" / "merges.txt").is_file()


def test_reads_back(full):
    _, config, params, out = full
    read_config, read, _ = read_any(out, tower_class=diffusers.ARCHITECTURE)
    assert read_config.text == config.text and read_config.vision.width == 1
    tiny.assert_equal_params(read["text"], params["text"])
    np.testing.assert_array_equal(read["text_projection"], params["text_projection"])


def test_an_earlier_export_is_replaced_and_no_other_folder(full, tmp_path):
    _, config, params, _ = full
    out = diffusers.save(tmp_path / "out", config, params)
    assert not (out / "tokenizer").exists()
    diffusers.save(out, config, params, dtype="float16", overwrite=True)
    assert CLIPTextModel.from_pretrained(out / "text_encoder").dtype == torch.float16
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(CheckpointError, match="not an earlier export"):
        diffusers.save(tmp_path / "other", config, params, overwrite=True)


@pytest.mark.parametrize(
    ("width", "words", "line"),
    [
        (768, "fits Stable Diffusion 1.x", "StableDiffusionPipeline.from_pretrained"),
        (1280, "SDXL as its second", "text_encoder_2=encoder"),
        (512, "fits neither", "text_encoder=encoder"),
    ],
)
def test_says_which_pipelines_fit(width, words, line, full):
    config = full[1]
    text = dataclasses.replace(config.text, width=width)
    config = dataclasses.replace(config, text=text)
    assert re.match(f"{width} wide: .*{words}", diffusers.fitting_pipelines(config))
    assert line in diffusers.usage(config) and len(diffusers.usage(config).splitlines()) == 3
