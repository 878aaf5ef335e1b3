"""Reads every kind of checkpoint that this project knows, whatever software wrote it.

    config, params, info = read_any("runs/b32@500")
    print(info)

What the arithmetic depends on and a file may not say (the activation above all) is never guessed
silently: `CheckpointInfo` tells what was taken and where that was written.
"""

import contextlib
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from negclip_jax.common import remote, storage
from negclip_jax.common.problems import first
from negclip_jax.data.images import Preprocessor
from negclip_jax.data.tokenizer import Tokenizer, load_tokenizer
from negclip_jax.interop import diffusers, huggingface, open_clip, openai
from negclip_jax.interop.config import (
    CLIP_TYPES,
    copy_tokenizer,
    errors_of,
    preprocessor_of,
    tokenizer_beside,
)
from negclip_jax.interop.files import (
    WEIGHT_FILES,
    CheckpointError,
    OtherVision,
    StoredTensor,
    find_weights,
    read_json,
    resolve,
)
from negclip_jax.interop.tensors import open_file, open_weights
from negclip_jax.interop.writing import copy_file, copy_non_weights, write_file
from negclip_jax.models.clip import CLIPConfig
from negclip_jax.models.siglip import SigLIPConfig
from negclip_jax.models.transformer import ACTIVATIONS

SENTENCE_TRANSFORMERS = "0_CLIPModel"  # the folder of its CLIPs that holds the model
_OPENAI_NAMES = re.compile(r"vit-[bl]-(16|32|14|14-336px)\.pt")
_ADVICE = (
    "put its {} beside it, or give activation= (--activation of a command): quick_gelu (OpenAI, "
    "and what was tuned from it) or gelu (LAION and most others), or base= (--base of the export "
    "command), a checkpoint of the same architecture that says it"
)


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """Where a model came from, and what its arithmetic was taken to be.

    Attributes:
      path: the directory or file that was read.
      label: text for it, e.g. "step 500 of runs/b32".
      layout: "workdir", "huggingface", "openai", "open_clip", or "tower" for a directory of one
        tower, with the rest from a base or alone.
      config: the model.
      activation_source: where that was read, or the reason why it was assumed.
      tokenizer: directory that holds the tokenizer's files; None where nothing came along.
      preprocessor: images to pixels; `dataclasses.replace(preprocessor, crop=...)` for another
        crop rule.
      preprocessor_source: the file that says so; "CLIP's own" or "SigLIP's own" where none does.
      base: directory whose other files belong to an export of the model; None if there is none.
      step: of the run, for a workdir.
      tokenizer_keys: what a configuration of open_clip says of the tokenizer.
      other_vision: what the file holds of a vision tower that is not read; None where it is read.
      uses_base: whether a part, or the configuration, is that of `read_any`'s `base`.
    """

    path: Path
    label: str
    layout: str
    config: CLIPConfig
    activation_source: str
    tokenizer: Path | None
    preprocessor: Preprocessor
    preprocessor_source: str
    base: Path | None = None
    step: int | None = None
    tokenizer_keys: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    other_vision: OtherVision | None = None
    uses_base: bool = False

    @property
    def activation(self) -> str:
        """The towers' activation as text, e.g. "quick_gelu"."""
        text = self.config.text.hidden_act
        vision = self.config.vision.hidden_act if self.config.vision else text
        return text if text == vision else f"{text} in the text tower, {vision} in the vision tower"

    def load_tokenizer(self, directory: Path | None = None) -> Tokenizer:
        """The model's tokenizer, or that of a directory; it pads where the model reads padding."""
        text, place = self.config.text, directory or self.tokenizer or self.base or self.path
        return load_tokenizer(place, text.context_length, always_pads=text.reads_padding)

    @property
    def pooling(self) -> str:
        """The place of a caption whose state is its feature, as text."""
        return {
            "last": "the last position, padding included",
            "first": "the first position",
            "argmax": "the first of the largest token id",
            "first_eos": f"the first token with id {self.config.text.eos_token_id}",
        }[self.config.text.pooling]


