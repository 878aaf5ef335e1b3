"""Directories of one tower, as transformers writes them and as it reads them."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import transformers
from interop import tiny
from safetensors.torch import load_file, save_file

from negclip_jax.interop import diffusers, huggingface
from negclip_jax.interop.files import CheckpointError
from negclip_jax.interop.readers import read_any


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """`(model of transformers, its directory, configuration, parameters)`."""
    model = tiny.torch_clip()
    directory = tiny.saved(tmp_path_factory.mktemp("full"), model)
    return model, directory, *tiny.load(directory)


def features(name, loaded, config):
    """The output that a class is for."""
    pixels, ids = tiny.inputs(config)
    with torch.no_grad():
        if "Text" in name:
            out = loaded(torch.tensor(ids))
            return (out.text_embeds if "Projection" in name else out.pooler_output).numpy()
        out = loaded(torch.tensor(pixels).permute(0, 3, 1, 2))
        return (out.image_embeds if "Projection" in name else out.pooler_output).numpy()


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("name", huggingface.ARCHITECTURES)
def test_transformers_reads_what_is_written(name, sharded, full, tmp_path):
    _, directory, config, params = full
    out = huggingface.save(
        tmp_path / "out",
        config,
        params,
        architecture=name,
        shard_bytes=20_000 if sharded else 10**9,
    )
    assert (len(list(out.glob("*.safetensors"))) > 1) == sharded
    cls = getattr(transformers, name)
    loaded, info = cls.from_pretrained(out, output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = features(name, cls.from_pretrained(directory), config)
    np.testing.assert_array_equal(features(name, loaded, config), expected)


def test_names_keep_the_prefix_that_older_versions_need(full, tmp_path):
    out = huggingface.save(tmp_path / "out", *full[2:], architecture="CLIPTextModel")
    names = set(load_file(out / "model.safetensors"))
    assert names and all(name.startswith("text_model.") for name in names)


@pytest.mark.parametrize("prefixed", [True, False])
@pytest.mark.parametrize("name", huggingface.ARCHITECTURES)
def test_a_tower_of_transformers_replaces_ours(name, prefixed, full, tmp_path):
    """A fresh CLIPTextModel of transformers has bare names, one of version 4 has the prefix."""
    _, _, config, params = full
    section = tiny.TEXT if "Text" in name else tiny.VISION
    settings = dict(section, projection_dim=24, hidden_act="gelu")
    torch.manual_seed(1)
    tower = getattr(transformers, name)(
        getattr(transformers, "CLIPTextConfig" if "Text" in name else "CLIPVisionConfig")(
            **settings
        )
    ).eval()
    tower.save_pretrained(tmp_path)
    prefix = "text_model." if "Text" in name else "vision_model."
    stored = load_file(tmp_path / "model.safetensors")
    if prefixed:
        stored = {
            k if prefix in k or "projection" in k else prefix + k: v for k, v in stored.items()
        }
    else:
        stored = {k.removeprefix(prefix): v for k, v in stored.items()}
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})

    config_of_both, merged = huggingface.merge_tower(tmp_path, config, params)
    part, other = ("text", "vision") if "Text" in name else ("vision", "text")
    assert getattr(config_of_both, part).hidden_act == "gelu"
    assert getattr(config_of_both, other) == getattr(config, other)
    tiny.assert_equal_params(merged[other], params[other])
    assert merged["logit_scale"] == params["logit_scale"]
    if "Projection" in name:
        pixels, ids = tiny.inputs(config)
        encode, batch = (tiny.our_texts, ids) if part == "text" else (tiny.our_images, pixels)
        expected = features(name, tower, config)
        assert tiny.difference(encode(config_of_both, merged, batch), expected) < 1e-5
    else:
        projection = "text_projection" if part == "text" else "visual_projection"
        np.testing.assert_array_equal(merged[projection], params[projection])


def test_read_any_takes_the_rest_from_a_base(full, tmp_path):
    _, directory, config, params = full
    shifted = {name: value + np.float32(1) for name, value in params["text"]["ln_final"].items()}
    tuned = params | {"text": params["text"] | {"ln_final": shifted}}
    name = "CLIPTextModelWithProjection"
    out = huggingface.save(tmp_path / "out", config, tuned, architecture=name)
    read_config, read, info = read_any(out, base=directory)
    assert read_config == config and f"the tower of {out} in {directory}" == info.label
    tiny.assert_equal_params(read, tuned)
    assert info.base is None and str(out / "config.json") in info.activation_source
    with pytest.raises(CheckpointError, match=r"text tower alone; give a full.*\(base=, or --"):
        read_any(out)


def test_a_diffusers_directory_is_read_by_its_text_encoder(full, tiny_vocabulary, tmp_path):
    _, directory, config, params = full
    out = diffusers.save(tmp_path / "out", config, params, tokenizer=tiny_vocabulary)
    tiny.assert_equal_params(read_any(out, base=directory)[1], params)
    read_config, read, info = read_any(out, tower_class="CLIPTextModelWithProjection")
    tiny.assert_equal_params(read["text"], params["text"])
    np.testing.assert_array_equal(read["text_projection"], params["text_projection"])
    assert (read_config.text, info.layout, info.base) == (config.text, "tower", None)
    assert info.tokenizer == out / "tokenizer"
    with pytest.raises(CheckpointError, match="text tower alone; give a full"):
        read_any(out)


def test_one_tower_without_a_base(full, tmp_path):
    _, _, config, params = full
    for name in ("CLIPTextModel", "CLIPVisionModelWithProjection"):
        huggingface.save(tmp_path / name, config, params, architecture=name)
    with pytest.raises(CheckpointError, match=r"no text_projection\.weight, .*take a CLIPTextMod"):
        read_any(tmp_path / "CLIPTextModel", tower_class="CLIPTextModelWithProjection")
    with pytest.raises(CheckpointError, match="holds a vision tower, and a CLIPTextModel is a te"):
        read_any(tmp_path / "CLIPVisionModelWithProjection", tower_class="CLIPTextModel")


def test_tokenizer_and_preprocessor_go_along(full, tiny_vocabulary, tmp_path):
    _, directory, config, params = full
    text = huggingface.save(
        tmp_path / "text", config, params, architecture="CLIPTextModel", tokenizer=tiny_vocabulary
    )
    assert (text / "vocab.json").read_bytes() == (tiny_vocabulary / "vocab.json").read_bytes()
    vision = huggingface.save(
        tmp_path / "vision", config, params, architecture="CLIPVisionModel", base=directory
    )
    settings = json.loads((vision / "preprocessor_config.json").read_text())
    assert settings["crop_size"] == {"height": 16, "width": 16}


def test_towers_that_do_not_fit(full, tmp_path):
    _, directory, config, params = full
    out = huggingface.save(tmp_path / "out", config, params, architecture="CLIPTextModel")
    wider = dataclasses.replace(config, text=dataclasses.replace(config.text, width=64))
    with pytest.raises(CheckpointError, match="32 wide where the model's projection takes 64"):
        huggingface.merge_tower(out, wider, params)
    with pytest.raises(CheckpointError, match="model_type is 'clip', not of one tower"):
        huggingface.merge_tower(directory, config, params)
    with pytest.raises(CheckpointError, match="'CLIPText' is not one of CLIPTextModel,"):
        huggingface.save(tmp_path / "x", config, params, architecture="CLIPText")
    settings = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(settings | {"hidden_act": "relu"}))
    with pytest.raises(CheckpointError, match=r"config\.json: unknown activation 'relu'"):
        huggingface.merge_tower(out, config, params)
