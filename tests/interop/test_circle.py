"""Every pair of layouts: the real library computes the same, and each tensor comes back."""

import functools
import itertools

import numpy as np
import pytest
import torch
from interop import libraries, tiny
from safetensors.torch import load_file
from transformers import CLIPModel

from negclip_jax.interop import huggingface, open_clip, openai
from negclip_jax.interop.readers import read_any

SAVE = {
    "huggingface": huggingface.save,
    "openai": openai.save,
    "open_clip": open_clip.save,
    "open_clip text.*": functools.partial(open_clip.save, architecture="CustomTextCLIP"),
}


@pytest.fixture(scope="module")
def model():
    return tiny.torch_clip(tiny.OPENAI_TEXT, tiny.OPENAI_VISION, std=0.05)


@pytest.fixture(scope="module")
def exports(model, tmp_path_factory):
    """The model in every layout, written from transformers' own file."""
    folder = tmp_path_factory.mktemp("exports")
    config, params, _ = read_any(tiny.saved(folder / "base", model))
    return {name: save(folder / name, config, params) for name, save in SAVE.items()}


def logits(layout, directory, pixels, ids):
    """Of the library that a layout is for, with the weights as they are in the file."""
    images, texts = torch.tensor(pixels).permute(0, 3, 1, 2), torch.tensor(ids)
    with torch.no_grad():
        if layout == "huggingface":
            return tiny.torch_logits(CLIPModel.from_pretrained(directory).eval(), pixels, ids)
        if layout == "openai":
            path = directory / "model.pt"
            model, _ = libraries.load("clip").load(str(path), device="cpu")
            model.float().load_state_dict(torch.load(path, weights_only=True))
            return model(images, texts)[0].numpy()
        model = libraries.load("open_clip").create_model(f"local-dir:{directory}").eval()
        image, text, scale = model(images, texts)[:3]
        return (scale * image @ text.T).numpy()


@pytest.mark.parametrize(("source", "target"), itertools.product(SAVE, SAVE))
def test_every_pair(source, target, model, exports, tmp_path):
    config, params, info = read_any(exports[source])
    out = SAVE[target](tmp_path / "out", config, params, base=info.base)
    batch = tiny.inputs(config)
    expected = tiny.torch_logits(model, *batch)
    assert tiny.difference(logits(target, out, *batch), expected) < 1e-4
    tiny.assert_equal_params(read_any(out)[1], params)


def test_full_circle_is_bit_equal(model, exports, tmp_path):
    """All layouts one after the other, and the last file equals the first, tensor by tensor."""
    directory = exports["huggingface"]
    config = read_any(directory)[0]
    for i, layout in enumerate(("openai", *SAVE, "openai", "huggingface")):
        read, params, info = read_any(directory)
        assert read == config
        directory = SAVE[layout](tmp_path / str(i), read, params, base=info.base)
    first, last = (load_file(d / "model.safetensors") for d in (exports["huggingface"], directory))
    assert set(first) == set(last) == set(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(last[name], tensor) and torch.equal(first[name], tensor), name


# What differs from the model above, and the layouts that can hold it.
UNUSUAL = {
    "gelu_new": ({"hidden_act": "gelu_new"}, {"hidden_act": "gelu"}, ["open_clip"]),
    "tanh": ({"hidden_act": "gelu_pytorch_tanh"}, {"hidden_act": "gelu_new"}, ["open_clip"]),
    "heads": (
        {"hidden_size": 36, "num_attention_heads": 3, "eos_token_id": 2},
        {"hidden_size": 42, "num_attention_heads": 7, "image_size": 19},
        ["open_clip"],
    ),
    "one layer, no square": (
        tiny.OPENAI_TEXT | {"num_hidden_layers": 1, "max_position_embeddings": 33},
        {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 1, "image_size": 8},
        ["openai", "open_clip", "openai"],
    ),
}


@pytest.mark.parametrize("case", UNUSUAL)
def test_full_circle_of_unusual_models(case, tmp_path):
    text, vision, layouts = UNUSUAL[case]
    model = tiny.torch_clip(text, vision, std=0.1, projection_dim=17)
    model.config.logit_scale_init_value = 1.5
    first = directory = tiny.saved(tmp_path / "first", model)
    for i, layout in enumerate([*layouts, "huggingface"]):
        config, params, info = read_any(directory)
        directory = SAVE[layout](tmp_path / str(i), config, params, base=info.base)
    assert read_any(directory)[0] == read_any(first)[0]
    written, original = (load_file(d / "model.safetensors") for d in (directory, first))
    assert written.keys() == original.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in original.items())


def test_circle_through_files_that_stand_alone(model, exports, tmp_path):
    """Without any configuration beside them, as they are sent around."""
    lone = tmp_path / "lone.pt"
    lone.write_bytes((exports["openai"] / "model.pt").read_bytes())
    config, params, info = read_any(lone)
    out = huggingface.save(tmp_path / "out", config, params, base=info.base)
    theirs = CLIPModel.from_pretrained(out)
    for name, tensor in model.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], tensor), name
    assert theirs.config.text_config.eos_token_id == 2
    batch = tiny.inputs(config)
    expected = tiny.torch_logits(model, *batch)
    np.testing.assert_array_equal(tiny.torch_logits(theirs.eval(), *batch), expected)
