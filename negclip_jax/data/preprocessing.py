"""What a checkpoint's preprocessor files say, as arguments of `data.images.Preprocessor`."""

from collections.abc import Sequence
from pathlib import Path

from negclip_jax.common.decoding import ImageError
from negclip_jax.common.strict_json import read_json

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
SIGLIP_MEAN = SIGLIP_STD = (0.5, 0.5, 0.5)
_SIGLIP_RESAMPLES = {2: "bilinear", 3: "bicubic"}  # numbers of Pillow


def settings_of(directory: Path) -> dict | None:
    """Arguments of `Preprocessor` from a checkpoint directory; None where it has no settings.

    From the `image_processor` section of `processor_config.json` (transformers 5) or from
    `preprocessor_config.json`, in transformers' order.

    Raises:
      ImageError: a pipeline other than CLIP's or SigLIP's; the message names file and setting.
    """
    for file, section in (("processor_config.json", "image_processor"), (None, None)):
        path = directory / (file or "preprocessor_config.json")
        settings = _read(path, section) if path.is_file() else None
        if settings is not None:
            kind = settings.get("image_processor_type") or settings.get("feature_extractor_type")
            return (_siglip if "Siglip" in str(kind) else _clip)(settings, path)
    return None


def _read(path: Path, section: str | None) -> dict | None:
    settings = read_json(path, dict, ImageError)
    if section is not None:
        settings = settings.get(section)
        if settings is None:  # written before transformers 5: no nested section
            return None
    if not isinstance(settings, dict):
        raise ImageError(f"{path} does not hold a table of preprocessing settings.")
    return settings


def _clip(settings: dict, path: Path) -> dict:
    """Arguments of Preprocessor from transformers' settings, absent ones being CLIP's."""
    kind = settings.get("image_processor_type") or settings.get("feature_extractor_type") or "CLIP"
    expected = {
        "do_resize": (True,),
        "do_center_crop": (True,),
        "do_rescale": (True,),
        "do_normalize": (True,),
        "resample": (3,),
    }
    wrong = {k: v for k, v in settings.items() if k in expected and v not in expected[k]}
    if "CLIP" not in str(kind):
        wrong["image_processor_type"] = kind
    factor = settings.get("rescale_factor") or 1 / 255
    if not isinstance(factor, (int, float)) or not abs(factor * 255 - 1) <= 1e-6:
        wrong["rescale_factor"] = factor
    if wrong:
        raise ImageError(
            f"{path} asks for preprocessing that is not CLIP's ({_shown(wrong)}): only bicubic "
            "resize, centre crop, division by 255 and normalisation are supported."
        )
    return {
        "resize": _side(settings.get("size", 224), ("shortest_edge",), "size", path),
        "size": _side(settings.get("crop_size", 224), ("height", "width"), "crop_size", path),
        "mean": _colours(settings, "image_mean", CLIP_MEAN, path),
        "std": _colours(settings, "image_std", CLIP_STD, path),
    }


def _colours(settings: dict, key: str, default: Sequence[float], path: Path) -> tuple:
    value = settings.get(key, default)
    if not isinstance(value, (list, tuple, str)):  # what is in it is checked by Preprocessor
        raise ImageError(f"{path}: {key} is {value!r}, not a list of three numbers.")
    return tuple(value)


def _side(value: int | dict, keys: Sequence[str], setting: str, path: Path) -> int:
    sides = [value.get(key) for key in keys] if isinstance(value, dict) else [value]
    side, named = sides[0], not isinstance(value, dict) or set(value) == set(keys)
    if not named or type(side) is not int or any(other != side for other in sides):
        raise ImageError(
            f"{path}: {setting} is {value!r}; CLIP's is a number of pixels or "
            f"{dict.fromkeys(keys, 224)!r} (the crop is square)."
        )
    return side


def _siglip(settings: dict, path: Path) -> dict:
    """The same for SigLIP: both sides to one size, no crop."""
    expected = {"do_resize": (True,), "do_rescale": (True,), "do_normalize": (True,)}
    expected |= {"resample": tuple(_SIGLIP_RESAMPLES), "do_center_crop": (False, None)}
    wrong = {k: v for k, v in settings.items() if k in expected and v not in expected[k]}
    if "Siglip2" in str(settings.get("image_processor_type")):
        wrong["image_processor_type"] = settings["image_processor_type"]
    if wrong:
        raise ImageError(
            f"{path} asks for preprocessing that is not SigLIP's ({_shown(wrong)}): only a resize "
            "to a square, division by 255 and normalisation are supported."
        )
    size = _side(settings.get("size", 224), ("height", "width"), "size", path)
    return {
        "resize": size,
        "size": size,
        "mean": _colours(settings, "image_mean", SIGLIP_MEAN, path),
        "std": _colours(settings, "image_std", SIGLIP_STD, path),
        "squash": True,
        "resample": _SIGLIP_RESAMPLES[settings.get("resample", 3)],
    }


def _shown(settings: dict) -> str:
    return ", ".join(f"{k}={v!r}" for k, v in settings.items())
