"""Models of open_clip, both ways: `open_clip_config.json` beside a state dict.

    stored, _ = tensors.open_file(Path("dir/open_clip_model.safetensors"))
    config, preprocessor = read_config(Path("dir"))
    params = load_params(stored, config, "dir")
    save("exported", config, params)

Its `CLIP` has OpenAI's tensor names, its `CustomTextCLIP` the same with `text.` before those of the
text tower. What the names leave open the configuration says, the activation above all: without
`quick_gelu` open_clip takes gelu. Written and read as open_clip 3 does (`model.py`, `factory.py`
of https://github.com/mlfoundations/open_clip).

A vision tower that is no plain transformer (timm's, a ResNet) is not read: the configuration has
none (`CLIPConfig.vision` is None), and `OtherVision` keeps what the file holds of it, to be written
back as it was.
"""

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from negclip_jax.common.errors import InputError
from negclip_jax.data.images import CLIP_MEAN, CLIP_STD, Preprocessor
from negclip_jax.interop import openai, writing
from negclip_jax.interop.config import (
    copy_tokenizer,
    errors_of,
    preprocessor_of,
    tokenizer_beside,
    typed,
    write_config,
)
from negclip_jax.interop.files import CheckpointError, OtherVision, StoredTensor, read_json
from negclip_jax.interop.parameters import Key, export_tensors, linear, require_clip
from negclip_jax.models.clip import CLIPConfig, TextConfig, VisionConfig
from negclip_jax.models.siglip import SigLIPConfig, SigLIPTextConfig

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")

# What is read, with open_clip's defaults (CLIPTextCfg, CLIPVisionCfg).
_TOWER = {"mlp_ratio": 4.0, "norm_kwargs": None, "act_kwargs": None, "layers": 12}
_TEXT = _TOWER | {"width": 512, "heads": 8, "context_length": 77, "vocab_size": 49408}
_TOKENIZER = {"hf_tokenizer_name": None, "tokenizer_kwargs": None, "tokenizer_mode": None}
_TEXT |= {"pool_type": "argmax", "eos_id": 2, "no_causal_mask": False} | _TOKENIZER
_TEXT |= {"proj_bias": False, "proj_type": "linear", "ls_init_value": None}
_VISION = _TOWER | {"width": 768, "head_width": 64, "image_size": 224, "patch_size": 16}
# Read only where another key is set that is refused (hf_model_name, timm_model_name, embed_cls,
# attentional_pool), only while training, or by nothing (a text tower's final_ln_after_pool). Every
# other key that is set to something else than nothing, or than the value in _OURS, makes another
# model or other token ids.
_IDLE = {"hf_model_pretrained", "hf_proj_type", "hf_pooler_type", "patch_dropout", "pad_id"}
_IDLE |= {"attn_pooler_queries", "attn_pooler_heads", "timm_model_pretrained", "timm_pool"}
_IDLE |= {"timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path"}
_OURS = {"block_type": "default", "pool_type": "tok", "pos_embed_type": "learnable"}
_REASONS = {
    "multimodal_cfg": "a CoCa has a decoder of captions beside its towers",
    "hf_model_name": "its text tower is another model of transformers, and only CLIP's are read",
    "embed_cls": "its text tower reads a class token that it appends to a caption, as CoCa's does",
}
# Of the model itself: sizes, the names of tensors, and where trained values start.
_MODEL = {"embed_dim", "text_cfg", "vision_cfg", "quick_gelu", "custom_text", "init_logit_bias"}
_MODEL |= {"init_logit_scale", "nonscalar_logit_scale", "cast_dtype", "output_dict"}
_POOLINGS = {"argmax": "argmax", "eos": "first_eos", "first": "first", "last": "last"}
_TANH = {"approximate": "tanh"}
_PIPELINE = {"mode": "RGB", "interpolation": "bicubic", "resize_mode": "shortest"}
_CLIP_VOCABULARY, _XLM_V = 49408, (901629, "facebook/xlm-v-base")


def other_vision(folder: Path) -> OtherVision:
    """What a folder's configuration says, which may be one of open_clip's own by name.

    Those (`model_configs/NAME.json`) are what a folder's configuration has as `model_cfg`.
    """
    raw = read_json(folder / CONFIG)
    return OtherVision(raw if "model_cfg" in raw else {"model_cfg": raw, "preprocess_cfg": {}})


