"""One door to every checkpoint that this project can read, whatever software wrote it.

    config, params, info = read_any("runs/b32@500")
    print(info)

What the arithmetic depends on and a file may not say (the activation above all) is never guessed
in silence: `CheckpointInfo` tells what was taken and where that was written.
"""

import dataclasses
from pathlib import Path
from typing import Any

from negclip_jax.data.images import Preprocessor
from negclip_jax.interop import huggingface
from negclip_jax.interop.files import CheckpointError
from negclip_jax.models.clip import LEGACY_EOS_TOKEN_ID, CLIPConfig

Checkpoint = tuple[CLIPConfig, dict[str, Any], "CheckpointInfo"]


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """Where a model came from, and what its arithmetic was taken to be.

    Attributes:
      path: the directory or file that was read.
      label: words for it, e.g. "step 500 of runs/b32".
      layout: "workdir", "huggingface", "openai" or "open_clip".
      activation: "quick_gelu", or "gelu in the text tower, quick_gelu in the vision tower".
      activation_source: where that was read, or the reason why it was assumed.
      pooling: the rule that finds a caption's end token.
      tokenizer: directory that holds the tokenizer's files; None where nothing came along.
      preprocessor: images to pixels; `dataclasses.replace(preprocessor, crop=...)` for another
        crop rule.
      preprocessor_source: the file that says so, or "CLIP's own" where nothing came along.
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


def read_any(path: str | Path, *, ema: bool = False) -> Checkpoint:
    """Reads a checkpoint of any known layout.

    Args:
      path: a Hugging Face directory or Hub name, or the workdir of a training run, of which
        `@best` (the default), `@last` or `@STEP` after it chooses the checkpoint.
      ema: of a workdir, the moving average of the weights.

    Returns:
      The configuration, the parameters (nested dict of float32 `np.ndarray`, the tree of
      `models.clip.split`) and what is known of their origin.

    Raises:
      InputError: nothing there, an unknown layout, or weights that do not fit; the message says
        what was found.
    """
    directory, step = _split_step(str(path))
    if is_workdir(directory):
        return read_workdir(directory, step or "best", ema=ema)
    if step is not None or ema:
        raise CheckpointError(
            f"{path}: @STEP and the moving average choose in a training run, and {directory} is "
            "not the --workdir of one"
        )
    return _read_huggingface(str(path))


def is_workdir(path: str | Path) -> bool:
    """Whether a directory is that of a training run."""
    return Path(path).expanduser().joinpath("checkpoints").is_dir()


def read_workdir(workdir: str | Path, step: str | int = "best", *, ema: bool = False) -> Checkpoint:
    """Reads a checkpoint of a training run.

    Args:
      workdir: directory of the run.
      step: "best" (the last where nothing was evaluated), "last" or a number.
      ema: the moving average of the weights.

    Raises:
      InputError: no such run, step or average.
    """
    # Deferred: this and nothing else in `interop` knows training, and orbax is slow to import.
    from negclip_jax.training import checkpoint

    base = Path(workdir).expanduser() / "base"
    if not base.parent.is_dir():
        raise CheckpointError(f"there is no directory {workdir}")
    if not base.is_dir():
        raise CheckpointError(
            f"{workdir} has no base/, the files of the checkpoint that a run started from: it "
            "is not the --workdir of a run"
        )
    config = huggingface.read_config(base)
    params, number = checkpoint.restore_params(workdir, step, ema=ema)
    average = ", moving average" if ema else ""
    label = f"step {number} of {workdir}{average}"
    info = _info(base, config, "workdir", label)
    return config, params, dataclasses.replace(info, path=base.parent, step=number)


def _read_huggingface(path_or_hub_id: str) -> Checkpoint:
    directory = huggingface.resolve(path_or_hub_id)
    config = huggingface.read_config(directory)
    params = huggingface.load_params(directory, config)
    return config, params, _info(directory, config, "huggingface", path_or_hub_id)


def _info(directory: Path, config: CLIPConfig, layout: str, label: str) -> CheckpointInfo:
    """What a directory in Hugging Face's layout says about its model."""
    names = ("processor_config.json", "preprocessor_config.json")
    source = next((str(directory / n) for n in names if (directory / n).is_file()), "CLIP's own")
    return CheckpointInfo(
        path=directory,
        label=label,
        layout=layout,
        activation=describe_activation(config),
        activation_source=f"hidden_act in {directory / 'config.json'}",
        pooling=describe_pooling(config),
        tokenizer=tokenizer_beside(directory),
        preprocessor=Preprocessor.from_directory(directory, default_size=config.vision.image_size),
        preprocessor_source=source,
        base=directory,
    )


def describe_activation(config: CLIPConfig) -> str:
    """The towers' activation in words."""
    text, vision = config.text.hidden_act, config.vision.hidden_act
    return text if text == vision else f"{text} in the text tower, {vision} in the vision tower"


def describe_pooling(config: CLIPConfig) -> str:
    """The rule by which a caption's end token is found, in words."""
    if config.text.eos_token_id == LEGACY_EOS_TOKEN_ID:
        return "the first of the largest token id"
    return f"the first token with id {config.text.eos_token_id}"


def tokenizer_beside(directory: Path) -> Path | None:
    """The directory itself if it holds a tokenizer that `data.tokens` reads, else None."""
    pair = all((directory / name).is_file() for name in ("vocab.json", "merges.txt"))
    return directory if pair or (directory / "tokenizer.json").is_file() else None


def _split_step(path: str) -> tuple[str, str | None]:
    """`runs/b32@500` to its parts; a path that exists as it stands has no step."""
    directory, mark, step = path.rpartition("@")
    if not mark or Path(path).expanduser().exists():
        return path, None
    return directory, step
