"""`config.json` and its companions of a Hugging Face CLIP or SigLIP, both ways.

An own reader, because importing `transformers.CLIPConfig` takes two seconds and pulls in torch
where that is installed, while the rules are few. transformers stays the authority: the tests
compare this reader with its class on every case below.
"""

import contextlib
import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL.Image import Resampling

from negclip_jax.common.decoding import ImageError
from negclip_jax.common.strict_json import read_json as read_strictly
from negclip_jax.data.images import (
    CLIP_MEAN,
    CLIP_STD,
    RESAMPLES,
    SIGLIP_MEAN,
    SIGLIP_STD,
    Preprocessor,
)
from negclip_jax.interop.files import CheckpointError, read_json
from negclip_jax.interop.writing import (
    TOKENIZER_FILES,
    Export,
    copy_file,
    copy_non_weights,
    write_json,
)
from negclip_jax.models.clip import CLIPConfig, TextConfig, VisionConfig
from negclip_jax.models.siglip import SigLIPConfig, SigLIPTextConfig, SigLIPVisionConfig

# Their key to our field; what a config.json leaves out has transformers' default, which is
# ViT-B/32 and the default of our classes too.
_TOWER_KEYS = {
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp_width",
    "hidden_act": "hidden_act",
    "layer_norm_eps": "layer_norm_eps",
}
_SIGLIP_TEXT_KEYS = _TOWER_KEYS | {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "context_length",
}
_TEXT_KEYS = _SIGLIP_TEXT_KEYS | {"eos_token_id": "eos_token_id"}
_VISION_KEYS = _TOWER_KEYS | {"image_size": "image_size", "patch_size": "patch_size"}
_TOP_KEYS = {"projection_dim": "projection_dim", "logit_scale_init_value": "logit_scale_init"}

# transformers' own word for "the largest id": checkpoints of `model_type` "clip" that say so were
# saved before the field had a meaning. In a "metaclip_2" 2 is the id of the end token.
_LARGEST_ID = 2
# transformers reads a "metaclip_2" as a CLIPModel with a warning, and pools at another token. A
# section of its own `model_type` is what such a class reads instead: this text is in its error.
_NO_CLIP = (
    "a CLIPModel takes an end token of 2 for the largest token id and would pool at another token: "
    "load this model with AutoModel or MetaClip2Model"
)
_WORDS = {int: "one whole number", float: "a number", str: "a name"}
CLIP_TYPES = ("clip", "metaclip_2")
_ALONE = "it holds the {} tower alone; give a full {} as well ({})"
_BASE = "base=, or --base of the export command"
_OTHER_MODELS = {
    "clip_text_model": _ALONE.format("text", "CLIPModel", _BASE),
    "clip_vision_model": _ALONE.format("vision", "CLIPModel", _BASE),
    "blip": "BLIP has other towers",
    "clipseg": "CLIPSeg is a decoder around CLIP; give the CLIPModel inside it",
    "altclip": "its text tower is an XLM-RoBERTa",
    **dict.fromkeys(("align", "chinese_clip", "flava"), "its text tower is a BERT"),
    "aimv2": "its towers are gated, with a root mean square norm",
    "groupvit": "its projections are networks with a batch norm",
    **dict.fromkeys(("owlvit", "owlv2"), "it finds objects in a photo"),
    "vision-text-dual-encoder": "its towers are two other models",
    "xclip": "it reads videos",
}
_OTHER_MODELS |= {
    f"{family}_{tower}_model": f"it holds the {tower} tower alone; give the full {name}Model"
    for family, name in (("metaclip_2", "MetaClip2"), ("siglip", "Siglip"), ("siglip2", "Siglip2"))
    for tower in ("text", "vision")
}


