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
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from negclip_jax.common.errors import InputError
from negclip_jax.data.tokenizer import load_tokenizer
from negclip_jax.interop import export, huggingface, open_clip
from negclip_jax.interop.files import CheckpointError
from negclip_jax.interop.readers import read_any
from negclip_jax.models.siglip import SigLIPConfig

open_clip_package = libraries.load("open_clip")

# What makes another text tower, by a key that has a value: the first that applies is the message.
REASONS = {
    "multimodal_cfg": "model_cfg.multimodal_cfg.* a CoCa has a decoder of captions",
    "hf_model_name": "text_cfg.hf_model_name='.*' makes another model: its text tower is anoth",
    "embed_cls": "text_cfg.embed_cls=True makes another model: its text tower reads a class",
}
# What makes another vision tower, which is then not read and kept.
OTHER_VISION = ("timm_model_name", "attentional_pool", "ls_init_value", "no_ln_pre", "pool_type")
SMALL_VISION = {"layers": 1, "width": 20, "head_width": 10, "patch_size": 4, "image_size": 8}


def kinds_of(model):
    """The reasons for which the text tower of a shipped configuration is not read."""
    return {key for key in REASONS if model["text_cfg"].get(key) or model.get(key)}


def has_other_vision(model):
    vision = model["vision_cfg"]
    said = any(vision.get(key) not in (None, False, "tok") for key in OTHER_VISION)
    return (
        said or isinstance(vision.get("layers"), list) or model.get("init_logit_bias") is not None
    )


def shrunk(model):
    """The same keys with small sizes: heads of a sixth, two layers, images of two patches.

    A vision tower that is not read becomes a plain one: timm's need not be installed.
    """
    text, vision = dict(model["text_cfg"]), dict(model["vision_cfg"])
    head = vision.get("head_width", 64) // 6
    vision |= {"layers": 2, "width": 3 * head, "head_width": head, "patch_size": 4, "image_size": 8}
    text |= {"layers": 2, "width": 24, "heads": 3, "vocab_size": 90, "context_length": 12}
    small = model | {"embed_dim": 20, "text_cfg": text, "vision_cfg": vision}
    if has_other_vision(model):
        small["vision_cfg"] = {"timm_model_name": "none that is read"}
    if text.get("proj_type") == "none":
        small["embed_dim"] = 24
    return small


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
    """A shrunk model of open_clip with random weights, and its features of `captions`.

    Where its vision tower is not read, that becomes tensors of any kind, and has no features.
    """
    model = json.loads(described)
    is_custom = model.pop("custom_text", False)
    is_read = "timm_model_name" not in model["vision_cfg"]
    model["vision_cfg"] = model["vision_cfg"] if is_read else SMALL_VISION
    torch.manual_seed(0)
    cls = open_clip_package.CustomTextCLIP if is_custom else open_clip_package.CLIP
    theirs = cls(**model).eval()
    side = model["vision_cfg"]["image_size"]
    pixels = np.random.default_rng(1).standard_normal((2, side, side, 3)).astype(np.float32)
    ids = captions(model["text_cfg"].get("eos_id", 2), 89)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        image = theirs.encode_image(torch.tensor(pixels).permute(0, 3, 1, 2)).numpy()
        text = theirs.encode_text(torch.tensor(ids)).numpy()
    state = {k: v.contiguous().clone() for k, v in theirs.state_dict().items()}
    if not is_read:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("visual.")}
        state |= {"visual.trunk.stem.weight": torch.randn(3, 2).bfloat16()}
        state |= {"visual.trunk.norm.num_batches_tracked": torch.tensor(7)}
        image = None
    return state, (pixels, ids), (image, text)


def assert_features(config, params, inputs, expected):
    (pixels, ids), (image, text) = inputs, expected
    ours = tiny.our_texts(config, params, ids)
    assert tiny.difference(ours, text) < 1e-5 * max(1, np.abs(text).max())
    if config.vision is not None:
        ours = tiny.our_images(config, params, pixels)
        assert tiny.difference(ours, image) < 2e-5 * np.abs(image).max()


