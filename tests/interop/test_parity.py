"""Features equal those of transformers' torch CLIP, and each trap, if ignored, would show."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from interop import tiny
from transformers import CLIPConfig, CLIPModel

from negclip_jax.interop import huggingface


def text(**changes):
    return lambda c: dataclasses.replace(c, text=dataclasses.replace(c.text, **changes))


def vision(**changes):
    return lambda c: dataclasses.replace(c, vision=dataclasses.replace(c.vision, **changes))


# Trap: (their text config, their vision config, standard deviation of the weights, what a reader
# that ignores the trap would take instead). Activations differ between the towers throughout:
# one global activation, as other layouts have, would show.
TRAPS = {
    "gelu in text": ({"hidden_act": "gelu"}, {}, 0.2, text(hidden_act="quick_gelu")),
    "gelu in vision": ({}, {"hidden_act": "gelu"}, 0.2, vision(hidden_act="quick_gelu")),
    "gelu_new": ({"hidden_act": "gelu_new"}, {}, 0.3, text(hidden_act="gelu")),
    "tanh gelu": ({}, {"hidden_act": "gelu_pytorch_tanh"}, 0.3, vision(hidden_act="gelu")),
    "eps of text": ({"layer_norm_eps": 1e-3}, {}, 0.02, text(layer_norm_eps=1e-5)),
    "eps of vision": ({}, {"layer_norm_eps": 1e-3}, 0.02, vision(layer_norm_eps=1e-5)),
    "heads of text": ({"num_attention_heads": 8}, {}, 0.2, text(heads=2)),
    "heads of vision": ({}, {"num_attention_heads": 2}, 0.2, vision(heads=5)),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_config_values_that_change_the_arithmetic(trap, tmp_path):
    text_config, vision_config, std, ignore = TRAPS[trap]
    model = tiny.torch_clip(text_config, vision_config, std=std)
    config, params = tiny.load(tiny.saved(tmp_path, model))
    pixels, ids = tiny.inputs(config)
    images, texts = tiny.torch_features(model, pixels, ids)
    if text_config:
        encode, batch, theirs = tiny.our_texts, ids, texts
    else:
        encode, batch, theirs = tiny.our_images, pixels, images
    assert tiny.difference(encode(config, params, batch), theirs) < 1e-5
    ignored = ignore(config)
    assert ignored != config
    assert tiny.difference(encode(ignored, params, batch), theirs) > 1e-4


@pytest.mark.parametrize("eos", [2, 97], ids=["legacy largest id", "first end token"])
@pytest.mark.parametrize("row", ["ended", "added token", "no end token"])
def test_end_token_rules(eos, row, tmp_path):
    model = tiny.torch_clip({"eos_token_id": eos})
    config, params = tiny.load(tiny.saved(tmp_path, model))
    pixels, ids = tiny.inputs(config)
    if row == "added token":
        ids[:, 0] = 98  # an id above the end token's
    if row == "no end token":
        ids[ids == 97] = 5
    _, theirs = tiny.torch_features(model, pixels, ids)
    assert tiny.difference(tiny.our_texts(config, params, ids), theirs) < 1e-5
    other_rule = text(eos_token_id=97, pooling="first_eos" if eos == 2 else "argmax")(config)
    difference = tiny.difference(tiny.our_texts(other_rule, params, ids), theirs)
    assert difference < 1e-5 if row == "ended" else difference > 1e-2


@pytest.mark.parametrize("length", [5, 12])
def test_both_towers_and_shorter_rows(length, tmp_path):
    model = tiny.torch_clip()
    config, params = tiny.load(tiny.saved(tmp_path, model))
    batch = tiny.inputs(config, length=length)
    theirs = tiny.torch_features(model, *batch)
    assert tiny.difference(tiny.our_features(config, params, *batch), theirs) < 1e-5


def test_projection_size_of_the_towers_is_not_believed(tmp_path):
    wrong = {"projection_dim": 7}
    model = tiny.torch_clip(wrong, wrong, projection_dim=20)
    config, params = tiny.load(tiny.saved(tmp_path, model))
    assert config.projection_dim == 20
    pixels, ids = tiny.inputs(config)
    _, theirs = tiny.torch_features(model, pixels, ids)
    assert tiny.difference(tiny.our_texts(config, params, ids), theirs) < 1e-5
    believing = dataclasses.replace(config, projection_dim=7)
    with pytest.raises(huggingface.CheckpointError, match=r"float32\[20, 32\].*float\[7, 32\]"):
        huggingface.load_params(tmp_path, believing)


def test_image_size_that_is_no_multiple_of_the_patch(tmp_path):
    model = tiny.torch_clip(vision={"image_size": 18})
    config, params = tiny.load(tiny.saved(tmp_path, model))
    pixels, ids = tiny.inputs(config)
    theirs, _ = tiny.torch_features(model, pixels, ids)
    assert tiny.difference(tiny.our_images(config, params, pixels), theirs) < 1e-5


@pytest.mark.parametrize("name", ["query", "key", "value", "out"])
def test_transposed_square_matrix_would_show(name, tmp_path):
    """A square weight has the right shape either way round: only values can tell."""
    model = tiny.torch_clip()
    config, params = tiny.load(tiny.saved(tmp_path, model))
    pixels, ids = tiny.inputs(config)
    _, theirs = tiny.torch_features(model, pixels, ids)
    linear = params["text"]["blocks"]["attn"][name]
    linear["kernel"] = linear["kernel"].swapaxes(1, 2)
    assert tiny.difference(tiny.our_texts(config, params, ids), theirs) > 1e-2


@pytest.mark.parametrize("layers", [2, pytest.param(12, marks=pytest.mark.long)])
def test_full_size_vit_b_32_logits(layers, tmp_path):
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": layers}
    model = CLIPModel(CLIPConfig(text_config=sizes, vision_config=sizes)).eval()
    model.logit_scale.data.fill_(np.log(100))  # the released value, the hardest on logits
    try:
        config, params = tiny.load(tiny.saved(tmp_path / "b32", model))
    finally:
        shutil.rmtree(tmp_path / "b32")  # 605 MB, of 12 layers
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((2, 224, 224, 3)).astype(np.float32)
    ids = rng.integers(0, 49406, (3, 77))
    ids[[0, 1, 2], [4, 20, 76]] = 49407
    with torch.no_grad():
        images = torch.tensor(pixels).permute(0, 3, 1, 2)
        theirs = model(input_ids=torch.tensor(ids), pixel_values=images).logits_per_image.numpy()
    features = tiny.our_features(config, params, pixels, ids)
    image, text_ = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in features)
    logits = np.exp(params["logit_scale"]) * image @ text_.T
    assert np.abs(logits - theirs).max() < 1e-4
