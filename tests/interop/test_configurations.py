"""The readers against every configuration that open_clip ships, and transformers' CLIP family.

Each is built at a small size with its own keys, and is either equal to the library or refused for a
reason that is true of it.
"""

import dataclasses
import functools
import json
import re

import numpy as np
import pytest
import torch
import transformers
from interop import libraries, tiny
from safetensors.torch import save_file

from negclip_jax.common.errors import InputError
from negclip_jax.data.tokenizer import load_tokenizer
from negclip_jax.interop import export, huggingface, open_clip
from negclip_jax.interop.files import CheckpointError
from negclip_jax.interop.readers import read_any

open_clip_package = libraries.load("open_clip")

# What makes another model, by a key that has a value: the first that applies is in the message.
REASONS = {
    "siglip": "is of a SigLIP whose vision tower is timm's.*give the same weights in transformers'",
    "multimodal_cfg": "model_cfg.multimodal_cfg makes another model",
    "hf_model_name": "text_cfg.hf_model_name='.*' makes another model",
    "timm_model_name": "vision_cfg.timm_model_name='.*' makes another model",
    "no_causal_mask": "text_cfg.no_causal_mask=True makes another model",
    "ls_init_value": "vision_cfg.ls_init_value=.* makes another model",
    "resnet": r"vision_cfg.layers=\[.*\] makes another model",
}


def kinds_of(model):
    """The reasons for which a shipped configuration is no CLIP of two plain transformers."""
    text, vision = model["text_cfg"], model["vision_cfg"]
    found = {key for key in REASONS if text.get(key) or vision.get(key) or model.get(key)}
    found |= {"siglip"} if "siglip" in str(vision.get("timm_model_name")) else set()
    return found | ({"resnet"} if isinstance(vision.get("layers"), list) else set())


def shrunk(model):
    """The same keys with small sizes: heads of a sixth, two layers, images of two patches."""
    text, vision = dict(model["text_cfg"]), dict(model["vision_cfg"])
    head = vision.get("head_width", 64) // 6
    vision |= {"layers": 2, "width": 3 * head, "head_width": head, "patch_size": 4, "image_size": 8}
    text |= {"layers": 2, "width": 24, "heads": 3, "vocab_size": 90, "context_length": 12}
    return model | {"embed_dim": 20, "text_cfg": text, "vision_cfg": vision}


def written(folder, model):
    folder.mkdir(exist_ok=True)
    content = {"model_cfg": model, "preprocess_cfg": {}}
    (folder / open_clip.CONFIG).write_text(json.dumps(content))
    return folder


def captions(end, last):
    """Ids where the rules of pooling differ: an end token early, the largest id later, or none."""
    ids = np.random.default_rng(0).integers(3, last - 1, (4, 12))
    ids[0, 4], ids[0, 8] = end, last
    ids[1, 8], ids[1, 4] = end, last
    ids[2, 11] = end
    return ids


@functools.cache
def built(described):
    """A shrunk model of open_clip with random weights, and its features of `captions`."""
    model = json.loads(described)
    torch.manual_seed(0)
    theirs = open_clip_package.CLIP(**model).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        ids = captions(model["text_cfg"].get("eos_id", 2), 89)
        side = model["vision_cfg"]["image_size"]
        pixels = np.random.default_rng(1).standard_normal((2, side, side, 3)).astype(np.float32)
        nchw = torch.tensor(pixels).permute(0, 3, 1, 2)
        image, text = theirs.encode_image(nchw).numpy(), theirs.encode_text(torch.tensor(ids))
    state = {k: v.contiguous().clone() for k, v in theirs.state_dict().items()}
    return state, (pixels, ids), (image, text.numpy())


def assert_features(config, params, inputs, expected):
    for ours, theirs in zip(tiny.our_features(config, params, *inputs), expected, strict=True):
        assert tiny.difference(ours, theirs) < 2e-5 * np.abs(theirs).max()


MODELS = open_clip_package.list_models()
# All of them take a minute: a third, and MetaCLIP 2's, are in `make test`, the rest in test-long.
SHORT = {*MODELS[::3], *(name for name in MODELS if "worldwide" in name)}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in SHORT else pytest.mark.long) for n in MODELS]
)
def test_every_configuration_of_open_clip_is_equal_or_refused(name, tmp_path):
    model = open_clip_package.get_model_config(name)
    kinds = kinds_of(model)
    if kinds:
        written(tmp_path, model)
        with pytest.raises(CheckpointError) as caught:
            open_clip.read_config(tmp_path)
        assert any(re.search(REASONS[kind], str(caught.value)) for kind in kinds)
        return
    whole, *_ = open_clip.read_config(written(tmp_path / "whole", model))
    assert whole.text.vocab_size == model["text_cfg"]["vocab_size"]
    small = shrunk(model)
    state, inputs, expected = built(json.dumps(small))
    save_file(state, written(tmp_path / "small", small) / open_clip.WEIGHTS[0])
    config, params, info = read_any(tmp_path / "small")
    assert_features(config, params, inputs, expected)
    kept = {k: v for k, v in model["text_cfg"].items() if "tokenizer" in k}
    assert info.tokenizer_keys == kept


