"""SigLIP against transformers' SiglipModel: features, logits, weights both ways."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from interop import tiny
from safetensors.torch import load_file

from negclip_jax.interop import diffusers, huggingface, open_clip, openai
from negclip_jax.interop.files import CheckpointError
from negclip_jax.models import clip, siglip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """`(model of transformers, its directory, configuration, parameters)`."""
    model = tiny.torch_siglip()
    directory = tiny.saved(tmp_path_factory.mktemp("siglip") / "base", model)
    return model, directory, *tiny.load(directory)


@pytest.fixture(scope="module")
def batch():
    """Pixels, and ids padded to the full length with 1."""
    rng = np.random.default_rng(0)
    ids = rng.integers(2, 99, (4, 12))
    for row, length in enumerate((3, 7, 11, 12)):
        ids[row, length:] = 1
    return rng.standard_normal((3, 16, 16, 3)).astype(np.float32), ids


def torch_output(model, pixels, ids):
    images = torch.tensor(pixels).permute(0, 3, 1, 2)
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids), pixel_values=images)


def test_features_and_logits(saved, batch):
    model, _, config, params = saved
    theirs = torch_output(model, *batch)
    ours = tiny.our_features(config, params, *batch)
    expected = tiny.torch_features(model, *batch)
    assert tiny.difference(ours, expected) < 1e-5
    image, text = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in ours)
    logits = np.exp(params["logit_scale"]) * image @ text.T + params["logit_bias"]
    assert tiny.difference(logits, theirs.logits_per_image.numpy()) < 1e-4


def test_config_is_read_as_transformers_reads_it(saved):
    config = saved[2]
    assert config.text == siglip.SigLIPTextConfig(
        width=32, layers=2, heads=4, mlp_width=48, vocab_size=99, context_length=12
    )
    assert config.vision.positions == 16 and config.projection_dim == 40
    assert config.text.hidden_act == "gelu_pytorch_tanh" and config.vision.layer_norm_eps == 1e-6


def test_numerics_that_a_config_changes(batch, tmp_path):
    model = tiny.torch_siglip({"hidden_act": "gelu"}, {"layer_norm_eps": 1e-2})
    config, params = tiny.load(tiny.saved(tmp_path, model))
    expected = tiny.torch_features(model, *batch)
    assert tiny.difference(tiny.our_features(config, params, *batch), expected) < 1e-5


@pytest.mark.parametrize(("row", "least"), [("causal", 1e-2), ("pad", 1e-2), ("head", 1e-2)])
def test_what_clip_does_would_show(row, least, saved, batch, tmp_path):
    """Each difference from CLIP, if it were ignored, moves the features."""
    model, _, config, params = saved
    pixels, ids = batch
    images, texts = tiny.torch_features(model, pixels, ids)
    graphdef, _ = clip.abstract(config)

    @jax.jit
    def like_clip(params):
        built = nnx.merge(graphdef, params)
        built.text.config = dataclasses.replace(config.text, causal=True)
        causal = built.text_projection(built.text(ids))
        return causal, built.vision.ln_post(built.vision._embed_patches(pixels))[:, 0]

    causal, first = like_clip(params)
    if row == "causal":
        assert tiny.difference(np.asarray(causal), texts) > least
    elif row == "pad":
        changed = np.where(ids == 1, 2, ids)
        assert np.abs(tiny.our_texts(config, params, changed) - texts)[:3].max() > least
    else:
        assert tiny.difference(np.asarray(first), images) > least


def test_shorter_rows_are_another_input(saved, batch):
    config, params = saved[2:]
    with pytest.raises(ValueError, match="11 tokens a row, but the model reads exactly 12"):
        tiny.our_texts(config, params, batch[1][:, :11])
    with pytest.raises(ValueError, match=r"data\.packing=False"):
        tiny.our_texts(config, params, {"ids": batch[1]})


def test_export_is_bit_equal_and_complete(saved, tmp_path):
    model, directory, config, params = saved
    out = huggingface.save(tmp_path / "out", config, params, base=directory)
    written, original = (load_file(d / "model.safetensors") for d in (out, directory))
    assert set(written) == set(original) == set(model.state_dict())
    for name, tensor in original.items():
        assert written[name].shape == tensor.shape and torch.equal(written[name], tensor), name
    _, info = transformers.SiglipModel.from_pretrained(out, output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (out / "config.json").read_bytes() == (directory / "config.json").read_bytes()


def test_trained_text_tower_goes_back(saved, batch, tmp_path):
    _, directory, config, params = saved
    tuned = jax.tree.map(lambda x: x + np.float32(1e-3), params["text"])
    tuned = params | {"text": tuned}
    out = huggingface.save(tmp_path / "out", config, tuned, base=directory)
    loaded = transformers.SiglipModel.from_pretrained(out).eval()
    expected = tiny.our_features(config, tuned, *batch)
    assert tiny.difference(tiny.torch_features(loaded, *batch), expected) < 1e-5


def test_save_without_a_base(saved, tmp_path):
    _, _, config, params = saved
    out = huggingface.save(tmp_path / "out", config, params)
    assert huggingface.read_config(out) == config
    model, info = transformers.AutoModel.from_pretrained(out, output_loading_info=True)
    assert isinstance(model, transformers.SiglipModel)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.parametrize("layout", [openai, open_clip, diffusers])
def test_layouts_of_clip_refuse_it(layout, saved, tmp_path):
    with pytest.raises(CheckpointError, match=r"this is a SigLIP: write it with --layout=hugging"):
        layout.save(tmp_path / "out", *saved[2:])


REFUSED = {
    "no head": ({"vision_config": {"vision_use_head": False}}, "vision_use_head true"),
    "heads": ({"text_config": {"num_attention_heads": 7}}, "768 is not divisible by 7"),
    "projection": ({"text_config": {"projection_size": 9}}, "projects to 9, but features of the"),
    "section": ({"text_config": "big"}, "text_config is 'big', not an object"),
    "type": ({"text_config": {"hidden_size": "x"}}, "text_config.hidden_size is 'x', which is"),
    "NaFlex": (
        {"model_type": "siglip2", "vision_config": {"hidden_size": 60}},
        "projects to 768, but features of the vision tower have 60 numbers",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_models_are_refused(case, tmp_path):
    content, reason = REFUSED[case]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip"} | content))
    with pytest.raises(CheckpointError, match=reason):
        huggingface.read_config(tmp_path)


def test_defaults_are_the_base_model(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    assert huggingface.read_config(tmp_path) == siglip.SigLIPConfig()
    theirs = transformers.SiglipConfig()
    for ours, section in (
        (siglip.SigLIPTextConfig(), theirs.text_config),
        (siglip.SigLIPVisionConfig(), theirs.vision_config),
    ):
        assert (ours.width, ours.layers, ours.heads, ours.mlp_width, ours.hidden_act) == (
            section.hidden_size,
            section.num_hidden_layers,
            section.num_attention_heads,
            section.intermediate_size,
            section.hidden_act,
        )
    assert theirs.text_config.max_position_embeddings == siglip.SigLIPTextConfig().context_length
    assert theirs.vision_config.patch_size == siglip.SigLIPVisionConfig().patch_size
