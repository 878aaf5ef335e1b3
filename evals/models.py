"""Models to evaluate, with the facts that their numbers depend on.

Released numbers of one checkpoint differ by points because somebody loaded it with another
activation, pooled at another token or resized differently. Here each of these is read from the
checkpoint, shown in every output, and refused where it cannot be right.
"""

import dataclasses
import functools
import re
from typing import Any

import numpy as np

from negclip_jax.common.errors import InputError
from negclip_jax.data.images import CLIP_MEAN, CLIP_STD, Preprocessor
from negclip_jax.data.tokenizer import Tokenizer, load_tokenizer
from negclip_jax.embeddings.encoder import TOWERS, fingerprint
from negclip_jax.interop.files import read_json
from negclip_jax.interop.readers import CheckpointInfo, read_any
from negclip_jax.models.clip import LEGACY_EOS_TOKEN_ID, CLIPConfig
from negclip_jax.models.siglip import SigLIPConfig

_PRECISION = {
    "float32": "float32 weights and arithmetic",
    "bfloat16": "bfloat16 arithmetic on float32 weights",
}
_OPENAI = re.compile(r"openai/clip-vit-|openai/clip\b", re.IGNORECASE)
# Cosine of position embeddings: near 1 after fine-tuning, near 0 between two trainings.
_SAME_ORIGIN = 0.9


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model under test.

    Attributes:
      name: its column in every table.
      config, params: as `interop.readers.read_any` returns them.
      preprocess: images to pixels.
      tokenizer: texts to ids.
      dtype: of the computation, "float32" or "bfloat16".
      facts: what its numbers depend on, {name: words}.
    """

    name: str
    config: CLIPConfig
    params: dict[str, Any]
    preprocess: Preprocessor
    tokenizer: Tokenizer
    dtype: str
    facts: dict[str, str]

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """Of all that an "image" and a "text" embedding depend on but the item itself."""
        model = (self.config, self.params, self.dtype, self.preprocess)
        return {kind: fingerprint(kind, *model) for kind in TOWERS}


def load(
    text: str,
    *,
    dtype: str = "float32",
    crop: str = "openai",
    tokenizer: str | None = None,
    activation: str | None = None,
) -> Model:
    """Loads what `--model` names.

    Args:
      text: `[NAME=]PATH`: a Hugging Face directory or hub id, a training workdir (`@best`, `@last`
        or `@STEP` chooses the checkpoint, `+ema` its moving average), an OpenAI or open_clip file.
      dtype: of the computation.
      crop: centre-crop convention, see `negclip_jax.data.images`.
      tokenizer: directory with a tokenizer for a model that has none.
      activation: of both towers, for a checkpoint that does not say.

    Raises InputError for what cannot be read and for combinations known to be wrong.
    """
    if dtype not in _PRECISION:
        raise InputError(f"the compute type {dtype!r} is not one of {', '.join(_PRECISION)}")
    name, path = split_name(text)
    ema = path.endswith("+ema")
    config, params, info = read_any(path.removesuffix("+ema"), ema=ema, activation=activation)
    preprocess = dataclasses.replace(info.preprocessor, crop=crop)
    check_arithmetic(config, info, preprocess)
    words = _tokenizer(path, config, info, tokenizer)
    check_end_token(config, words, path)
    facts = {
        "weights": f"{info.label} ({info.layout})",
        "training": _training(info),
        "activation": f"{info.activation} ({info.activation_source})",
        "pooling": f"state at {info.pooling}",
        "preprocessing": f"{describe_preprocessing(preprocess)}; from {info.preprocessor_source}",
        "precision": _PRECISION[dtype],
    }
    kept = {key: value for key, value in facts.items() if value}
    return Model(name, config, params, preprocess, words, dtype, kept)


def load_all(texts: list[str], **arguments: Any) -> list[Model]:
    """Loads several models with names of their own; see `load`.

    Raises InputError as well where two models are one fine-tuned from the other and are read with
    different activations: fine-tuning does not change it, so one of them is read wrongly.
    """
    models = [load(text, **arguments) for text in texts]
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        models = [
            dataclasses.replace(model, name=text) for model, text in zip(models, texts, strict=True)
        ]
    repeated = {m.name for m in models if [n.name for n in models].count(m.name) > 1}
    if repeated:
        raise InputError(f"--model={repeated.pop()} is given twice: use --model=NAME=PATH")
    for i, model in enumerate(models):
        for other in models[:i]:
            _check_same_activation(other, model)
    return models


def split_name(text: str) -> tuple[str, str]:
    """`NAME=PATH` to its parts; the name of a bare path is its last part."""
    name, equals, path = text.partition("=")
    if equals and name and path and "/" not in name:
        return name, path
    return text.rstrip("/").rpartition("/")[2], text


def check_arithmetic(config: CLIPConfig, info: CheckpointInfo, preprocess: Preprocessor) -> None:
    """Raises InputError for settings that are known to be wrong together."""
    towers = {config.text.hidden_act, config.vision.hidden_act}
    if len(towers) > 1:
        raise InputError(
            f"{info.label}: the text tower is read with {config.text.hidden_act} and the vision "
            f"tower with {config.vision.hidden_act} ({info.activation_source}), but no CLIP was "
            "trained so: correct hidden_act"
        )
    if towers != {"quick_gelu"} and (info.layout == "openai" or _names_openai(info)):
        raise InputError(
            f"{info.label}: these are OpenAI's weights, which were trained with quick_gelu, and "
            f"they would be read with {info.activation} ({info.activation_source}): every score "
            "would be a little wrong. Read them with quick_gelu (config.json: hidden_act in both "
            "towers; open_clip: a model name that ends in -quickgelu). Weights of LAION in "
            "OpenAI's layout need their open_clip_config.json beside them"
        )
    if preprocess.size != config.vision.image_size:
        raise InputError(
            f"{info.label}: the model reads images of {config.vision.image_size} pixels and "
            f"{info.preprocessor_source} makes {preprocess.size}: correct its size"
        )


def check_end_token(config: CLIPConfig, tokenizer: Tokenizer, path: str) -> None:
    """Raises InputError where the pooling rule does not find the tokenizer's end token."""
    text = config.text
    if tokenizer.vocab_size > text.vocab_size:
        raise InputError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} tokens and the model "
            f"{text.vocab_size}: they do not belong together"
        )
    if isinstance(config, SigLIPConfig):
        return  # it reads the last position, whatever stands there
    legacy = text.eos_token_id == LEGACY_EOS_TOKEN_ID
    found = tokenizer.vocab_size - 1 if legacy else text.eos_token_id
    if found != tokenizer.eos_id:
        rule = "the largest token id" if legacy else f"token {text.eos_token_id}"
        raise InputError(
            f"{path}: texts are read at {rule}, and the tokenizer ends them with token "
            f"{tokenizer.eos_id}: correct eos_token_id in config.json, or the tokenizer"
        )


