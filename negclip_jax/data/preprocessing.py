"""What a checkpoint's preprocessor files say, as arguments of `data.images.Preprocessor`."""

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
    `preprocessor_config.json`, in transformers' order. Absent settings are those of CLIP or SigLIP.

    Raises:
      ImageError: a pipeline other than CLIP's or SigLIP's; the message names file and setting.
    """
    for file, section in (("processor_config.json", "image_processor"), (None, None)):
        path = directory / (file or "preprocessor_config.json")
        if not path.is_file():
            continue
        settings = read_json(path, dict, ImageError)
        if section is not None:
            settings = settings.get(section)
            if settings is None:  # written before transformers 5: no nested section
                continue
        if not isinstance(settings, dict):
            raise ImageError(f"{path} does not hold a table of preprocessing settings.")
        return _arguments(settings, path)
    return None


def _arguments(settings: dict, path: Path) -> dict:
    kind = settings.get("image_processor_type") or settings.get("feature_extractor_type") or "CLIP"
    is_siglip = "Siglip" in str(kind)
    expected = dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), (True,))
    # SigLIP resizes both sides to one size, without a crop.
    expected["do_center_crop"] = (False, None) if is_siglip else (True,)
    expected["resample"] = tuple(_SIGLIP_RESAMPLES) if is_siglip else (3,)
    wrong = {k: v for k, v in settings.items() if k in expected and v not in expected[k]}
    if "Siglip2" in str(kind) or not (is_siglip or "CLIP" in str(kind)):
        wrong["image_processor_type"] = kind
    factor = settings.get("rescale_factor") or 1 / 255
    if not is_siglip and not (
        isinstance(factor, (int, float)) and abs(factor * 255 - 1) <= 1e-6  # NaN is neither
    ):
        wrong["rescale_factor"] = factor
    if wrong:
        whose, what = (
            ("SigLIP", "a resize to a square")
            if is_siglip
            else ("CLIP", "bicubic resize, centre crop")
        )
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
    size, resample = side("size", "height", "width"), settings.get("resample", 3)
    square = {"squash": True, "resample": _SIGLIP_RESAMPLES[resample]}
    return {"resize": size, "size": size, **colours, **square}