def of_directory(directory: Path, config: CLIPConfig, layout: str, label: str) -> CheckpointInfo:
    """What a directory in Hugging Face's layout says about its model."""
    kinds = ("processor", "preprocessor") if config.vision else ()
    named = [directory / f"{kind}_config.json" for kind in kinds]
    own = "SigLIP's own" if isinstance(config, SigLIPConfig) else "CLIP's own"
    return CheckpointInfo(
        path=directory,
        label=label,
        layout=layout,
        config=config,
        activation_source=f"hidden_act in {directory / 'config.json'}",
        tokenizer=tokenizer_beside(directory),
        preprocessor=preprocessor_of(directory, config),
        preprocessor_source=str(next((path for path in named if path.is_file()), own)),
        base=directory,
        other_vision=None if config.vision else OtherVision(),
    )


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
        after it chooses the checkpoint; a Hugging Face directory or Hub name, or that of a CLIP of
        sentence-transformers; a directory or file of open_clip; a `.pt` of OpenAI's clip, of
        NegationCLIP or of a training script, or a directory with one.
      ema: of a workdir, the moving average of the weights.
      activation: of both towers, "quick_gelu" or "gelu", for a file that does not say.
      base: for a Hugging Face directory of one tower (CLIPTextModel and so on), the checkpoint of
        any layout that the rest of the model comes from. The directory may be the `text_encoder/`
        of a diffusers pipeline, or the folder that holds it. For a lone file of weights, the
        checkpoint whose configuration, tokenizer and preprocessing it has.
      tower_class: class of transformers (a key of `huggingface.ARCHITECTURES`) that is wanted of
        such a directory without a base; see `huggingface.load_alone`.

    Returns the configuration, the parameters (nested dict of float32 `np.ndarray`, the tree of
    `models.clip.split`) and what is known of their origin.

    Raises InputError for nothing there, an unknown layout, weights that do not fit, or an
    activation that the checkpoint does not say or contradicts; the message says what was found.
    """
    # `runs/b32@500` to its parts; a path that exists as it stands has no step.
    name, mark, step = str(path).rpartition("@")
    if not mark or storage.path(str(path)).exists():
        name, step = str(path), None
    if is_workdir(name):
        return _agreed(read_workdir(name, step or "best", ema=ema), activation)
    if step is not None or ema:
        raise CheckpointError(
            f"{path}: @STEP and the moving average choose in a training run, and this is not the "
            "--workdir of one"
        )
    if storage.is_remote(name):
        with remote.copied(name) as copy:
            found = read_any(copy, activation=activation, base=base, tower_class=tower_class)
        return (*found[:2], dataclasses.replace(found[2], label=name))
    # A name that is nothing here may be a repository of the Hub, of either library.
    local = Path(name).expanduser()
    place = local if local.exists() else resolve(name)
    if (place / SENTENCE_TRANSFORMERS).is_dir() and not (place / "config.json").exists():
        place = place / SENTENCE_TRANSFORMERS
    # The directory of one tower that `place` is, or holds as diffusers saves it.
    tower = place if (place / "config.json").is_file() else place / diffusers.ENCODER
    if huggingface.tower_of(tower) is None:
        tower = None
    if tower is not None and base is not None:
        config, params, info = read_any(base, activation=activation)
        config, params = huggingface.merge_tower(tower, config, params)
        source = f"{info.activation_source}; of the tower, hidden_act in {tower / 'config.json'}"
        return config, params, _of_tower(info, config, name, source)
    if tower is not None and tower_class:
        config, params = huggingface.load_alone(tower, tower_class)
        info = dataclasses.replace(of_directory(tower, config, "tower", name), base=None)
        words = place / diffusers.TOKENIZER
        if info.tokenizer is None and words.is_dir():
            info = dataclasses.replace(info, tokenizer=tokenizer_beside(words))
        return _agreed((config, params, info), activation)
    file = _lone_file(place)
    if file is not None:
        return _agreed(_read_file(file, name, activation, base), activation)
    directory = tower or place
    config = huggingface.read_config(directory)
    stored = open_weights(directory)
    params = huggingface.load_params(directory, config, stored)
    info = of_directory(directory, config, "huggingface", name)
    return _agreed((config, params, _with_vision(info, stored, directory)), activation)


def is_workdir(path: str | Path) -> bool:
    """Whether a directory is that of a training run."""
    return (storage.path(path) / "checkpoints").is_dir()


def read_workdir(workdir: str | Path, step: str | int = "best", *, ema: bool = False) -> Checkpoint:
    """Reads a checkpoint of a training run, or the moving average of its weights.

    `step` is "best" (the last where nothing was evaluated), "last" or a number. Raises InputError
    for no such run, step or average.
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
    restore.check_base_files(run)
    params, number = restore.restore_params(workdir, step, ema=ema)
    label = f"step {number} of {workdir}{', moving average' if ema else ''}"
    config, info = read_base(base, label)
    return config, params, dataclasses.replace(info, layout="workdir", path=run, step=number)