MODELS = open_clip_package.list_models()
# One of each kind: many differ in sizes alone.
KINDS = {json.dumps(shrunk(m := open_clip_package.get_model_config(n))): n for n in MODELS[::-1]}


@pytest.mark.parametrize("name", MODELS)
def test_every_configuration_of_open_clip_is_read_or_refused(name, tmp_path):
    model = open_clip_package.get_model_config(name)
    written(tmp_path, model)
    kinds = kinds_of(model)
    if kinds:
        with pytest.raises(CheckpointError) as caught:
            open_clip.read_config(tmp_path)
        assert any(re.search(REASONS[kind], str(caught.value)) for kind in kinds)
        assert "\n" not in str(caught.value)
        return
    config, _, tokenizer_keys = open_clip.read_config(tmp_path)
    said, text = model["text_cfg"], config.text
    assert (config.vision is None) == has_other_vision(model)
    sizes = (text.vocab_size, text.width, text.heads, text.context_length, config.projection_dim)
    keys = {"vocab_size": 49408, "width": 512, "heads": 8, "context_length": 77}
    assert sizes == (*(said.get(key, usual) for key, usual in keys.items()), model["embed_dim"])
    assert text.layers == said.get("layers", 12)
    assert text.causal is not said.get("no_causal_mask", False)
    assert isinstance(config, SigLIPConfig) == ("init_logit_bias" in model)
    assert tokenizer_keys == {k: v for k, v in said.items() if "tokenizer" in k}


READ_KINDS = {d: json.loads(d) for d in KINDS if not kinds_of(json.loads(d))}


