"""open_clip's directories and files against open_clip."""

import dataclasses
import json

import pytest
import torch
from interop import libraries, tiny
from safetensors.torch import load_file, save_file

from negclip_jax.data.images import Preprocessor
from negclip_jax.interop import open_clip
from negclip_jax.interop.files import CheckpointError
from negclip_jax.interop.readers import read_any
from negclip_jax.models.clip import TextConfig

# Case: their text config, their vision config of the model that is exported.
MODELS = {
    "quick_gelu": ({}, {}),
    "gelu": ({"hidden_act": "gelu"}, {"hidden_act": "gelu"}),
    "tanh in one tower": ({"hidden_act": "gelu_pytorch_tanh"}, {"hidden_act": "gelu"}),
    "epsilon": ({"layer_norm_eps": 1e-3}, {"layer_norm_eps": 1e-4}),
    "largest id": ({"eos_token_id": 2}, {}),
    "odd MLP": ({"intermediate_size": 139}, {"intermediate_size": 173}),
}


def export(directory, text=(), vision=(), **options):
    """`(model of transformers, configuration, parameters, exported directory)`."""
    model = tiny.torch_clip(text, vision)
    config, params = tiny.load(tiny.saved(directory / "hf", model))
    return model, config, params, open_clip.save(directory / "out", config, params, **options)


def theirs(name, **options):
    model, *_ = libraries.load("open_clip").create_model_and_transforms(name, **options)
    return model.eval()


def their_logits(model, pixels, ids):
    with torch.no_grad():
        image, text, scale = model(torch.tensor(pixels).permute(0, 3, 1, 2), torch.tensor(ids))[:3]
        return (scale * image @ text.T).numpy()


@pytest.mark.parametrize("case", MODELS)
def test_open_clip_computes_what_transformers_computes(case, tmp_path):
    model, config, params, out = export(tmp_path, *MODELS[case])
    pixels, ids = tiny.inputs(config)
    ids[0, 0] = 98  # the largest id, which only the pooling rule "argmax" looks for
    loaded = theirs(f"local-dir:{out}")
    expected = tiny.torch_logits(model, pixels, ids)
    assert tiny.difference(their_logits(loaded, pixels, ids), expected) < 1e-4
    config_read, params_read, info = read_any(out)
    assert config_read == config and info.layout == "open_clip"
    tiny.assert_equal_params(params_read, params)


def test_without_its_configuration_the_activation_would_be_wrong(tmp_path):
    model, config, _, out = export(tmp_path)
    path = out / open_clip.CONFIG
    described = json.loads(path.read_text())
    del described["model_cfg"]["quick_gelu"]
    path.write_text(json.dumps(described))
    batch = tiny.inputs(config)
    logits = their_logits(theirs(f"local-dir:{out}"), *batch)
    assert tiny.difference(logits, tiny.torch_logits(model, *batch)) > 1e-2


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "wrapped pt"])
def test_custom_text_files(suffix, tmp_path):
    """CustomTextCLIP: the same tensors with `text.` before the text tower's."""
    _, config, params, out = export(tmp_path)
    described = json.loads((out / open_clip.CONFIG).read_text())
    model = libraries.load("open_clip").CustomTextCLIP(**described["model_cfg"])
    flat = load_file(out / "open_clip_model.safetensors")
    state = libraries.load("open_clip").model.convert_to_custom_text_state_dict(flat)
    model.load_state_dict(state)
    file = tmp_path / "custom" / f"epoch.{suffix.split()[-1]}"
    file.parent.mkdir()
    if suffix == "safetensors":
        save_file(model.state_dict(), file)
    elif suffix == "pt":
        torch.save(model.state_dict(), file)
    else:
        state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
        torch.save({"epoch": 3, "name": "run", "state_dict": state, "optimizer": {"lr": 1}}, file)
    with pytest.raises(CheckpointError, match=r"does not say its activation.*gelu \(LAION"):
        read_any(file)
    guess, params_read, info = read_any(file, activation="gelu")
    assert guess.text.hidden_act == "gelu" and info.activation_source == "given"
    assert info.layout == "open_clip"
    (file.parent / open_clip.CONFIG).write_text(json.dumps(described))
    config_read, params_read, info = read_any(file)
    assert config_read == config and info.activation == "quick_gelu" and info.base is None
    assert info.activation_source.endswith(open_clip.CONFIG)
    tiny.assert_equal_params(params_read, params)
    with pytest.raises(CheckpointError, match="says quick_gelu, not gelu"):
        read_any(file, activation="gelu")


