"""OpenAI's state dicts against the package that defines them."""

import dataclasses

import numpy as np
import pytest
import torch
from interop import libraries, tiny

from negclip_jax.data.images import Preprocessor
from negclip_jax.interop import openai
from negclip_jax.interop.files import CheckpointError
from negclip_jax.interop.readers import read_any
from negclip_jax.interop.tensors import open_file


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """`(model of transformers, our configuration, our parameters)` of a shape that OpenAI has."""
    model = tiny.torch_clip(tiny.OPENAI_TEXT, tiny.OPENAI_VISION, std=0.05)
    return model, *tiny.load(tiny.saved(tmp_path_factory.mktemp("hf"), model))


@pytest.fixture(scope="module")
def exported(loaded, tmp_path_factory):
    return openai.save(tmp_path_factory.mktemp("out") / "tiny", *loaded[1:])


def theirs(path):
    """The package's model with exactly the file's weights; `clip.load` alone rounds them."""
    model, _ = libraries.load("clip").load(str(path), device="cpu")
    model.float().load_state_dict(torch.load(path, weights_only=True))
    return model


def test_logits_of_the_package_are_those_of_transformers(loaded, exported):
    model, config, _ = loaded
    pixels, ids = tiny.inputs(config)
    expected = tiny.torch_logits(model, pixels, ids)
    with torch.no_grad():
        images = torch.tensor(pixels).permute(0, 3, 1, 2)
        logits, _ = theirs(exported / "model.pt")(images, torch.tensor(ids))
    assert tiny.difference(logits.numpy(), expected) < 1e-4
    assert np.abs(expected).max() > 1, "logits that say something"


def test_reads_a_state_dict_of_the_package(loaded, exported, tmp_path):
    """What upstream's trainer saves: `torch.save(model.state_dict())`, no configuration."""
    torch.save(theirs(exported / "model.pt").state_dict(), tmp_path / "negationclip.pt")
    config, params, info = read_any(tmp_path / "negationclip.pt")
    text = dataclasses.replace(loaded[1].text, eos_token_id=2, pooling="argmax")
    assert config == dataclasses.replace(loaded[1], text=text)
    tiny.assert_equal_params(params, loaded[2])
    assert info.layout == "openai" and info.activation == "quick_gelu"
    assert info.activation_source.startswith("assumed: OpenAI's clip has no other")
    assert info.pooling == "the first of the largest token id" and info.base is None


def test_reads_its_own_directory_as_it_was(loaded, exported):
    config, params, info = read_any(exported)
    assert config == loaded[1] and info.base == exported
    assert info.activation_source == f"hidden_act in {exported / 'config.json'}"
    tiny.assert_equal_params(params, loaded[2])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves(dtype, loaded, tmp_path):
    out = openai.save(tmp_path / "out", *loaded[1:], dtype=dtype)
    state = torch.load(out / "model.pt", weights_only=True)
    assert {tensor.dtype for tensor in state.values()} == {getattr(torch, dtype)}
    original = torch.tensor(loaded[2]["text"]["token_embedding"])
    rounded = torch.tensor(read_any(out)[1]["text"]["token_embedding"])
    assert torch.equal(rounded, original.to(getattr(torch, dtype)).float())


def test_buffers_of_the_released_files_are_no_parameters(exported, loaded, tmp_path):
    state = torch.load(exported / "model.pt", weights_only=True)
    sizes = {"input_resolution": 16, "context_length": 12, "vocab_size": 98}
    torch.save(state | {k: torch.tensor(v) for k, v in sizes.items()}, tmp_path / "ViT.pt")
    tiny.assert_equal_params(read_any(tmp_path / "ViT.pt")[1], loaded[2])


def test_every_reason_why_the_package_cannot_run_a_model(loaded):
    _, config, params = loaded
    text = dataclasses.replace(config.text, hidden_act="gelu", heads=4, eos_token_id=5)
    vision = dataclasses.replace(
        config.vision, layer_norm_eps=1e-6, mlp_width=100, patch_size=5, image_size=16
    )
    with pytest.raises(CheckpointError) as caught:
        openai.save("never", dataclasses.replace(config, text=text, vision=vision), params)
    for reason in (
        "the text tower's activation is gelu where its code has quick_gelu",
        "the text tower's width of a head is 16 where its code has 64",
        "the vision tower's layer_norm_eps is 1e-06",
        "the vision tower's width of the MLP is 100",
        "the end token is 5 where its code takes the largest id, 97",
        "images of 16 pixels are no multiple",
        "Export it with --layout=huggingface or --layout=open_clip",
    ):
        assert reason in str(caught.value)


def test_preprocessing_that_the_package_does_not_have(loaded, tmp_path):
    half = Preprocessor(size=16, resize=16, mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(CheckpointError, match="mean and std"):
        openai.save(tmp_path / "out", *loaded[1:], preprocessor=half)


BROKEN = {
    "ResNet": ({"visual.layer1.0.conv1.weight": (1,)}, "vision tower is a ResNet"),
    "other model": ({"conv.weight": (1,)}, r"missing.*ln_final\.weight.*\n.*it holds \(1\): conv"),
    "scalar": ({"ln_final.weight": ()}, "missing or without shape"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_files_of_other_models(case, tmp_path):
    shapes, reason = BROKEN[case]
    torch.save({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=reason):
        read_any(tmp_path / "x.pt")


def test_missing_and_misshapen_tensors_are_listed(exported, tmp_path):
    state = torch.load(exported / "model.pt", weights_only=True)
    del state["transformer.resblocks.0.attn.in_proj_bias"]
    state["visual.proj"] = torch.zeros(3, 4)
    state["extra"] = torch.zeros(1)
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(CheckpointError) as caught:
        read_any(tmp_path / "x.pt")
    for line in (
        "missing (1): transformer.resblocks.0.attn.in_proj_bias",
        "unknown (1): extra",
        "visual.proj is float32[3, 4], the model asks for float[128, 24]",
    ):
        assert line in str(caught.value)


def test_width_that_heads_of_64_do_not_divide(exported, tmp_path):
    stored, _ = open_file(exported / "model.pt")
    odd = dataclasses.replace(stored["ln_final.weight"], shape=(200,))
    with pytest.raises(CheckpointError, match="200 is not divisible by 3 heads; heads of OpenAI"):
        openai.infer_config(stored | {"ln_final.weight": odd}, "x.pt")