@contextlib.contextmanager
def errors_of(path: Path) -> Iterator[None]:
    """Values that make no model become a CheckpointError that names the file."""
    try:
        yield
    except (ValueError, TypeError, ArithmeticError, AttributeError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_config(directory: Path | str) -> CLIPConfig:
    """Reads what shapes a CLIP, or changes its arithmetic, from `DIRECTORY/config.json`.

    Follows transformers: absent values have its defaults (ViT-B/32), `text_config_dict` overrides
    `text_config`, the top-level `projection_dim` rules over those of the towers. A `model_type` of
    "metaclip_2" is a CLIP whose end token is a token, whatever its id. SigLIP 2 of fixed resolution
    has SigLIP's architecture and `model_type`; of flexible resolution (NaFlex, "siglip2"), which
    takes patches instead of pixels, the text tower alone is read: `vision` is None. Raises
    CheckpointError for no such file, another architecture and a value of the wrong type.
    """
    path = Path(directory) / "config.json"
    raw = read_json(path)
    kind = raw.get("model_type", "clip")
    if kind not in (*CLIP_TYPES, "siglip", "siglip2"):
        reason = _OTHER_MODELS.get(str(kind), "it has another architecture")
        raise CheckpointError(f"{path}: model_type is {kind!r}, not 'clip': {reason}")
    sections = []
    for name in ("text_config", "vision_config"):
        # `text_config_dict`, where present, replaces all values, defaults included.
        legacy = raw.get(f"{name}_dict")
        sections.append((raw.get(name) if legacy is None else legacy) or {})
        if not isinstance(sections[-1], dict):
            raise CheckpointError(f"{path}: {name} is {sections[-1]!r}, not an object")
    text, vision = sections
    with errors_of(path):
        if kind in ("siglip", "siglip2"):
            return _siglip_config(text, vision, is_read=kind == "siglip")
        return CLIPConfig(
            text=text_config(text, "text_config.", legacy=kind == "clip"),
            vision=vision_config(vision, "vision_config."),
            **fields(raw, _TOP_KEYS, "", CLIPConfig()),
        )


def _siglip_config(text: dict[str, Any], vision: dict[str, Any], *, is_read: bool) -> SigLIPConfig:
    if not vision.get("vision_use_head", True) or vision.get("num_channels", 3) != 3:
        raise ValueError("vision_config must have vision_use_head true and num_channels 3")
    of_text = fields(text, _SIGLIP_TEXT_KEYS, "text_config.", SigLIPTextConfig())
    of_vision = fields(vision, _VISION_KEYS, "vision_config.", SigLIPVisionConfig())
    tower = SigLIPTextConfig(**of_text)
    # What older versions of transformers do not write: the text tower's own width.
    projection = text.get("projection_size") or tower.width
    config = SigLIPConfig(
        text=tower, vision=SigLIPVisionConfig(**of_vision), projection_dim=projection
    )
    return config if is_read else dataclasses.replace(config, vision=None)


def text_config(section: dict[str, Any], where: str = "", *, legacy: bool = True) -> TextConfig:
    """The text tower that a section describes; `where` goes before its keys in messages.

    `legacy` says whether an `eos_token_id` of 2 means the largest id, as in a CLIPTextModel. Raises
    ValueError for a value of the wrong type, or values that make no model.
    """
    found = fields(section, _TEXT_KEYS, where, TextConfig())
    if legacy and found.get("eos_token_id") == _LARGEST_ID:
        found["pooling"] = "argmax"
    return TextConfig(**found)


def vision_config(section: dict[str, Any], where: str = "") -> VisionConfig:
    """The vision tower that a section describes; see `text_config`."""
    channels = section.get("num_channels", 3)
    if channels != 3:
        raise ValueError(f"{where}num_channels is {channels}; only 3 (RGB) is read")
    return VisionConfig(**fields(section, _VISION_KEYS, where, VisionConfig()))


def fields(section: dict, keys: dict[str, str], where: str, default: Any) -> dict[str, Any]:
    """Values of a section under our names, by `keys`, theirs to ours; what it leaves out is absent.

    The values of `default`, an object with our fields, give the types: ValueError for another.
    """
    return {
        field: typed(section[key], getattr(default, field), f"{where}{key}")
        for key, field in keys.items()
        if key in section
    }


def typed(value: Any, example: Any, where: str) -> Any:
    """Checks a JSON value against the type of our default; sizes may be written `[224, 224]`."""
    if where.endswith("_size") and isinstance(value, list) and len(set(map(repr, value))) == 1:
        value = value[0]
    kinds = (int, float) if isinstance(example, float) else type(example)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ValueError(f"{where} is {value!r}, which is not {_WORDS[type(example)]}")
    # Token ids may be 0, every other whole number is a size.
    if isinstance(example, int) and value < (0 if where.endswith("_id") else 1):
        raise ValueError(f"{where} is {value}, which is too small")
    if isinstance(example, float) and not abs(value) < 1e300:  # an int has no infinity
        raise ValueError(f"{where} is {value}, which is not finite")
    return value


def config_dict(config: CLIPConfig, dtype: str) -> dict[str, Any]:
    """A complete `config.json` for a model that was not made from a checkpoint.

    `dtype` is that of the weights beside it, a name of `writing.DTYPES`.
    """
    require_words(config)
    is_siglip = isinstance(config, SigLIPConfig)
    text_keys = _SIGLIP_TEXT_KEYS if is_siglip else _TEXT_KEYS
    text = {key: getattr(config.text, field) for key, field in text_keys.items()}
    vision = {key: getattr(config.vision, field) for key, field in _VISION_KEYS.items()}
    kind, name, start = "clip", "CLIP", config.text.eos_token_id - 1
    if is_siglip:
        kind, name = "siglip", "Siglip"
    elif config.text.pooling == "argmax":
        text["eos_token_id"], start = _LARGEST_ID, 0
    elif config.text.eos_token_id == _LARGEST_ID:
        kind, name, start = "metaclip_2", "MetaClip2", 0
    top = {"architectures": [f"{name}Model"], "model_type": kind, "initializer_factor": 1.0}
    text |= {"model_type": f"{kind}_text_model"}
    vision |= {"model_type": f"{kind}_vision_model"}
    if is_siglip:
        text["projection_size"] = config.projection_dim
    else:
        top["logit_scale_init_value"] = config.logit_scale_init
        text["bos_token_id"], vision["num_channels"] = max(start, 0), 3
    return corrected(top | {"text_config": text, "vision_config": vision}, config, dtype)


def require_words(config: CLIPConfig) -> None:
    """Raises CheckpointError, with all reasons, for a model that transformers has no words for."""
    text, usual = config.text, SigLIPTextConfig if isinstance(config, SigLIPConfig) else TextConfig
    plain = usual()
    said = {
        "attends in both directions": not text.causal and plain.causal,
        "is causal": text.causal and not plain.causal,
        f"is read at the {text.pooling} position": text.pooling in ("first", "last")
        and text.pooling != plain.pooling,
        f"has the projection {text.projection!r}": text.projection != plain.projection,
        "has LayerScale": text.layer_scale,
    }
    reasons = [f"its text tower {what}" for what, holds in said.items() if holds]
    if config.vision is None:
        reasons.append("its vision tower is another library's")
    if reasons:
        raise CheckpointError(
            f"transformers cannot hold this model: {', '.join(reasons)}. Export it with "
            "--layout=open_clip"
        )


def corrected(raw: dict[str, Any], config: CLIPConfig, dtype: str) -> dict[str, Any]:
    """A base's `config.json` made true for what is exported; everything else is left as it was.

    - `projection_dim` is written at the top and into both towers: LAION's configs say 512 in the
      towers, and transformers' `CLIPTextModelWithProjection` believes them.
    - The dtype is stated, because transformers 5 computes in it, and in the base's own spelling.
      Where the base has none it is `torch_dtype`, which every version reads.
    - A MetaCLIP 2 whose end token is 2 cannot be read as a CLIPModel or CLIPTextModel.
    """
    raw = copy.deepcopy(raw)
    projection = (
        {} if isinstance(config, SigLIPConfig) else {"projection_dim": config.projection_dim}
    )
    raw.setdefault("architectures", ["CLIPModel"])
    raw.setdefault("model_type", "clip")
    if "dtype" not in raw:
        raw["torch_dtype"] = dtype
    sections = [raw]
    for tower in ("text_config", "vision_config"):
        raw[tower] = raw.get(tower) or {}
        sections += [raw[tower], raw.get(f"{tower}_dict")]
    for section in sections:
        if section is not None:
            section |= projection
            section |= {key: dtype for key in ("dtype", "torch_dtype") if key in section}
    text = raw["text_config"]
    if raw["model_type"] == "metaclip_2" and text.get("eos_token_id") == _LARGEST_ID:
        raw["clip"] = {"model_type": "clip", "text_config": _NO_CLIP}
        text["clip_text_model"] = {"model_type": "clip_text_model", "hidden_act": [_NO_CLIP]}
    return raw


def settings_of(directory: Path) -> dict | None:
    """Arguments of `Preprocessor` from a checkpoint directory; None where it has no settings.

    From the `image_processor` section of `processor_config.json` (transformers 5) or from
    `preprocessor_config.json`, in transformers' order. Absent settings are those of CLIP or SigLIP.

    Raises ImageError, which names file and setting, for another pipeline than CLIP's or SigLIP's.
    """
    for path in (directory / "processor_config.json", directory / "preprocessor_config.json"):
        if not path.is_file():
            continue
        settings = read_strictly(path, dict, ImageError)
        if path.name == "processor_config.json":
            settings = settings.get("image_processor")
            if settings is None:  # written before transformers 5: no nested section
                continue
        if not isinstance(settings, dict):
            raise ImageError(f"{path} does not hold a table of preprocessing settings.")
        return _preprocessing(settings, path)
    return None


def _preprocessing(settings: dict, path: Path) -> dict:
    kind = settings.get("image_processor_type") or settings.get("feature_extractor_type") or "CLIP"
    is_siglip = "Siglip" in str(kind)
    expected = dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), (True,))
    # SigLIP resizes both sides to one size, without a crop.
    expected["do_center_crop"] = (False, None) if is_siglip else (True,)
    expected["resample"] = (2, 3) if is_siglip else (3,)
    wrong = {k: v for k, v in settings.items() if k in expected and v not in expected[k]}
    if "Siglip2" in str(kind) or not (is_siglip or "CLIP" in str(kind)):
        wrong["image_processor_type"] = kind
    factor = settings.get("rescale_factor") or 1 / 255
    is_number = isinstance(factor, (int, float))
    if not (is_siglip or (is_number and abs(factor * 255 - 1) <= 1e-6)):  # NaN is neither
        wrong["rescale_factor"] = factor
    if wrong:
        of_clip, of_siglip = "bicubic resize, centre crop", "a resize to a square"
        whose, what = ("SigLIP", of_siglip) if is_siglip else ("CLIP", of_clip)
        found = ", ".join(f"{k}={v!r}" for k, v in wrong.items())
        raise ImageError(
            f"{path} asks for preprocessing that is not {whose}'s ({found}): only {what}, "
            f"division by 255 and normalisation are supported."
        )

    def side(key: str, *names: str) -> int:
        value = settings.get(key, 224)
        sides = [value.get(name) for name in names] if isinstance(value, dict) else [value]
        named = not isinstance(value, dict) or set(value) == set(names)
        if not named or type(sides[0]) is not int or any(other != sides[0] for other in sides):
            raise ImageError(
                f"{path}: {key} is {value!r}; CLIP's is a number of pixels or "
                f"{dict.fromkeys(names, 224)!r} (the crop is square)."
            )
        return sides[0]

    colours = {}
    for key, clip, siglip in (("mean", CLIP_MEAN, SIGLIP_MEAN), ("std", CLIP_STD, SIGLIP_STD)):
        value = settings.get(f"image_{key}", siglip if is_siglip else clip)
        if not isinstance(value, (list, tuple, str)):  # what is in it is checked by Preprocessor
            raise ImageError(f"{path}: image_{key} is {value!r}, not a list of three numbers.")
        colours[key] = tuple(value)
    if not is_siglip:
        crop = side("crop_size", "height", "width")
        return {"resize": side("size", "shortest_edge"), "size": crop, **colours}
    size, resample = side("size", "height", "width"), Resampling(settings.get("resample", 3))
    square = {"squash": True, "resample": resample.name.lower()}
    return {"resize": size, "size": size, **colours, **square}


