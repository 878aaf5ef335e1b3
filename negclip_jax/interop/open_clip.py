"""Models of open_clip, both ways: `open_clip_config.json` beside a state dict.

    stored, _ = tensors.open_file(Path("dir/open_clip_model.safetensors"))
    config, preprocessor = read_config(Path("dir"))
    params = load_params(stored, config, "dir")
    save("exported", config, params)

Its `CLIP` has OpenAI's tensor names, its `CustomTextCLIP` the same with `text.` before those of the
text tower. What the names leave open the configuration says, the activation above all: without
`quick_gelu` open_clip takes gelu. Written and read as open_clip 3 does (`model.py`, `factory.py`
of https://github.com/mlfoundations/open_clip).
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from negclip_jax.common.errors import InputError
from negclip_jax.data.images import CLIP_MEAN, CLIP_STD, Preprocessor
from negclip_jax.interop import openai, writing
from negclip_jax.interop.config import errors_of, preprocessor_of, tokenizer_beside, write_config
from negclip_jax.interop.files import CheckpointError, StoredTensor, read_json
from negclip_jax.interop.parameters import export_tensors, require_clip
from negclip_jax.models.clip import CLIPConfig, TextConfig, VisionConfig

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
KEYS = openai.KEYS
CUSTOM_TEXT_KEYS = (
    *(dataclasses.replace(key, name=f"text.{key.name}") for key in openai.TEXT_KEYS),
    *openai.OTHER_KEYS,
)

# What is read, with open_clip's defaults (CLIPTextCfg, CLIPVisionCfg).
_TOWER = {"mlp_ratio": 4.0, "norm_kwargs": None, "act_kwargs": None, "layers": 12}
_TEXT = _TOWER | {"width": 512, "heads": 8, "context_length": 77, "vocab_size": 49408}
_TOKENIZER = {"hf_tokenizer_name": None, "tokenizer_kwargs": None, "tokenizer_mode": None}
_TEXT |= {"pool_type": "argmax", "eos_id": 2} | _TOKENIZER
_VISION = _TOWER | {"width": 768, "head_width": 64, "image_size": 224, "patch_size": 16}
# Read only where a key that is refused is set (hf_model_name, timm_model_name, attentional_pool,
# embed_cls), or only while training. Every other key that is set to something else than nothing, or
# than the value in _OURS, makes another model or other token ids.
_IDLE = {"hf_model_pretrained", "hf_proj_type", "hf_pooler_type", "patch_dropout", "pad_id"}
_IDLE |= {"attn_pooler_queries", "attn_pooler_heads", "timm_model_pretrained", "timm_pool"}
_IDLE |= {"timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path"}
_OURS = {"proj_type": "linear", "block_type": "default", "pool_type": "tok"}
_OURS |= {"pos_embed_type": "learnable"}
# Of the model itself: sizes, the names of tensors, and where trained values start.
_MODEL = {"embed_dim", "text_cfg", "vision_cfg", "quick_gelu", "custom_text"}
_MODEL |= {"init_logit_scale", "nonscalar_logit_scale", "cast_dtype", "output_dict"}
_POOLINGS = {"argmax": "argmax", "eos": "first_eos"}
_TANH = {"approximate": "tanh"}
_PIPELINE = {"mode": "RGB", "interpolation": "bicubic", "resize_mode": "shortest"}
_CLIP_VOCABULARY, _XLM_V = 49408, (901629, "facebook/xlm-v-base")


def read_config(directory: Path) -> tuple[CLIPConfig, Preprocessor, dict[str, Any]]:
    """Model, preprocessing and tokenizer from `DIRECTORY/open_clip_config.json`.

    The tokenizer is what text_cfg says of it (`hf_tokenizer_name`, `tokenizer_kwargs`), empty where
    open_clip takes CLIP's own. An export holds it as it is.

    Raises:
      CheckpointError: no such file, bad JSON, or a key whose value makes another model than the
        CLIP with two plain transformers.
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
    if "siglip" in str(model["vision_cfg"].get("timm_model_name")).lower():
        raise CheckpointError(
            f"{path} is of a SigLIP whose vision tower is timm's, which makes another model than "
            "those that are read in this layout: give the same weights in transformers' form "
            "(model_type siglip, such as google/siglip-base-patch16-224)"
        )
    # A logit bias, a decoder of captions, or what a later open_clip adds.
    wrong = [f"model_cfg.{key}" for key in model.keys() - _MODEL if model[key] is not None]
    if wrong:
        raise CheckpointError(f"{path}: {', '.join(sorted(wrong))} makes another model than a CLIP")
    text = _section(path, model["text_cfg"], "text_cfg", _TEXT)
    vision = _section(path, model["vision_cfg"], "vision_cfg", _VISION)
    quick = bool(model.get("quick_gelu", False))
    with errors_of(path):
        if text["pool_type"] not in _POOLINGS:
            raise ValueError(f"text_cfg.pool_type {text['pool_type']!r} is not argmax or eos")
        of_text = {name: text[name] for name in ("heads", "vocab_size", "context_length")}
        of_text |= {"eos_token_id": text["eos_id"], "pooling": _POOLINGS[text["pool_type"]]}
        of_vision = {name: _square(vision[name]) for name in ("image_size", "patch_size")}
        of_vision["heads"] = vision["width"] // vision["head_width"]
        config = CLIPConfig(
            text=TextConfig(**of_text, **_tower(text, quick)),
            vision=VisionConfig(**of_vision, **_tower(vision, quick)),
            projection_dim=model["embed_dim"],
        )
    given = {key: preprocess.get(key, default) for key, default in _PIPELINE.items()}
    squash, filtered = given["resize_mode"] == "squash", given["interpolation"]
    known = {"mode": ("RGB",), "resize_mode": ("shortest", "squash")}
    # "random" is of its training, and bicubic otherwise.
    known["interpolation"] = ("bicubic", "random", "bilinear")[: 3 if squash else 2]
    other = [f"{key}={given[key]!r}" for key in known if given[key] not in known[key]]
    if other:
        raise CheckpointError(
            f"{path}: preprocess_cfg has {', '.join(other)}, but only CLIP's preprocessing is "
            "read: a bicubic resize of the shortest side and a centre crop, or of both sides"
        )
    size = config.vision.image_size
    try:
        images = Preprocessor(
            size=size,
            resize=size,
            mean=tuple(preprocess.get("mean") or CLIP_MEAN),
            std=tuple(preprocess.get("std") or CLIP_STD),
            squash=squash,
            resample="bilinear" if filtered == "bilinear" else "bicubic",
        )
    except (TypeError, InputError) as error:
        raise CheckpointError(f"{path}: preprocess_cfg: {error}") from error
    return config, images, {key: text[key] for key in _TOKENIZER if text[key]}