def copy_base(name: str | Path, folder: Path) -> None:
    """Copies what a run needs of the checkpoint that it starts from, but the weights it trains.

    Those are the files that describe it and its tokenizer; and of a vision tower that is not read
    the tensors, in a file of their own. `read_base` reads the folder. Raises CheckpointError for no
    such checkpoint, or one that does not say what its arithmetic is.
    """
    place = resolve(name)
    file = _lone_file(place)
    info = file and _described(file, str(name))
    if info is None:  # of transformers
        copy_non_weights(place, folder)
        if not (folder / "config.json").is_file():
            return
        info = of_directory(folder, huggingface.read_config(folder), "huggingface", str(name))
    elif info.layout != "open_clip" or info.base is not None:
        copy_non_weights(info.base or place, folder)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        copy_file(place, open_clip.CONFIG, folder / open_clip.CONFIG)
        if info.tokenizer is not None:
            copy_tokenizer(info.tokenizer, folder)
    if info.config.vision is None:
        other = _with_vision(info, open_file(file)[0] if file else open_weights(place), place)
        tensors = {name: tensor.read() for name, tensor in other.other_vision.tensors.items()}
        write_file(folder / other.other_vision.file, tensors)


def read_base(folder: Path, label: str = "") -> tuple[CLIPConfig, CheckpointInfo]:
    """Model and origin by the files that `copy_base` left in a run."""
    if (folder / open_clip.CONFIG).is_file():
        info = _described(folder / open_clip.WEIGHTS[0], label)
    else:
        info = of_directory(folder, huggingface.read_config(folder), "huggingface", label)
    if info.other_vision is not None:
        file = folder / info.other_vision.file
        info = _with_vision(info, open_file(file)[0], file)
    return info.config, info


def _with_vision(
    info: CheckpointInfo, stored: Mapping[str, StoredTensor], where: Path
) -> CheckpointInfo:
    """The same with what a file holds of a vision tower that is not read."""
    if info.other_vision is None:
        return info
    other = info.other_vision.with_tensors(stored, where)
    return dataclasses.replace(info, other_vision=other)


def _of_tower(info: CheckpointInfo, config: CLIPConfig, name: str, source: str) -> CheckpointInfo:
    """Origin of a model of which one tower comes from `name`."""
    return dataclasses.replace(
        info,
        label=f"the tower of {name} in {info.label}",
        layout="tower",
        config=config,
        activation_source=source,
        base=None,
        uses_base=True,
    )


def _agreed(found: Checkpoint, activation: str | None) -> Checkpoint:
    info = found[2]
    if activation not in (None, info.activation):
        raise CheckpointError(
            f"{info.label}: {info.activation_source} says {info.activation}, not {activation}"
        )
    return found


