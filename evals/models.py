"""Models to evaluate, with the facts that their numbers depend on.

Released numbers of one checkpoint differ by points because somebody loaded it with another
activation, pooled at another token or resized differently. Here each of these is read from the
checkpoint, shown in every output, and refused where it cannot be right.
"""

import dataclasses
import functools
import itertools
import re
from typing import Any

import numpy as np

from negclip_jax.common.arguments import split_name
from negclip_jax.common.errors import InputError
from negclip_jax.data.feature_files import ImageFeatures
from negclip_jax.data.images import CLIP_MEAN, CLIP_STD, Preprocessor
from negclip_jax.data.tokenizer import Tokenizer
from negclip_jax.embeddings.encoder import TOWERS, fingerprint
from negclip_jax.interop.clipseg import is_related
from negclip_jax.interop.files import read_json
from negclip_jax.interop.readers import CheckpointInfo, read_any
from negclip_jax.models.clip import CLIPConfig

_PRECISION = {
    "float32": "float32 weights and arithmetic",
    "bfloat16": "bfloat16 arithmetic on float32 weights",
}
_HUB_ID = re.compile(r"(?!timm/)[\w.-]+/[\w.-]+")
_OPENAI = re.compile(r"openai/clip-vit-|openai/clip\b", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model under test."""

    name: str  # its column in every table
    config: CLIPConfig
    params: dict[str, Any]  # as `interop.readers.read_any` returns them
    preprocess: Preprocessor
    tokenizer: Tokenizer
    dtype: str  # of the computation, "float32" or "bfloat16"
    facts: dict[str, str]  # what its numbers depend on, {name: words}
    features: ImageFeatures | None = None  # of its images, where a file has them

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """Of all that an "image" and a "text" embedding depend on but the item itself."""
        model = (self.config, self.params, self.dtype, self.preprocess)
        given = {"image": self.features.digest} if self.features else {}
        return {kind: given.get(kind) or fingerprint(kind, *model) for kind in TOWERS}


def load(
    text: str,
    *,
    dtype: str = "float32",
    crop: str = "openai",
    tokenizer: str | None = None,
    activation: str | None = None,
    features: ImageFeatures | None = None,
) -> Model:
    """Loads what `--model` names.

    `[NAME=]PATH`: a Hugging Face directory or hub id, a training workdir (`@best`, `@last` or
    `@STEP` chooses the checkpoint, `+ema` its moving average), an OpenAI or open_clip file. `crop`
    is the centre-crop convention (`negclip_jax.data.images`); `tokenizer` and `activation` are for
    a model that does not bring or say its own; `features` of the images take the place of its
    vision tower. Raises InputError for what cannot be read and for what is known to be wrong.
    """
    if dtype not in _PRECISION:
        raise InputError(f"the compute type {dtype!r} is not one of {', '.join(_PRECISION)}")
    name, path = split_name(text)
    ema = path.endswith("+ema")
    config, params, info = read_any(path.removesuffix("+ema"), ema=ema, activation=activation)
    preprocess = dataclasses.replace(info.preprocessor, crop=crop)
    check_arithmetic(config, info, preprocess)
    directory = info.tokenizer or tokenizer
    if directory is None:
        raise InputError(
            f"{path} has no tokenizer: give the folder of CLIP's vocab.json and merges.txt as "
            "--tokenizer=DIR"
        )
    loaded = info.load_tokenizer(directory)
    check_end_token(config, loaded, path)
    colours = "CLIP's mean and std"
    if (tuple(preprocess.mean), tuple(preprocess.std)) != (CLIP_MEAN, CLIP_STD):
        colours = f"mean {tuple(preprocess.mean)}, std {tuple(preprocess.std)}"
    size, filtered = preprocess.size, "Pillow" if preprocess.exact else "SIMD"
    pixels = (
        f"both sides to {size} px by {filtered} {preprocess.resample}"
        if preprocess.squash
        else f"shortest side to {preprocess.resize} px by {filtered} {preprocess.resample}, centre "
        f"crop of {size} px ({preprocess.crop} rounding)"
    )
    if features is not None:
        _check_features(features, config, info)
    facts = {
        "weights": f"{info.label} ({info.layout})",
        "training": _training(info),
        "activation": f"{info.activation} ({info.activation_source})",
        "pooling": f"state at {info.pooling}",
        "preprocessing": f"{pixels}, {colours}; from {info.preprocessor_source}"
        if features is None
        else f"image features of {features.model or 'a model without a name'} in {features.path}",
        "precision": _PRECISION[dtype],
    }
    kept = {key: value for key, value in facts.items() if value}
    return Model(name, config, params, preprocess, loaded, dtype, kept, features)


def load_all(texts: list[str], **arguments: Any) -> list[Model]:
    """Loads several models with names of their own; see `load`.

    Raises InputError as well where two models are one fine-tuned from the other and are read with
    different activations: fine-tuning does not change it, so one of them is read wrongly.
    """
    models = [load(text, **arguments) for text in texts]
    if len({model.name for model in models}) < len(models):
        named = zip(models, texts, strict=True)
        models = [dataclasses.replace(model, name=text) for model, text in named]
    for i, text in enumerate(texts):
        if text in texts[:i]:
            raise InputError(f"--model={text} is given twice: use --model=NAME=PATH")
    for a, b in itertools.combinations(models, 2):
        act, other = (m.config.text.hidden_act for m in (a, b))
        x, y = (np.asarray(m.params["text"]["position_embedding"]) for m in (a, b))
        if act != other and x.shape == y.shape and is_related(x, b.params):
            raise InputError(
                f"{a.name} is read with {act} and {b.name} with {other}, but their weights "
                "say that one was fine-tuned from the other, which does not change the activation: "
                "one of them is read wrongly. Weights that come from OpenAI's need quick_gelu"
            )
    return models


def check_arithmetic(config: CLIPConfig, info: CheckpointInfo, preprocess: Preprocessor) -> None:
    """Raises InputError for settings that are known to be wrong together."""
    towers = {config.text.hidden_act, (config.vision or config.text).hidden_act}
    if len(towers) > 1:
        raise InputError(
            f"{info.label}: the text tower is read with {config.text.hidden_act} and the vision "
            f"tower with {config.vision.hidden_act} ({info.activation_source}), but no CLIP was "
            "trained so: correct hidden_act"
        )
    named, written = [info.label], (info.base or info.path) / "config.json"
    if written.is_file():
        named.append(str(read_json(written).get("_name_or_path", "")))
    is_openai = info.layout == "openai" or any(_OPENAI.search(name) for name in named)
    if towers != {"quick_gelu"} and is_openai:
        raise InputError(
            f"{info.label}: these are OpenAI's weights, which were trained with quick_gelu, and "
            f"they would be read with {info.activation} ({info.activation_source}): every score "
            "would be a little wrong. Read them with quick_gelu (config.json: hidden_act in both "
            "towers; open_clip: a model name that ends in -quickgelu). Weights of LAION in "
            "OpenAI's layout need their open_clip_config.json beside them"
        )
    if config.vision is not None and preprocess.size != config.vision.image_size:
        raise InputError(
            f"{info.label}: the model reads images of {config.vision.image_size} pixels and "
            f"{info.preprocessor_source} makes {preprocess.size}: correct its size"
        )


def _check_features(features: ImageFeatures, config: CLIPConfig, info: CheckpointInfo) -> None:
    """Raises InputError for features that cannot be the model's, by width or by the run's base."""
    features.require_width(config.projection_dim)
    written = info.path / "config.json"
    if info.layout != "workdir" or not written.is_file():
        return
    run = read_json(written)
    base = str(run.get("model", {}).get("checkpoint", ""))
    if run.get("data", {}).get("features") or features.model.rstrip("/") == base.rstrip("/"):
        return  # which of them the run was trained on, its log has said
    # Names of published models; those of folders, and copies of others' weights, tell nothing.
    if all(_HUB_ID.fullmatch(name.rstrip("/")) for name in (features.model, base)):
        raise InputError(
            f"{features.path} holds features of the model {features.model}, and {info.label} was "
            f"trained from {base}: they must be the same model's"
        )


def check_end_token(config: CLIPConfig, tokenizer: Tokenizer, path: str) -> None:
    """Raises InputError where the pooling rule does not find the tokenizer's end token."""
    text = config.text
    if tokenizer.vocab_size > text.vocab_size:
        raise InputError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} tokens and the model "
            f"{text.vocab_size}: they do not belong together"
        )
    if text.pooling in ("first", "last"):
        return  # whatever stands there
    largest = text.pooling == "argmax"
    found = tokenizer.vocab_size - 1 if largest else text.eos_token_id
    if found != tokenizer.eos_id:
        rule = "the largest token id" if largest else f"token {text.eos_token_id}"
        raise InputError(
            f"{path}: texts are read at {rule}, and the tokenizer ends them with token "
            f"{tokenizer.eos_id}: correct eos_token_id in config.json, or the tokenizer"
        )


def described(model: Model) -> dict[str, Any]:
    """What tells a model from others, for `results.json`."""
    return {"facts": model.facts, "fingerprint": model.fingerprints}


def _training(info: CheckpointInfo) -> str:
    """How a run was trained, from its own configuration: the affirmative control says so."""
    path = info.path / "config.json"
    if info.layout != "workdir" or not path.is_file():
        return ""
    data = read_json(path).get("data")
    if not isinstance(data, dict):
        return ""
    share = data.get("original_fraction")
    share = share if isinstance(share, float) else 0.0
    captions = {
        "original": "original captions alone: the affirmative-only control",
        "negated": "negated captions",
        "mix": f"negated captions, {share:.0%} original ones",
    }.get(str(data.get("caption_mode", data.get("captions"))), "")
    foils = data.get("foils")
    return captions + (f", {foils} foils each" if captions and foils else "")