def preprocessor_of(base: Path | str | None, config: CLIPConfig) -> Preprocessor:
    """Preprocessing of a base directory; the family's own where it has none or there is no base."""
    size = config.vision.image_size if config.vision else 224
    base = base if config.vision else None  # the tower's own library prepares its images
    own = Preprocessor(size=size, resize=size)
    if isinstance(config, SigLIPConfig):
        own = dataclasses.replace(own, mean=SIGLIP_MEAN, std=SIGLIP_STD, squash=True)
    settings = None if base is None else settings_of(Path(base))
    return own if settings is None else Preprocessor(**settings)


def preprocessor_dict(
    config: CLIPConfig, preprocessor: Preprocessor | None = None
) -> dict[str, Any]:
    """A `preprocessor_config.json`; by default the family's own at the model's image size."""
    images = preprocessor or preprocessor_of(None, config)
    square = {"height": images.size, "width": images.size}
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "feature_extractor_type": "CLIPFeatureExtractor",
        "do_center_crop": True,
        "crop_size": square,
        "size": {"shortest_edge": images.resize},
        "resample": 3,
    }
    if images.squash:
        processor = {"image_processor_type": "SiglipImageProcessor", "size": square}
        processor["resample"] = RESAMPLES[images.resample].value
    done = ("do_convert_rgb", "do_resize", "do_rescale", "do_normalize")
    colours = {"image_mean": list(images.mean), "image_std": list(images.std)}
    return processor | dict.fromkeys(done, True) | {"rescale_factor": 1 / 255} | colours