# A value for every key of open_clip's two towers other than its default.
VALUES = {
    "text_cfg": {
        "context_length": 12, "vocab_size": 90, "hf_tokenizer_name": "a/b", "width": 24,
        "tokenizer_mode": "clips", "tokenizer_kwargs": {"clean": "canonicalize"}, "heads": 3,
        "layers": 3, "mlp_ratio": 3.1, "ls_init_value": 0.1, "embed_cls": True, "pad_id": 5,
        "eos_id": 7, "no_causal_mask": True, "final_ln_after_pool": True, "pool_type": "eos",
        "proj_bias": True, "proj_type": "none", "output_tokens": True,
        "act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 0.01},
        "block_type": "custom", "qk_norm": True, "scaled_cosine_attn": True, "scale_heads": True,
        "scale_attn_inner": True, "scale_attn": True, "scale_fc": True, "hf_model_name": "a/b",
        "hf_model_pretrained": False, "hf_proj_type": "linear", "hf_pooler_type": "cls_pooler",
    },
    "vision_cfg": {
        "layers": 3, "width": 16, "head_width": 8, "mlp_ratio": 3.1, "patch_size": 2,
        "image_size": 12, "ls_init_value": 0.1, "patch_dropout": 0.5, "attentional_pool": True,
        "attn_pooler_queries": 3, "attn_pooler_heads": 3, "no_ln_pre": True,
        "pos_embed_type": "sin_cos_2d", "final_ln_after_pool": True, "pool_type": "avg",
        "output_tokens": True, "act_kwargs": {"approximate": "tanh"},
        "norm_kwargs": {"eps": 0.01}, "block_type": "custom", "qk_norm": True,
        "scaled_cosine_attn": True, "scale_heads": True, "scale_attn_inner": True,
        "scale_attn": True, "scale_fc": True, "timm_model_name": "vit_base_patch16_224",
        "timm_model_pretrained": True, "timm_pool": "map", "timm_proj": "mlp",
        "timm_proj_bias": True, "timm_drop": 0.5, "timm_drop_path": 0.5,
    },
    "model_cfg": {
        "embed_dim": 12, "quick_gelu": True, "init_logit_scale": 3.0, "init_logit_bias": -9.0,
        "nonscalar_logit_scale": True, "cast_dtype": None, "output_dict": True,
    },
}  # fmt: skip
CASES = [(section, key) for section, keys in VALUES.items() for key in keys]


def test_the_values_are_of_all_keys():
    """A key that a new open_clip adds is tried too."""
    for section, cls in (("text_cfg", "CLIPTextCfg"), ("vision_cfg", "CLIPVisionCfg")):
        fields = dataclasses.fields(getattr(open_clip_package, cls))
        assert {field.name for field in fields} == set(VALUES[section])


@pytest.mark.parametrize(("section", "key"), CASES, ids=[f"{s}.{k}" for s, k in CASES])
def test_no_key_changes_numbers_in_silence(section, key, tmp_path):
    """Every key of open_clip's, one at a time: read as open_clip does, or refused by its name."""
    model = shrunk(open_clip_package.get_model_config("ViT-B-16"))
    part = model if section == "model_cfg" else model[section]
    part[key] = VALUES[section][key]
    written(tmp_path, model)
    try:
        open_clip.read_config(tmp_path)
    except CheckpointError as error:
        assert key in str(error)
        return
    state, inputs, expected = built(json.dumps(model))
    save_file(state, tmp_path / open_clip.WEIGHTS[0])
    config, params, info = read_any(tmp_path)
    assert_features(config, params, inputs, expected)
    if "tokenizer" in key:
        assert info.tokenizer_keys == {key: part[key]}
        (tmp_path / "vocab.json").write_text("{}")
        (tmp_path / "merges.txt").write_text("")
        with pytest.raises(InputError, match=key if key != "hf_tokenizer_name" else "lacks"):
            load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["ViT-H-14-worldwide-quickgelu", "ViT-L-14-worldwide"])