def _lone_file(path: Path) -> Path | None:
    """The lone file of weights that `path` is or holds; None for what transformers wrote."""
    if path.is_file():
        if path.name in WEIGHT_FILES and (path.parent / "config.json").is_file():
            raise CheckpointError(f"{path} is read with its config.json: give {path.parent}")
        return path
    # Beside open_clip's configuration, transformers' names may be those of a classifier of timm, or
    # open_clip's own weights under them.
    config, names = path / "config.json", [*open_clip.WEIGHTS, openai.WEIGHTS]
    if find_weights(path) is not None:
        is_described = config.is_file() and bool(read_json(config).get("model_type"))
        if is_described or not (path / open_clip.CONFIG).is_file():
            return None
        names += [] if config.is_file() else WEIGHT_FILES
    named = [path / name for name in names if not name.endswith(".json")]
    found = [file for file in named if file.is_file()] or sorted(path.glob("*.pt"))
    if len(found) > 1 and found[0] not in named:
        names = ", ".join(file.name for file in found)
        raise CheckpointError(f"{path} holds several checkpoints ({names}): give one of them")
    return found[0] if found else None


def _read_file(
    file: Path, label: str, activation: str | None, base: str | Path | None
) -> Checkpoint:
    """A lone file, with what the configuration beside it says, or that of `base`, or its shapes."""
    stored, origin = open_file(file)
    towers = (huggingface.TEXT, huggingface.VISION)
    if "encoder.layers.0.layer_norm1.weight" in stored:  # of one tower, as transformers 5.6 writes
        prefix = towers["embeddings.token_embedding.weight" not in stored].name
        own = [tower.projection.name for tower in towers]
        stored = {n if n in own else f"{prefix}_model.{n}": t for n, t in stored.items()}
    _require_a_clip_alone(file, list(stored))
    # Of transformers' names: a whole CLIP's or one tower's. Else they are OpenAI's or open_clip's.
    held = [t for t in towers if any(name.startswith(f"{t.name}_model.") for name in stored)]
    described = None if held else _described(file, label)
    if len(held) == 2 and (file.parent / "config.json").is_file():
        config = huggingface.read_config(file.parent)
        described = of_directory(file.parent, config, "huggingface", label)
    authority = "its configuration" if described else "the model"
    if described is None and base is not None:
        config, params, info = read_any(base, activation=activation)
        if len(held) == 1:
            params = huggingface.merge_stored(file, held[0], stored, config, params)
            return config, params, _of_tower(info, config, label, info.activation_source)
        described = dataclasses.replace(info, path=file, label=label, uses_base=True)
        authority = str(base)
    elif described is None and held:
        what = "a whole CLIP" if len(held) == 2 else f"the {held[0].name} tower of a CLIP"
        beside = "" if len(held) == 2 else ", which the rest comes from"
        raise CheckpointError(
            f"{file} holds {what} under transformers' names, which say neither activation nor "
            "heads: call it model.safetensors (or pytorch_model.bin), put the config.json and the "
            "tokenizer of its repository beside it and give the folder; or give base= (--base of "
            f"the export command), a checkpoint of the same architecture{beside}"
        )
    info = described or _undescribed(file, label, stored, origin, activation)
    info, config = _with_vision(info, stored, file), info.config
    if held:
        return config, huggingface.load_params(file, config, stored), info
    # Reads OpenAI's names as well, which open_clip kept.
    return config, open_clip.load_params(stored, config, file, authority=authority), info


def _require_a_clip_alone(file: Path, names: list[str]) -> None:
    """Raises CheckpointError, with what to do, where a CLIP is a part of what the file holds."""
    adapters = [name for name in names if "lora_" in name]
    if adapters:
        raise CheckpointError(
            f"{file} holds LoRA adapters ({first(adapters)}): merge them into the weights where "
            "they were trained (merge_and_unload() of peft), and save the model's state dict"
        )
    ends = ("ln_final.weight", "text_model.final_layer_norm.weight")
    inside = [n.removesuffix(end) for n in names for end in ends if n.endswith(f".{end}")]
    if inside and inside[0] != "text.":  # which is CustomTextCLIP's
        others = first([name for name in names if not name.startswith(inside[0])])
        raise CheckpointError(
            f"{file} holds a CLIP, or its text tower, under {inside[0]!r} and beside it {others}: "
            "save that part alone, as its own state dict, or of Stable Diffusion give the "
            "text_encoder/ of its diffusers form"
        )