def write_config(directory: Path, export: Export, dtype: str) -> None:
    """Writes what stands beside the weights of an export, which are in `dtype`.

    With a base its files, config.json made true (see `corrected`). Without, config.json and
    preprocessor_config.json (the model's own preprocessing by default). A tokenizer that is given
    goes before the base's; CheckpointError where that directory holds none.
    """
    config, base = export.config, export.base
    if base is None:
        write_json(directory / "config.json", config_dict(config, dtype))
        images = preprocessor_dict(config, export.preprocessor)
        write_json(directory / "preprocessor_config.json", images)
    else:
        copy_non_weights(base, directory)
        raw = read_json(base / "config.json")
        right = corrected(raw, config, dtype)
        if right != raw:
            write_json(directory / "config.json", right)
    if export.tokenizer is not None:
        write_tokenizer(export.tokenizer, directory, config)


def tokenizer_beside(directory: Path) -> Path | None:
    """The directory itself if it holds a tokenizer that `data.tokenizer` reads, else None."""
    pair = all((directory / name).is_file() for name in ("vocab.json", "merges.txt"))
    alone = any((directory / name).is_file() for name in ("tokenizer.json", "spiece.model"))
    return directory if pair or alone else None


def write_tokenizer(source: Path, directory: Path, config: CLIPConfig) -> None:
    """Copies a tokenizer's files; one that has no tokenizer_config.json gets CLIP's.

    Raises CheckpointError where there is no vocab.json or no merges.txt, nor a tokenizer.json.
    """
    if tokenizer_beside(source) is None:
        absent = [name for name in ("vocab.json", "merges.txt") if not (source / name).is_file()]
        raise CheckpointError(f"the tokenizer directory {source} has no {' and no '.join(absent)}")
    if not isinstance(config, SigLIPConfig):
        end = "<|endoftext|>"
        settings = {"tokenizer_class": "CLIPTokenizer", "do_lower_case": True}
        settings |= {"model_max_length": config.text.context_length, "bos_token": "<|startoftext|>"}
        settings |= dict.fromkeys(("eos_token", "unk_token", "pad_token"), end)
        write_json(directory / "tokenizer_config.json", settings)
    copy_tokenizer(source, directory)


def copy_tokenizer(source: Path, directory: Path) -> None:
    """Copies a tokenizer's files as they are."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            copy_file(source, name, directory / name)