def test_metaclip_2_in_open_clips_form_goes_round(name, tmp_path, capsys):
    """MetaCLIP 2 reads its texts at the first token 2 (or 1) and has a tokenizer of its own."""
    small = shrunk(open_clip_package.get_model_config(name))
    state, inputs, expected = built(json.dumps(small))
    source = written(tmp_path / "source", small)
    save_file(state, source / open_clip.WEIGHTS[0])
    out = tmp_path / "out"
    assert export.main([f"--checkpoint={source}", "--layout=open_clip", f"--out={out}"]) == 0
    text = json.loads((out / open_clip.CONFIG).read_text())["model_cfg"]["text_cfg"]
    for key in ("pool_type", "eos_id", "hf_tokenizer_name", "tokenizer_kwargs"):
        assert text.get(key) == small["text_cfg"].get(key)
    theirs = open_clip_package.create_model(f"local-dir:{out}").eval()
    with torch.no_grad():
        again = theirs.encode_text(torch.tensor(inputs[1])).numpy()
    assert tiny.difference(again, expected[1]) < 2e-5 * np.abs(expected[1]).max()
    capsys.readouterr()
    flags = [f"--checkpoint={source}", f"--out={tmp_path / 'hf'}"]
    if "tokenizer_kwargs" in small["text_cfg"]:
        assert export.main(flags) == 1
        assert "tokenizer_kwargs change a caption's token ids" in capsys.readouterr().err
        return
    assert export.main(flags) == 0
    assert "import MetaClip2Model" in capsys.readouterr().out
    for cls in (transformers.MetaClip2Model, transformers.AutoModel):
        again = tiny.torch_features(cls.from_pretrained(tmp_path / "hf").eval(), *inputs)
        for ours, before in zip(again, expected, strict=True):
            assert tiny.difference(ours, before) < 2e-5 * np.abs(before).max()
    # Their pooling is another, and transformers only warns of the class: the file refuses.
    for cls in (transformers.CLIPModel, transformers.CLIPTextModelWithProjection):
        with pytest.raises(Exception, match="load this model with AutoModel or MetaClip2Model"):
            cls.from_pretrained(tmp_path / "hf")
    config, params, _ = read_any(tmp_path / "hf")
    assert (config.text.pooling, config.text.eos_token_id) == ("first_eos", 2)
    assert_features(config, params, inputs, expected)
    flags += ["--architecture=CLIPTextModel", "--overwrite"]
    assert export.main(flags) == 1
    assert "ends its texts with token 2" in capsys.readouterr().err


def test_squash_in_open_clips_form(tmp_path):
    """DFN5B's preprocessing: both sides to one size."""
    small = shrunk(open_clip_package.get_model_config("ViT-H-14-378-quickgelu"))
    content = {"model_cfg": small, "preprocess_cfg": {"resize_mode": "squash", "size": [8, 8]}}
    (tmp_path / open_clip.CONFIG).write_text(json.dumps(content))
    config, preprocessor, _ = open_clip.read_config(tmp_path)
    assert preprocessor.squash and preprocessor.size == 8
    described = open_clip.config_dict(config, preprocessor)["preprocess_cfg"]
    assert described["resize_mode"] == "squash" and described["interpolation"] == "bicubic"
    content["preprocess_cfg"] = described
    (tmp_path / open_clip.CONFIG).write_text(json.dumps(content))
    assert open_clip.read_config(tmp_path)[1] == preprocessor


METACLIP = {"end token 2": {"eos_token_id": 2}, "another end token": {"eos_token_id": 97}}


@pytest.mark.parametrize("case", METACLIP)
def test_metaclip_2_of_transformers(case, tmp_path):
    config = transformers.MetaClip2Config(
        text_config=tiny.TEXT | METACLIP[case], vision_config=tiny.VISION, projection_dim=24
    )
    torch.manual_seed(0)
    model = transformers.MetaClip2Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    base = tmp_path / "base"
    model.save_pretrained(base)
    ours, params = tiny.load(base)
    pixels, _ = tiny.inputs(ours)
    inputs = pixels, captions(config.text_config.eos_token_id, 98)
    expected = tiny.torch_features(model, *inputs)
    assert_features(ours, params, inputs, expected)
    out = huggingface.save(tmp_path / "out", ours, params, base=base)
    if case == "end token 2":
        with pytest.raises(Exception, match="load this model with AutoModel or MetaClip2Model"):
            transformers.CLIPModel.from_pretrained(out)
    else:  # a CLIPModel reads any other as MetaCLIP 2 does
        again = tiny.torch_features(transformers.CLIPModel.from_pretrained(out).eval(), *inputs)
        assert all(np.array_equal(a, b) for a, b in zip(again, expected, strict=True))


FAMILY = {
    "AltCLIPConfig": "its text tower is an XLM-RoBERTa",
    "ChineseCLIPConfig": "its text tower is a BERT",
    "XCLIPConfig": "it reads videos",
    "CLIPSegConfig": "CLIPSeg is a decoder around CLIP; give the CLIPModel inside it",
    "Siglip2Config": "takes patches instead of pixels",
    "CLIPTextConfig": "it holds the text tower alone; give a full CLIPModel",
    "CLIPVisionConfig": "it holds the vision tower alone; give a full CLIPModel",
    "MetaClip2TextConfig": "it holds the text tower alone; give the full MetaClip2Model",
    "MetaClip2VisionConfig": "it holds the vision tower alone; give the full MetaClip2Model",
}


@pytest.mark.parametrize("name", FAMILY)
def test_the_rest_of_transformers_family_is_refused(name, tmp_path):
    getattr(transformers, name)().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=FAMILY[name]):
        huggingface.read_config(tmp_path)