@pytest.mark.parametrize(
    "described",
    [
        pytest.param(d, marks=pytest.mark.slow if has_other_vision(model) else (), id=KINDS[d])
        for d, model in READ_KINDS.items()
    ],
)
def test_every_kind_of_open_clip_is_equal_to_it(described, tmp_path):
    state, inputs, expected = built(described)
    save_file(state, written(tmp_path, json.loads(described)) / open_clip.WEIGHTS[0])
    config, params, info = read_any(tmp_path)
    assert_features(config, params, inputs, expected)
    assert (info.other_vision is None) == (config.vision is not None)


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
    """Every key of open_clip's, one at a time: read as open_clip does, or refused by its name.

    A key of the vision tower may also leave the model without one.
    """
    model = shrunk(open_clip_package.get_model_config("ViT-B-16"))
    part = model if section == "model_cfg" else model[section]
    part[key] = VALUES[section][key]
    if key == "proj_type":  # without a projection features are as wide as the tower
        model["embed_dim"] = model["text_cfg"]["width"]
    written(tmp_path, model)
    try:
        is_read = open_clip.read_config(tmp_path)[0].vision is not None
    except CheckpointError as error:
        assert key in str(error)
        return
    other = {} if is_read else {"vision_cfg": {"timm_model_name": "none that is read"}}
    state, inputs, expected = built(json.dumps(model | other))
    save_file(state, tmp_path / open_clip.WEIGHTS[0])
    config, params, info = read_any(tmp_path)
    assert_features(config, params, inputs, expected)
    if "tokenizer" in key:
        assert info.tokenizer_keys == {key: part[key]}
        (tmp_path / "vocab.json").write_text("{}")
        (tmp_path / "merges.txt").write_text("")
        with pytest.raises(InputError, match=key if key != "hf_tokenizer_name" else "lacks"):
            load_tokenizer(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-H-14-worldwide-quickgelu", "ViT-L-14-worldwide"])
def test_metaclip_2_in_open_clips_form_goes_round(name, tmp_path, capsys):
    """MetaCLIP 2 reads its texts at the first token 2 (or 1) and has a tokenizer of its own."""
    small = shrunk(open_clip_package.get_model_config(name))
    state, inputs, expected = built(json.dumps(small))
    source = written(tmp_path / "source", small)
    save_file(state, source / open_clip.WEIGHTS[0])
    out = tmp_path / "out"
    assert export.main([f"--model={source}", "--layout=open_clip", f"--out={out}"]) == 0
    text = json.loads((out / open_clip.CONFIG).read_text())["model_cfg"]["text_cfg"]
    for key in ("pool_type", "eos_id", "hf_tokenizer_name", "tokenizer_kwargs"):
        assert text.get(key) == small["text_cfg"].get(key)
    theirs = open_clip_package.create_model(f"local-dir:{out}").eval()
    with torch.no_grad():
        again = theirs.encode_text(torch.tensor(inputs[1])).numpy()
    assert tiny.difference(again, expected[1]) < 2e-5 * np.abs(expected[1]).max()
    capsys.readouterr()
    flags = [f"--model={source}", f"--out={tmp_path / 'hf'}"]
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


@pytest.mark.parametrize(
    "case", ["end token 2", pytest.param("another end token", marks=pytest.mark.slow)]
)
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
    flags = [f"--model={base}", f"--out={tmp_path / 'oc'}", "--layout=open_clip"]
    assert export.main(flags) == 0
    again = open_clip_package.create_model(f"local-dir:{tmp_path / 'oc'}").eval()
    with torch.no_grad():
        texts = again.encode_text(torch.tensor(inputs[1])).numpy()
    assert tiny.difference(texts, expected[1]) < 1e-5
    out = huggingface.save(tmp_path / "out", ours, params, base=base)
    if case == "end token 2":
        with pytest.raises(Exception, match="load this model with AutoModel or MetaClip2Model"):
            transformers.CLIPModel.from_pretrained(out)
    else:  # a CLIPModel reads any other as MetaCLIP 2 does
        again = tiny.torch_features(transformers.CLIPModel.from_pretrained(out).eval(), *inputs)
        assert all(np.array_equal(a, b) for a, b in zip(again, expected, strict=True))


# Of transformers, the towers' keys each with a value other than its default.
KEYS = {
    "vocab_size": 90, "hidden_size": 20, "intermediate_size": 50, "num_hidden_layers": 3,
    "num_attention_heads": 2, "max_position_embeddings": 9, "hidden_act": "gelu",
    "layer_norm_eps": 0.01, "attention_dropout": 0.5, "initializer_range": 0.5,
    "initializer_factor": 2.0, "pad_token_id": 5, "bos_token_id": 5, "eos_token_id": 7,
    "projection_dim": 9, "projection_size": 9, "image_size": 8, "patch_size": 8, "num_channels": 1,
    "vision_use_head": False, "num_patches": 4,
}  # fmt: skip
READ = ("CLIP", "MetaClip2", "Siglip", "Siglip2")
HF_CASES = [
    (kind, section, key)
    for kind in READ
    for section in ("Text", "Vision")
    for key in [*getattr(transformers, f"{kind}{section}Config").__annotations__, "is_causal"]
    if key not in ("model_type", "base_config_key")
    and (kind, section) != ("MetaClip2", "Vision")  # which is CLIP's
]


# Of the trained tower of CLIP; the others are this with another pooling, another mask.


@pytest.mark.parametrize(
    ("kind", "section", "key"),
    [
        pytest.param(*case, marks=() if case[:2] == ("CLIP", "Text") else pytest.mark.slow)
        for case in HF_CASES
    ],
)
def test_no_key_of_transformers_changes_numbers_in_silence(kind, section, key, tmp_path):
    """Every key that its classes declare, one at a time: read as it does, or refused by name."""
    is_siglip = "iglip" in kind
    text, vision = dict(tiny.SIGLIP_TEXT if is_siglip else tiny.TEXT), dict(tiny.VISION)
    common = {} if is_siglip else {"projection_dim": 24}
    if kind == "Siglip2":
        del vision["image_size"]
    (text if section == "Text" else vision)[key] = KEYS.get(key, False)
    if (section, key) == ("Vision", "hidden_size") and is_siglip:
        text["projection_size"] = KEYS[key]  # one without the other makes no model
    config = getattr(transformers, f"{kind}Config")(
        text_config=common | text, vision_config=common | vision, **common
    )
    config.save_pretrained(tmp_path)
    try:
        ours = huggingface.read_config(tmp_path)
    except CheckpointError as error:
        assert key in str(error) or key == "projection_size"
        assert "\n" not in str(error)
        return
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path)
    ids = captions(7, ours.text.vocab_size - 1)[:, : ours.text.context_length]
    with torch.no_grad():
        texts = model.get_text_features(torch.tensor(ids)).pooler_output.numpy()
    ours, params, info = read_any(tmp_path)
    assert tiny.difference(tiny.our_texts(ours, params, ids), texts) < 1e-5
    assert (ours.vision is None) == (info.other_vision is not None) == (kind == "Siglip2")
    if section == "Vision" and ours.vision is not None:
        size = ours.vision.image_size
        pixels = np.random.default_rng(1).standard_normal((2, size, size, 3)).astype(np.float32)
        with torch.no_grad():
            images = model.get_image_features(torch.tensor(pixels).permute(0, 3, 1, 2))
        found = tiny.our_images(ours, params, pixels)
        assert tiny.difference(found, images.pooler_output.numpy()) < 1e-5