def described(model: Model) -> dict[str, Any]:
    """What tells a model from others, for `results.json`."""
    return {"facts": model.facts, "fingerprint": model.fingerprints}


def describe_preprocessing(preprocess: Preprocessor) -> str:
    """The preprocessing as text."""
    colours = "CLIP's mean and std"
    if (tuple(preprocess.mean), tuple(preprocess.std)) != (CLIP_MEAN, CLIP_STD):
        colours = f"mean {tuple(preprocess.mean)}, std {tuple(preprocess.std)}"
    resize = f"{'Pillow' if preprocess.exact else 'SIMD'} {preprocess.resample}"
    if preprocess.squash:
        return f"both sides to {preprocess.size} px by {resize}, {colours}"
    return (
        f"shortest side to {preprocess.resize} px by {resize}, centre crop of {preprocess.size} px "
        f"({preprocess.crop} rounding), {colours}"
    )


def _tokenizer(path: str, config: CLIPConfig, info: CheckpointInfo, given: str | None) -> Tokenizer:
    directory = info.tokenizer or given
    if directory is None:
        raise InputError(
            f"{path} has no tokenizer: give the folder of CLIP's vocab.json and merges.txt as "
            "--tokenizer=DIR"
        )
    return load_tokenizer(directory, context_length=config.text.context_length)


def _names_openai(info: CheckpointInfo) -> bool:
    """Whether the checkpoint says of itself that it is, or was made from, OpenAI's."""
    config = (info.base or info.path) / "config.json"
    named = [info.label]
    if config.is_file():
        raw = read_json(config)
        named += [str(raw.get("_name_or_path", ""))]
    return any(_OPENAI.search(name) for name in named)


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


def _check_same_activation(a: Model, b: Model) -> None:
    ours, theirs = a.config.text.hidden_act, b.config.text.hidden_act
    if ours != theirs and _cosine(a, b) > _SAME_ORIGIN:
        raise InputError(
            f"{a.name} is read with {ours} and {b.name} with {theirs}, but their weights say that "
            "one was fine-tuned from the other, which does not change the activation: one of them "
            "is read wrongly. Weights that come from OpenAI's need quick_gelu"
        )


def _cosine(a: Model, b: Model) -> float:
    """Cosine of the two text towers' position embeddings, 0 where sizes differ."""
    x, y = (np.asarray(m.params["text"]["position_embedding"], np.float64) for m in (a, b))
    if x.shape != y.shape:
        return 0.0
    return float((x * y).sum() / (np.linalg.norm(x) * np.linalg.norm(y)))