def read_config(directory: Path) -> tuple[CLIPConfig, Preprocessor, dict[str, Any]]:
    """Model, preprocessing and tokenizer from `DIRECTORY/open_clip_config.json`.

    The model has no vision tower where that is no plain transformer, and is a SigLIP where its
    logits have a bias. The tokenizer is what text_cfg says of it (`hf_tokenizer_name`,
    `tokenizer_kwargs`), empty where open_clip takes CLIP's own. An export holds it as it is.

    Raises CheckpointError for no such file, bad JSON, and a key whose value makes another text
    tower than those of CLIP and SigLIP.
    """
    path = directory / CONFIG
    raw = read_json(path)
    model, preprocess = raw.get("model_cfg", raw), raw.get("preprocess_cfg", {})
    sections = (model, model.get("text_cfg"), model.get("vision_cfg"), preprocess)
    if not all(isinstance(section, dict) for section in sections) or "embed_dim" not in model:
        raise CheckpointError(
            f"{path} is no configuration of a CLIP: it needs model_cfg with embed_dim, text_cfg "
            "and vision_cfg"
        )
    # A decoder of captions, another text tower, or what a later open_clip adds.
    wrong = [f"model_cfg.{key}" for key in sorted(model.keys() - _MODEL) if model[key] is not None]
    wrong += [f"text_cfg.{said}" for said in _other(model["text_cfg"], _TEXT)]
    if wrong:
        known = [reason for key, reason in _REASONS.items() if any(f".{key}" in w for w in wrong)]
        reason = known[0] if known else "only the text towers of CLIP and SigLIP are read"
        raise CheckpointError(f"{path}: {', '.join(wrong)} makes another model: {reason}")
    text = _TEXT | {key: value for key, value in model["text_cfg"].items() if key in _TEXT}
    vision = _VISION | {key: v for key, v in model["vision_cfg"].items() if key in _VISION}
    quick, bias = bool(model.get("quick_gelu", False)), model.get("init_logit_bias")
    with errors_of(path):
        if text["pool_type"] not in _POOLINGS:
            known = ", ".join(_POOLINGS)
            raise ValueError(f"text_cfg.pool_type {text['pool_type']!r} is none of {known}")
        if text["proj_type"] not in ("linear", "none"):
            raise ValueError(f"text_cfg.proj_type {text['proj_type']!r} is not linear or none")
        of_text = {name: text[name] for name in ("heads", "vocab_size", "context_length")}
        of_text |= {"eos_token_id": text["eos_id"], "pooling": _POOLINGS[text["pool_type"]]}
        of_text |= {"causal": not text["no_causal_mask"]}
        projection = "bias" if text["proj_bias"] else "linear"
        of_text["projection"] = "none" if text["proj_type"] == "none" else projection
        of_text["layer_scale"] = text["ls_init_value"] is not None
        of_text |= _tower(text, quick)
        size, tower = preprocess.get("size") or vision["image_size"], None
        if bias is None and not _other(model["vision_cfg"], _VISION):
            of_vision = {name: _square(vision[name]) for name in ("image_size", "patch_size")}
            of_vision["heads"] = vision["width"] // vision["head_width"]
            tower = VisionConfig(**of_vision, **_tower(vision, quick))
            size = tower.image_size
        sections = {"vision": tower, "projection_dim": model["embed_dim"]}
        if bias is None:
            config = CLIPConfig(text=TextConfig(**of_text), **sections)
        else:
            start = typed(bias, -10.0, "model_cfg.init_logit_bias")
            sections["logit_bias_init"] = start
            config = SigLIPConfig(text=SigLIPTextConfig(**of_text), **sections)
        size = size[0] if isinstance(size, list) and size else size
        size = typed(size, 224, "the size of an image")
    images = _preprocessor(path, preprocess, size, is_read=tower is not None)
    return config, images, {key: text[key] for key in _TOKENIZER if text[key]}


def _preprocessor(path: Path, given: dict[str, Any], size: int, *, is_read: bool) -> Preprocessor:
    """What `preprocess_cfg` says; refused is what a model that is read cannot be given."""
    said = {key: given.get(key, default) for key, default in _PIPELINE.items()}
    squash, filtered = said["resize_mode"] == "squash", said["interpolation"]
    known = {"mode": ("RGB",), "resize_mode": ("shortest", "squash")}
    # "random" is of its training, and bicubic otherwise.
    known["interpolation"] = ("bicubic", "random", "bilinear")[: 3 if squash else 2]
    other = [f"{key}={said[key]!r}" for key in known if said[key] not in known[key]]
    if other and is_read:
        raise CheckpointError(
            f"{path}: preprocess_cfg has {', '.join(other)}, but only CLIP's preprocessing is "
            "read: a bicubic resize of the shortest side and a centre crop, or of both sides"
        )
    try:
        return Preprocessor(
            size=size,
            resize=size,
            mean=tuple(given.get("mean") or CLIP_MEAN),
            std=tuple(given.get("std") or CLIP_STD),
            squash=squash,
            resample="bilinear" if squash and filtered == "bilinear" else "bicubic",
        )
    except (TypeError, InputError) as error:
        raise CheckpointError(f"{path}: preprocess_cfg: {error}") from error