def test_the_file_alone_loads_by_the_name_of_an_architecture(tmp_path):
    """The second way into open_clip: `create_model(NAME, pretrained=FILE)`."""
    model, config, _, out = export(tmp_path)
    (tmp_path / "configs").mkdir()
    described = json.loads((out / open_clip.CONFIG).read_text())["model_cfg"] | {
        "quick_gelu": False
    }
    (tmp_path / "configs" / "tiny-clip.json").write_text(json.dumps(described))
    libraries.load("open_clip").add_model_config(tmp_path / "configs")
    weights = str(out / "open_clip_model.safetensors")
    loaded = theirs("tiny-clip", pretrained=weights, force_quick_gelu=True)
    batch = tiny.inputs(config)
    assert tiny.difference(their_logits(loaded, *batch), tiny.torch_logits(model, *batch)) < 1e-4


def test_a_real_configuration(tmp_path):
    """ViT-H-14's, as open_clip ships it: heads of 80, an MLP by its ratio."""
    model = libraries.load("open_clip").get_model_config("ViT-H-14")
    content = {"model_cfg": model, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (tmp_path / open_clip.CONFIG).write_text(json.dumps(content))
    config, preprocessor, tokenizer_keys = open_clip.read_config(tmp_path)
    vision, text = config.vision, config.text
    assert (vision.width, vision.heads, vision.mlp_width, vision.layers) == (1280, 16, 5120, 32)
    assert (text.width, text.heads, text.layers, config.projection_dim) == (1024, 16, 24, 1024)
    assert {vision.hidden_act, text.hidden_act} == {"gelu"} and text.pooling == "argmax"
    assert tokenizer_keys == {}
    assert preprocessor == Preprocessor(mean=(0.5,) * 3, std=(0.25,) * 3)


def test_preprocessing_goes_both_ways(tmp_path):
    half = Preprocessor(size=16, resize=16, mean=(0.5,) * 3, std=(0.25,) * 3)
    *_, out = export(tmp_path, preprocessor=half)
    assert read_any(out)[2].preprocessor == half
    assert read_any(out)[2].preprocessor_source.endswith(open_clip.CONFIG)
    written = json.loads((out / "preprocessor_config.json").read_text())
    assert written["image_mean"] == [0.5, 0.5, 0.5]
    crop = dataclasses.replace(half, resize=20)
    with pytest.raises(CheckpointError, match="resizes to 20 and crops at 16"):
        open_clip.config_dict(read_any(out)[0], crop)


def test_one_quick_gelu_for_both_towers(tmp_path):
    with pytest.raises(CheckpointError, match="gelu in its text tower and quick_gelu in its"):
        export(tmp_path, {"hidden_act": "gelu"})


REFUSED = {
    "other model": ("text_cfg", {"hf_model_name": "xlm-roberta"}, "hf_model_name='xlm-roberta'"),
    "class token": ("text_cfg", {"embed_cls": True}, "a class token that it appends to a caption"),
    "normalised keys": ("text_cfg", {"qk_norm": True}, "qk_norm=True makes another model"),
    "pooling": ("text_cfg", {"pool_type": "none"}, "pool_type 'none' is none of argmax, eos, fir"),
    "projection": ("text_cfg", {"proj_type": "mlp"}, "proj_type 'mlp' is not linear or none"),
    "act_kwargs": ("text_cfg", {"act_kwargs": {"x": 1}}, "act_kwargs {'x': 1} are not read"),
    "norm_kwargs": ("text_cfg", {"norm_kwargs": {"bias": False}}, "norm_kwargs {'bias': False}"),
    "no head": ("vision_cfg", {"head_width": 0}, "modulo by zero"),
    "not square": ("vision_cfg", {"image_size": [16, 20]}, r"\[16, 20\] is not square"),
}


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    *_, out = export(tmp_path_factory.mktemp("refused"))
    return json.loads((out / open_clip.CONFIG).read_text())


@pytest.mark.parametrize("case", REFUSED)
def test_other_models_are_refused_by_key(case, described, tmp_path):
    section, change, reason = REFUSED[case]
    content = json.loads(json.dumps(described))
    content["model_cfg"][section] |= change
    (tmp_path / open_clip.CONFIG).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=reason) as caught:
        open_clip.read_config(tmp_path)
    assert str(tmp_path / open_clip.CONFIG) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"model_cfg": {"vision_cfg": {}}}, "is no configuration of a CLIP"),
        ({"preprocess_cfg": {"resize_mode": "longest"}}, "resize_mode='longest'"),
        ({"preprocess_cfg": {"interpolation": "bilinear"}}, "interpolation='bilinear'"),
        ({"preprocess_cfg": {"std": [0, 1, 1]}}, "std must be above 0"),
    ],
)
def test_other_configurations_are_refused(content, reason, described, tmp_path):
    (tmp_path / open_clip.CONFIG).write_text(json.dumps(described | content))
    with pytest.raises(CheckpointError, match=reason):
        open_clip.read_config(tmp_path)


def test_ratio_survives_rounding():
    for width in range(8, 400, 7):
        for mlp_width in range(width, 5 * width, 13):
            tower = TextConfig(width=width, heads=1, mlp_width=mlp_width)
            assert int(width * open_clip._tower_dict(tower)["mlp_ratio"]) == mlp_width
