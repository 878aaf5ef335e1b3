"""Reads every kind of checkpoint that this project knows, whatever software wrote it.

    config, params, info = read_any("runs/b32@500")
    print(info)

What the arithmetic depends on and a file may not say (the activation above all) is never guessed
silently: `CheckpointInfo` tells what was taken and where that was written.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from negclip_jax.common import remote, storage
from negclip_jax.data.images import Preprocessor
from negclip_jax.interop import diffusers, huggingface, open_clip, openai, towers
from negclip_jax.interop.checkpoint_info import (
    CheckpointInfo,
    describe_activation,
    describe_pooling,
    of_directory,
    with_activation,
)
from negclip_jax.interop.config import tokenizer_beside
from negclip_jax.interop.files import (
    WEIGHT_FILES,
    CheckpointError,
    StoredTensor,
    find_weights,
    read_json,
)
from negclip_jax.interop.tensors import open_file
from negclip_jax.models.clip import CLIPConfig

Checkpoint = tuple[CLIPConfig, dict[str, Any], CheckpointInfo]


def read_any(
    path: str | Path,
    *,
    ema: bool = False,
    activation: str | None = None,
    base: str | Path | None = None,
    tower_class: str = "",
) -> Checkpoint:
    """Reads a checkpoint of any known layout.

    Args:
      path: the workdir of a training run, of which `@best` (the default), `@last` or `@STEP`
        after it chooses the checkpoint; a Hugging Face directory or Hub name; a directory or file
        of open_clip; a `.pt` of OpenAI's clip or of NegationCLIP, or a directory with one.
      ema: of a workdir, the moving average of the weights.
      activation: of both towers, "quick_gelu" or "gelu", for a file that does not say.
      base: for a Hugging Face directory of one tower (CLIPTextModel and so on), the checkpoint of
        any layout that the rest of the model comes from. The directory may be the `text_encoder/`
        of a diffusers pipeline, or the folder that holds it.
      tower_class: class of transformers (a key of `towers.ARCHITECTURES`) that is wanted of such a
        directory without a base; see `towers.load_alone`.

    Returns:
      The configuration, the parameters (nested dict of float32 `np.ndarray`, the tree of
      `models.clip.split`) and what is known of their origin.

    Raises:
      InputError: nothing there, an unknown layout, weights that do not fit, or an activation that
        the checkpoint does not say or contradicts; the message says what was found.
    """
    name, step = _split_step(str(path))
    if storage.is_remote(name) and not is_workdir(name):
        _require_no_step(step, ema, path)
        with remote.copied(name) as copy:
            found = read_any(copy, activation=activation, base=base, tower_class=tower_class)
        return (*found[:2], dataclasses.replace(found[2], label=name))
    local = Path(name).expanduser()
    if is_workdir(name):
        return _agreed(read_workdir(name, step or "best", ema=ema), activation)
    _require_no_step(step, ema, path)
    # A name that is nothing here may be a repository of the Hub, of either library.
    place = local if local.exists() else huggingface.resolve(name)
    tower = _tower_directory(place)
    if tower is not None and base is not None:
        return _read_tower(tower, name, read_any(base, activation=activation))
    if tower is not None and tower_class:
        config, params = towers.load_alone(tower, tower_class)
        info = dataclasses.replace(of_directory(tower, config, "tower", name), base=None)
        words = place / diffusers.TOKENIZER
        if info.tokenizer is None and words.is_dir():
            info = dataclasses.replace(info, tokenizer=tokenizer_beside(words))
        return _agreed((config, params, info), activation)
    file = _state_dict_file(place)
    if file is not None:
        return _read_state_dict(file, name, activation)
    return _agreed(_read_huggingface(tower or place, name), activation)


def is_workdir(path: str | Path) -> bool:
    """Whether a directory is that of a training run."""
    return (storage.path(path) / "checkpoints").is_dir()


def read_workdir(workdir: str | Path, step: str | int = "best", *, ema: bool = False) -> Checkpoint:
    """Reads a checkpoint of a training run.

    Args:
      workdir: directory of the run.
      step: "best" (the last where nothing was evaluated), "last" or a number.
      ema: the moving average of the weights.

    Raises:
      InputError: no such run, step or average.
    """
    # Deferred: orbax takes a second to import, and other checkpoints do not need it.
    from negclip_jax.checkpoints import restore

    run = Path(workdir).expanduser()
    if storage.is_remote(workdir):
        small = ("base/", "config.json", "metrics.jsonl")
        run = remote.local_copy(storage.path(workdir), only=small)
    base = run / "base"
    if not base.parent.is_dir():
        raise CheckpointError(f"there is no directory {workdir}")
    if not base.is_dir():
        raise CheckpointError(
            f"{workdir} has no base/, the files of the checkpoint that a run started from: it "
            "is not the --workdir of a run"
        )
    config = huggingface.read_config(base)
    params, number = restore.restore_params(workdir, step, ema=ema)
    average = ", moving average" if ema else ""
    label = f"step {number} of {workdir}{average}"
    info = of_directory(base, config, "workdir", label)
    return config, params, dataclasses.replace(info, path=base.parent, step=number)


def _read_huggingface(directory: Path, label: str) -> Checkpoint:
    config = huggingface.read_config(directory)
    params = huggingface.load_params(directory, config)
    return config, params, of_directory(directory, config, "huggingface", label)


def _tower_directory(place: Path) -> Path | None:
    """The directory of one tower that `place` is, or holds as diffusers saves it; else None."""
    if (place / "config.json").is_file():
        return place if towers.is_tower(place) else None
    encoder = place / diffusers.ENCODER
    return encoder if towers.is_tower(encoder) else None


def _read_tower(directory: Path, name: str, rest: Checkpoint) -> Checkpoint:
    """One tower from a directory of its own, everything else from another checkpoint."""
    config, params, info = rest
    config, params = towers.merge_tower(directory, config, params)
    label = f"the tower of {name} in {info.label}"
    source = f"{info.activation_source}; of the tower, hidden_act in {directory / 'config.json'}"
    return (
        config,
        params,
        dataclasses.replace(
            info,
            label=label,
            layout="tower",
            activation=describe_activation(config),
            activation_source=source,
            pooling=describe_pooling(config),
            base=None,
        ),
    )


def _agreed(found: Checkpoint, activation: str | None) -> Checkpoint:
    info = found[2]
    if activation not in (None, info.activation):
        raise CheckpointError(
            f"{info.label}: {info.activation_source} says {info.activation}, not {activation}"
        )
    return found


def _state_dict_file(path: Path) -> Path | None:
    """The file in OpenAI's names that `path` is or holds; None for what transformers wrote."""
    if path.is_file():
        beside = path.name in WEIGHT_FILES and (path.parent / "config.json").is_file()
        if beside:
            raise CheckpointError(f"{path} is read with its config.json: give {path.parent}")
        return path
    if _is_transformers(path):
        return None
    named = [path / name for name in (*open_clip.WEIGHTS, openai.WEIGHTS)]
    found = [file for file in named if file.is_file()] or sorted(path.glob("*.pt"))
    if len(found) > 1 and found[0] not in named:
        names = ", ".join(file.name for file in found)
        raise CheckpointError(f"{path} holds several checkpoints ({names}): give one of them")
    return found[0] if found else None