def _section(path: Path, given: dict, name: str, known: dict[str, Any]) -> dict[str, Any]:
    """A tower's values with defaults; a value that makes another architecture is refused."""
    other = [
        f"{name}.{key}={value!r}"
        for key, value in given.items()
        if key not in _IDLE | known.keys() and value not in (None, False, _OURS.get(key))
    ]
    # The stages of a ResNet are a list of layers.
    other += [f"{name}.layers={given['layers']}"] if isinstance(given.get("layers"), list) else []
    if other:
        raise CheckpointError(
            f"{path}: {', '.join(other)} makes another model than a CLIP of two plain "
            "transformers, and only those are read"
        )
    return known | {key: value for key, value in given.items() if key in known}


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


def load_params(
    stored: Mapping[str, StoredTensor],
    config: CLIPConfig,
    where: Path | str,
    *,
    authority: str = CONFIG,
) -> dict[str, Any]:
    """Tensors of a CLIP (OpenAI's names) or CustomTextCLIP in our tree.

    Args, returns and raises are those of `parameters.read_params`.
    """
    keys = CUSTOM_TEXT_KEYS if has_custom_text(stored) else KEYS
    return openai.load_params(stored, config, where, keys=keys, authority=authority)


def config_dict(config: CLIPConfig, preprocessor: Preprocessor) -> dict[str, Any]:
    """`open_clip_config.json` for a model.

    Raises:
      CheckpointError: a model that open_clip cannot express, with all reasons.
    """
    require_clip(config, "this layout of open_clip")
    text, vision = config.text, config.vision
    quick = {tower.hidden_act == openai.HIDDEN_ACT for tower in (text, vision)}
    if len(quick) == 2:
        raise CheckpointError(
            f"open_clip has one quick_gelu for both towers, and this model has {text.hidden_act} "
            f"in its text tower and {vision.hidden_act} in its vision tower: export it with "
            "--layout=huggingface"
        )
    pooling = {"pool_type": "argmax"}
    if text.pooling == "first_eos":
        pooling = {"pool_type": "eos", "eos_id": text.eos_token_id}
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
    """Whether two configurations are one model to open_clip.

    It has one word for both tanh forms of gelu and none for where the scale starts. Where the end
    token is the largest id, the first end token and the first of the largest ids are one place.

    Raises:
      CheckpointError: see `config_dict`.
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
    weights are float32 by default, its `architecture` may be "CustomTextCLIP". A model that
    open_clip cannot express is refused.
    """
    config, dtype = export.config, export.dtype or "float32"
    described = config_dict(config, export.preprocessor or preprocessor_of(export.base, config))
    custom_text = export.architecture == "CustomTextCLIP"
    if custom_text:
        described["model_cfg"]["custom_text"] = True
    text = described["model_cfg"]["text_cfg"]
    keys = CUSTOM_TEXT_KEYS if custom_text else KEYS
    places, take = export_tensors(export.params, config, keys)
    write_config(stage, export, dtype)
    # Without a name open_clip takes OpenAI's vocabulary. With one it takes, of a folder, the
    # tokenizer in it, and of the Hub what has the name.
    text |= export.tokenizer_keys
    if not export.tokenizer_keys and text["vocab_size"] == _XLM_V[0]:
        text["hf_tokenizer_name"] = _XLM_V[1]
    elif text["vocab_size"] != _CLIP_VOCABULARY and tokenizer_beside(stage):
        text.setdefault("hf_tokenizer_name", "the tokenizer in this folder")
    writing.write_json(stage / CONFIG, described)
    tensors = {name: writing.converted(name, take(name), dtype) for name in places}
    writing.write_file(stage / WEIGHTS[0], tensors)


save = writing.saver(write)