def _described(file: Path, label: str) -> CheckpointInfo | None:
    """Model and origin by a configuration beside the file, or None where there is none."""
    folder = file.parent
    described, config_json = folder / open_clip.CONFIG, folder / "config.json"
    is_clip = config_json.is_file() and read_json(config_json).get("model_type") in CLIP_TYPES
    if described.is_file() and (file.name.startswith("open_clip") or not config_json.is_file()):
        config, preprocessor, tokenizer_keys = open_clip.read_config(folder)
        base = None
        if is_clip:
            # Hugging Face's files beside it belong to its export if they describe the same model,
            # in more detail. They may be of another, as open_clip never reads them.
            with contextlib.suppress(CheckpointError):
                other = huggingface.read_config(folder)
                if open_clip.agree(other, config):
                    config, base = other, folder
        return CheckpointInfo(
            path=file,
            label=label,
            layout="open_clip",
            config=config,
            activation_source=f"quick_gelu and act_kwargs in {described}",
            tokenizer=tokenizer_beside(folder),
            preprocessor=preprocessor,
            preprocessor_source=str(described),
            base=base,
            tokenizer_keys=tokenizer_keys,
            other_vision=None if config.vision else open_clip.other_vision(folder),
        )
    if is_clip:
        config = huggingface.read_config(folder)
        return dataclasses.replace(of_directory(folder, config, "openai", label), path=file)
    return None


def _undescribed(
    file: Path,
    label: str,
    stored: Mapping[str, StoredTensor],
    origin: str,
    activation: str | None,
) -> CheckpointInfo:
    """Model and origin of a file that stands alone, by the rules of the code that wrote it."""
    custom = open_clip.has_custom_text(stored)
    names = {name.removeprefix("text."): tensor for name, tensor in stored.items()}
    config = openai.infer_config(names, file)
    named, source = _activation_by_origin(file, origin, config)
    assumed = source.startswith("assumed")
    is_possible = config.vision.width not in openai.OTHER_HEAD_WIDTHS  # which OpenAI has none of
    is_possible &= origin == "bare" and not custom
    if activation is None and named != "gelu" and assumed and not is_possible:
        raise CheckpointError(
            f"{file} does not say its activation, and without it every feature would be "
            f"slightly wrong: {_ADVICE.format(open_clip.CONFIG)}"
        )
    # What is known to be OpenAI's stays so, also where another activation is asked for.
    is_openai = named == "quick_gelu" and not (assumed and activation == "gelu")
    with errors_of(file):
        config = dataclasses.replace(
            config,
            text=dataclasses.replace(config.text, hidden_act=activation or named),
            vision=dataclasses.replace(config.vision, hidden_act=activation or named),
        )
    return CheckpointInfo(
        path=file,
        label=label,
        layout="openai" if is_openai and not custom else "open_clip",
        config=config,
        activation_source="given" if activation else source,
        tokenizer=tokenizer_beside(file.parent),
        preprocessor=preprocessor_of(None, config),
        preprocessor_source="CLIP's own",
    )


def _activation_by_origin(file: Path, origin: str, config: CLIPConfig) -> tuple[str, str]:
    """Activation of a lone file, and what says it; "assumed" first where nothing does for sure."""
    name = file.name.lower()
    if origin in ACTIVATIONS:
        return origin, "the code in the archive"
    if "quickgelu" in name or _OPENAI_NAMES.fullmatch(name):
        return "quick_gelu", f"the name {file.name}"
    # Of LAION's releases, ViT-B/32 on LAION-400M alone has quick_gelu (open_clip's pretrained.py).
    is_b32 = (config.vision.width, config.vision.patch_size) == (768, 32)
    for word in ("laion", "datacomp", "commonpool"):
        if word in name:
            quick = "laion400m" in name and is_b32
            return "quick_gelu" if quick else "gelu", f"the name {file.name}, of open_clip's {word}"
    if name in open_clip.WEIGHTS:
        return "gelu", "assumed: open_clip's default, and its configuration is not beside the file"
    return "quick_gelu", "assumed: OpenAI's clip has no other, and a bare state dict does not say"