def _other(given: dict[str, Any], known: dict[str, Any]) -> list[str]:
    """Values of a tower's section that make another architecture, as `key=value`."""
    is_text = "context_length" in known
    idle = _IDLE | known.keys() | ({"final_ln_after_pool"} if is_text else set())
    other = [
        f"{key}={value!r}"
        for key, value in given.items()
        if key not in idle and value not in (None, False, _OURS.get(key))
    ]
    # The stages of a ResNet are a list of layers.
    return other + ([f"layers={given['layers']}"] if isinstance(given.get("layers"), list) else [])


def _tower(section: dict[str, Any], quick: bool) -> dict[str, Any]:
    options = section["act_kwargs"] or {}
    if options not in ({}, _TANH) or (quick and options):
        raise ValueError(f"act_kwargs {options} are not read")
    plain = "gelu_pytorch_tanh" if options else "gelu"
    norm = section["norm_kwargs"] or {}
    if norm.keys() - {"eps"}:
        raise ValueError(f"norm_kwargs {norm} are not read, but for eps")
    return {
        "width": section["width"],
        "layers": section["layers"],
        "mlp_width": int(section["width"] * section["mlp_ratio"]),
        "hidden_act": openai.HIDDEN_ACT if quick else plain,
        "layer_norm_eps": norm.get("eps", 1e-5),
    }


def _square(size: Any) -> int:
    sides = set(size) if isinstance(size, list) else {size}
    if len(sides) != 1:
        raise ValueError(f"the size {size} is not square")
    return sides.pop()


def has_custom_text(names: Iterable[str]) -> bool:
    """Whether tensor names are those of CustomTextCLIP, with `text.` before the text tower."""
    return any(name.startswith("text.") for name in names)


def keys_of(config: CLIPConfig, *, custom_text: bool) -> tuple[Key, ...]:
    """The layout of a model: all its tensors, without those of a vision tower that is not read."""
    text, path = [], "text/blocks"
    for key in openai.TEXT_KEYS:
        if key.name != "text_projection" or config.text.projection == "linear":
            text.append(key)
    if config.text.projection == "bias":
        text += linear("text_projection", "text_projection")
    if config.text.layer_scale:
        name = "transformer.resblocks.{layer}"
        text += [Key(f"{name}.ls_{i}.gamma", f"{path}/ls_{i}") for i in (1, 2)]
    if custom_text:
        text = [dataclasses.replace(key, name=f"text.{key.name}") for key in text]
    bias = [Key("logit_bias", "logit_bias")] if isinstance(config, SigLIPConfig) else []
    rest = openai.OTHER_KEYS[: 1 if config.vision is None else None]
    return (*text, *rest, *bias)


def load_params(
    stored: Mapping[str, StoredTensor],
    config: CLIPConfig,
    where: Path | str,
    *,
    authority: str = CONFIG,
) -> dict[str, Any]:
    """Tensors of a CLIP or CustomTextCLIP in our tree; see `parameters.read_params`."""
    keys = keys_of(config, custom_text=has_custom_text(stored))
    if config.vision is None:
        stored = {name: t for name, t in stored.items() if not name.startswith("visual.")}
    return openai.load_params(stored, config, where, keys=keys, authority=authority)