FAMILY = {
    "align": "its text tower is a BERT",
    "altclip": "its text tower is an XLM-RoBERTa",
    "chinese_clip": "its text tower is a BERT",
    "xclip": "it reads videos",
    "clipseg": "CLIPSeg is a decoder around CLIP; give the CLIPModel inside it",
    "groupvit": "its projections are networks with a batch norm",
    "owlvit": "it finds objects in a photo",
    "owlv2": "it finds objects in a photo",
    "aimv2": "its towers are gated, with a root mean square norm",
    "flava": "its text tower is a BERT",
    "vision-text-dual-encoder": "its towers are two other models",
    "blip": "BLIP has other towers",
    "clip_text_model": "it holds the text tower alone; give a full CLIPModel",
    "clip_vision_model": "it holds the vision tower alone; give a full CLIPModel",
    "metaclip_2_text_model": "it holds the text tower alone; give the full MetaClip2Model",
    "metaclip_2_vision_model": "it holds the vision tower alone; give the full MetaClip2Model",
    "siglip_text_model": "it holds the text tower alone; give the full SiglipModel",
    "siglip_vision_model": "it holds the vision tower alone; give the full SiglipModel",
    "siglip2_text_model": "it holds the text tower alone; give the full Siglip2Model",
    "siglip2_vision_model": "it holds the vision tower alone; give the full Siglip2Model",
}


@pytest.mark.parametrize("name", FAMILY)
def test_the_rest_of_transformers_family_is_refused(name, tmp_path):
    transformers.AutoConfig.for_model(name, **OWN.get(name, {})).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=FAMILY[name]) as caught:
        huggingface.read_config(tmp_path)
    assert "\n" not in str(caught.value)


# What has no defaults.
OWN = {
    "vision-text-dual-encoder": {
        "text_config": {"model_type": "bert"}, "vision_config": {"model_type": "vit"}
    },
}  # fmt: skip


def test_no_other_model_type_of_transformers_is_read(tmp_path):
    """Nor one that is spelled like a known one: what is not on the list has a reason."""
    kinds = {*CONFIG_MAPPING_NAMES, "CLIP", "clip ", "siglip3", "metaclip"}
    for kind in kinds - {"clip", "metaclip_2", "siglip", "siglip2"}:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(CheckpointError, match="not 'clip': "):
            huggingface.read_config(tmp_path)
