"""Where a model came from, and what its arithmetic was taken to be."""

import dataclasses
from pathlib import Path

from negclip_jax.data.images import Preprocessor
from negclip_jax.interop.config import preprocessor_of, tokenizer_beside
from negclip_jax.interop.files import CheckpointError
from negclip_jax.models.clip import LEGACY_EOS_TOKEN_ID, CLIPConfig
from negclip_jax.models.siglip import SigLIPConfig


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """Where a model came from, and what its arithmetic was taken to be.

    Attributes:
      path: the directory or file that was read.
      label: text for it, e.g. "step 500 of runs/b32".
      layout: "workdir", "huggingface", "openai", "open_clip", or "tower" for a directory of one
        tower, with the rest from a base or alone.
      activation: "quick_gelu", or "gelu in the text tower, quick_gelu in the vision tower".
      activation_source: where that was read, or the reason why it was assumed.
      pooling: the rule that finds a caption's end token.
      tokenizer: directory that holds the tokenizer's files; None where nothing came along.
      preprocessor: images to pixels; `dataclasses.replace(preprocessor, crop=...)` for another
        crop rule.
      preprocessor_source: the file that says so; "CLIP's own" or "SigLIP's own" where none does.
      base: directory whose other files belong to an export of the model; None if there is none.
      step: of the run, for a workdir.
    """

    path: Path
    label: str
    layout: str
    activation: str
    activation_source: str
    pooling: str
    tokenizer: Path | None
    preprocessor: Preprocessor
    preprocessor_source: str
    base: Path | None = None
    step: int | None = None


def describe_own_preprocessing(config: CLIPConfig) -> str:
    """Whose pipeline is used where no file describes one."""
    return "SigLIP's own" if isinstance(config, SigLIPConfig) else "CLIP's own"


def describe_activation(config: CLIPConfig) -> str:
    """The towers' activation as text."""
    text, vision = config.text.hidden_act, config.vision.hidden_act
    return text if text == vision else f"{text} in the text tower, {vision} in the vision tower"


def describe_pooling(config: CLIPConfig) -> str:
    """The rule by which a caption's end token is found, as text."""
    if isinstance(config, SigLIPConfig):
        return "the last position, padding included"
    if config.text.eos_token_id == LEGACY_EOS_TOKEN_ID:
        return "the first of the largest token id"
    return f"the first token with id {config.text.eos_token_id}"


def with_activation(config: CLIPConfig, activation: str) -> CLIPConfig:
    """The model with one activation in both towers; raises CheckpointError for an unknown one."""
    try:
        text, vision = (
            dataclasses.replace(tower, hidden_act=activation)
            for tower in (config.text, config.vision)
        )
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    return dataclasses.replace(config, text=text, vision=vision)


def of_directory(directory: Path, config: CLIPConfig, layout: str, label: str) -> CheckpointInfo:
    """What a directory in Hugging Face's layout says about its model."""
    names = ("processor_config.json", "preprocessor_config.json")
    found = (str(directory / name) for name in names if (directory / name).is_file())
    return CheckpointInfo(
        path=directory,
        label=label,
        layout=layout,
        activation=describe_activation(config),
        activation_source=f"hidden_act in {directory / 'config.json'}",
        pooling=describe_pooling(config),
        tokenizer=tokenizer_beside(directory),
        preprocessor=preprocessor_of(directory, config),
        preprocessor_source=next(found, describe_own_preprocessing(config)),
        base=directory,
    )