def _is_transformers(directory: Path) -> bool:
    """Whether transformers' weights are those to read. timm's, beside open_clip's, are not."""
    config = directory / "config.json"
    if (directory / open_clip.CONFIG).is_file() and config.is_file():
        kind = read_json(config).get("model_type")
        return kind is not None and find_weights(directory) is not None
    return find_weights(directory) is not None


def _read_state_dict(file: Path, label: str, activation: str | None) -> Checkpoint:
    """A file in OpenAI's or open_clip's names, with what the configuration beside it says."""
    stored, bare = open_file(file)
    described = _described(file, label)
    config, info = described or _undescribed(file, label, stored, bare, activation)
    # Reads OpenAI's names as well, which open_clip kept.
    params = open_clip.load_params(
        stored, config, file, authority="its configuration" if described else "the model"
    )
    return _agreed((config, params, info), activation)


def _described(file: Path, label: str) -> tuple[CLIPConfig, CheckpointInfo] | None:
    """Model and origin by a configuration beside the file, or None where there is none."""
    folder = file.parent
    open_clip_json, config_json = folder / open_clip.CONFIG, folder / "config.json"
    if open_clip_json.is_file() and (
        file.name.startswith("open_clip") or not config_json.is_file()
    ):
        config, preprocessor = open_clip.read_config(folder)
        base = _describes(config_json, config)
        config = huggingface.read_config(folder) if base else config
        info = CheckpointInfo(
            path=file,
            label=label,
            layout="open_clip",
            activation=describe_activation(config),
            activation_source=f"quick_gelu and act_kwargs in {open_clip_json}",
            pooling=describe_pooling(config),
            tokenizer=tokenizer_beside(folder),
            preprocessor=preprocessor,
            preprocessor_source=str(open_clip_json),
            base=base,
        )
        return config, info
    if config_json.is_file() and read_json(config_json).get("model_type") == "clip":
        config = huggingface.read_config(folder)
        return config, dataclasses.replace(of_directory(folder, config, "openai", label), path=file)
    return None