def config_dict(config: CLIPConfig, preprocessor: Preprocessor) -> dict[str, Any]:
    """`open_clip_config.json` for a model; CheckpointError for one that it cannot express."""
    require_clip(config, "this layout of open_clip")
    text, vision = config.text, config.vision
    if vision is None:
        raise CheckpointError(
            "the model has a vision tower of another library, and not its weights"
        )
    quick = {tower.hidden_act == openai.HIDDEN_ACT for tower in (text, vision)}
    if len(quick) == 2:
        raise CheckpointError(
            f"open_clip has one quick_gelu for both towers, and this model has {text.hidden_act} "
            f"in its text tower and {vision.hidden_act} in its vision tower: export it with "
            "--layout=huggingface"
        )
    of_pooling = {ours: theirs for theirs, ours in _POOLINGS.items()}
    pooling: dict[str, Any] = {"pool_type": of_pooling[text.pooling]}
    if text.pooling == "first_eos":
        pooling["eos_id"] = text.eos_token_id
    pooling |= {} if text.causal else {"no_causal_mask": True}
    pooling |= {"bias": {"proj_bias": True}, "none": {"proj_type": "none"}}.get(text.projection, {})
    pooling |= {"ls_init_value": 1e-5} if text.layer_scale else {}
    of_vision = {"image_size": vision.image_size, "patch_size": vision.patch_size}
    of_text = {name: getattr(text, name) for name in ("context_length", "vocab_size", "heads")}
    model = {
        "embed_dim": config.projection_dim,
        "quick_gelu": quick.pop(),
        "vision_cfg": of_vision
        | {"head_width": vision.width // vision.heads}
        | _tower_dict(vision),
        "text_cfg": of_text | _tower_dict(text) | pooling,
    }
    if preprocessor.resize != preprocessor.size and not preprocessor.squash:
        raise CheckpointError(
            f"open_clip crops at the size that it resizes to, and this model resizes to "
            f"{preprocessor.resize} and crops at {preprocessor.size}"
        )
    pipeline = _PIPELINE | {"mean": list(preprocessor.mean), "std": list(preprocessor.std)}
    if preprocessor.squash:
        pipeline |= {"resize_mode": "squash", "interpolation": preprocessor.resample}
    return {"model_cfg": model, "preprocess_cfg": {"size": preprocessor.size} | pipeline}


def agree(first: CLIPConfig, second: CLIPConfig) -> bool:
    """Whether two configurations are one model to open_clip; raises as `config_dict` does.

    It has one word for both tanh forms of gelu and none for where the scale starts. Where the end
    token is the largest id, the first end token and the first of the largest ids are one place.
    """

    def described(config: CLIPConfig) -> dict[str, Any]:
        text = config.text
        if text.eos_token_id == text.vocab_size - 1:
            text = dataclasses.replace(text, pooling="argmax")
        plain = dataclasses.replace(config, text=text)
        return config_dict(plain, preprocessor_of(None, plain))

    return described(first) == described(second)


def _tower_dict(tower: TextConfig | VisionConfig) -> dict[str, Any]:
    ratio = tower.mlp_width / tower.width
    if int(tower.width * ratio) != tower.mlp_width:  # which is what open_clip makes of it
        ratio = (tower.mlp_width + 0.5) / tower.width
    section = {"width": tower.width, "layers": tower.layers, "mlp_ratio": ratio}
    if tower.layer_norm_eps != 1e-5:
        section["norm_kwargs"] = {"eps": tower.layer_norm_eps}
    if tower.hidden_act not in (openai.HIDDEN_ACT, "gelu"):
        section["act_kwargs"] = _TANH
    return section


def write(stage: Path, export: writing.Export) -> None:
    """Writes a directory for `open_clip.create_model_and_transforms("local-dir:...")`.

    `open_clip_config.json` and `open_clip_model.safetensors` (one file: open_clip reads no
    shards), and Hugging Face's config.json, tokenizer and preprocessor files beside them. The
    weights are float32 by default, its `architecture` may be "CustomTextCLIP". A vision tower that
    is not read is written as it was, with the configuration that it came with and a tokenizer. A
    model that open_clip cannot express is refused.
    """
    config, dtype, other = export.config, export.dtype or "float32", export.other_vision
    if other is not None and other.described is None:
        raise CheckpointError(
            "the model has a vision tower of transformers, kept as it stood in its file: write it "
            "with --layout=huggingface"
        )
    custom_text = export.architecture == "CustomTextCLIP"
    if other is None:
        images = export.preprocessor or preprocessor_of(export.base, config)
        described = config_dict(config, images)
    else:
        described = copy.deepcopy(dict(other.described))
    model = described.get("model_cfg", described)
    if custom_text:
        model["custom_text"] = True
    custom_text = bool(model.get("custom_text"))
    keys = keys_of(config, custom_text=custom_text)
    places, take = export_tensors(export.params, config, keys)
    tensors = {name: writing.converted(name, take(name), dtype) for name in places}
    if other is None:
        write_config(stage, export, dtype)
        text = model["text_cfg"]
        # Without a name open_clip takes OpenAI's vocabulary. With one it takes, of a folder, the
        # tokenizer in it, and of the Hub what has the name.
        text |= export.tokenizer_keys
        if not export.tokenizer_keys and text["vocab_size"] == _XLM_V[0]:
            text["hf_tokenizer_name"] = _XLM_V[1]
        elif text["vocab_size"] != _CLIP_VOCABULARY and tokenizer_beside(stage):
            text.setdefault("hf_tokenizer_name", "the tokenizer in this folder")
    else:
        tensors |= {name: tensor.read() for name, tensor in other.tensors.items()}
        if export.tokenizer is not None:
            copy_tokenizer(export.tokenizer, stage)
    writing.write_json(stage / CONFIG, described)
    writing.write_file(stage / WEIGHTS[0], tensors)


save = writing.saver(write)