def _describes(config_json: Path, config: CLIPConfig) -> Path | None:
    """The folder of a config.json if it describes the same model, in more detail.

    Hugging Face's files beside a model of open_clip then belong to its export. They may be of
    another, as open_clip never reads them.
    """
    if not config_json.is_file() or read_json(config_json).get("model_type") != "clip":
        return None
    try:
        same = open_clip.agree(huggingface.read_config(config_json.parent), config)
    except CheckpointError:
        same = False
    return config_json.parent if same else None


def _undescribed(
    file: Path,
    label: str,
    stored: Mapping[str, StoredTensor],
    bare: bool,
    activation: str | None,
) -> tuple[CLIPConfig, CheckpointInfo]:
    """Model and origin of a file that stands alone, by the rules of OpenAI's code."""
    custom = open_clip.has_custom_text(stored)
    if activation is None and (custom or not bare):
        raise CheckpointError(
            f"{file} does not say its activation, and without it every feature would be slightly "
            f"wrong: put its {open_clip.CONFIG} beside it, or give activation quick_gelu (OpenAI, "
            "and what was tuned from it) or gelu (LAION and most others)"
        )
    names = {name.removeprefix("text."): tensor for name, tensor in stored.items()}
    config = openai.infer_config(names, file)
    source = "given"
    if activation is None:
        source = "assumed: OpenAI's clip has no other, and a bare state dict does not say"
    else:
        config = with_activation(config, activation)
    size = config.vision.image_size
    info = CheckpointInfo(
        path=file,
        label=label,
        layout="open_clip" if custom else "openai",
        activation=describe_activation(config),
        activation_source=source,
        pooling=describe_pooling(config),
        tokenizer=tokenizer_beside(file.parent),
        preprocessor=Preprocessor(size=size, resize=size),
        preprocessor_source="CLIP's own",
    )
    return config, info


def _split_step(path: str) -> tuple[str, str | None]:
    """`runs/b32@500` to its parts; a path that exists as it stands has no step."""
    directory, mark, step = path.rpartition("@")
    if not mark or storage.path(path).exists():
        return path, None
    return directory, step


def _require_no_step(step: str | None, ema: bool, path: str | Path) -> None:
    if step is not None or ema:
        raise CheckpointError(
            f"{path}: @STEP and the moving average choose in a training run, and this is not the "
            "--workdir of one"
        )
