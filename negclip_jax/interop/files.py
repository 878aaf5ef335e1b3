"""Checkpoint files as other people made them: where they are, and what is wrong with them."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from negclip_jax.common import remote, storage, strict_json
from negclip_jax.common.errors import InputError
from negclip_jax.common.problems import first

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
PYTORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
OTHER_SUFFIXES = (".msgpack", ".h5", ".pb", ".tflite", ".ot", ".onnx", ".onnx_data", ".gguf")
WEIGHT_SUFFIXES = frozenset((".safetensors", *PYTORCH_SUFFIXES, *OTHER_SUFFIXES))


class CheckpointError(InputError):
    """A checkpoint that cannot be read or written; the message lists every problem found."""


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: `read()` fetches it; dtype is numpy's name, or the file's own word."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class OtherVision:
    """What a checkpoint says and holds of a vision tower that is not read.

    Attributes:
      described: content of its open_clip_config.json; None where transformers wrote it, whose
        config.json lies in the model's base.
      tensors: under the library's names, all of which begin with `prefix`.
    """

    described: Mapping[str, Any] | None = None
    tensors: Mapping[str, StoredTensor] = dataclasses.field(default_factory=dict)

    @property
    def prefix(self) -> str:
        """What the library's names of a vision tower begin with."""
        return "vision_model." if self.described is None else "visual."

    @property
    def file(self) -> str:
        """Name of the file in a run's base/ that keeps the tensors."""
        kind = "other" if self.described is None else "open_clip"
        return f"{kind}_vision.safetensors"

    def with_tensors(self, stored: Mapping[str, StoredTensor], where: Path) -> "OtherVision":
        """The same with those of a file, if it holds any.

        Raises CheckpointError where neither does.
        """
        of_vision = {name: t for name, t in stored.items() if name.startswith(self.prefix)}
        if not (of_vision or self.tensors):
            raise CheckpointError(
                f"{where} holds the text half of a model alone: give the whole model, or base= "
                "(--base of the export command), a checkpoint that holds its vision tower"
            )
        return OtherVision(self.described, of_vision or self.tensors)


def problem_report(where: Path | str, problems: Mapping[str, Iterable[str]], advice: str) -> str:
    """One message out of lists of problems: first ten of each kind, with the totals.

    `problems` has the cases of each kind ("missing"), and kinds without cases are left out.
    """
    cases = {kind: list(found) for kind, found in problems.items()}
    lines = [f"  {kind} ({len(found)}): {first(found)}" for kind, found in cases.items() if found]
    return "\n".join([f"{where} cannot be used:", *lines, f"  {advice}"])


def resolve(path_or_hub_id: str | Path) -> Path:
    """Directory of a checkpoint: a local one, or a copy of one in a bucket or on the Hub.

    Raises CheckpointError for no such directory, and where the Hub does not give the model.
    """
    name, path = str(path_or_hub_id), Path(path_or_hub_id).expanduser()
    if storage.is_remote(name):
        return remote.local_copy(storage.path(name))
    if name and path.is_dir():  # Path("") would be the working directory
        return path
    if name and path.exists():
        raise CheckpointError(
            f"{path} is a file; give the directory that holds config.json and the weights"
        )
    if not name or name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise CheckpointError(f"there is no checkpoint directory {name!r}")
    return _download(name)


def _download(hub_id: str) -> Path:
    import huggingface_hub  # a third of a second that local directories need not pay

    def snapshot(*patterns: str) -> Path:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=list(patterns)))

    try:
        # Named as the loader reads them: repositories also hold model.fp16.safetensors and such.
        path = snapshot("*.json", "*.txt", "model.safetensors", "model-*-of-*.safetensors")
        if not any(path.glob("*.safetensors")):
            others = ("pytorch_model.bin", "pytorch_model-*.bin", "open_clip_*")
            path = snapshot("*.json", "*.txt", *others)
    except Exception as error:  # httpx, OSError, ValueError: the Hub's errors have no common base
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{hub_id!r} is not a local directory, and the Hugging Face Hub did not give it "
            f"({type(error).__name__}: {reason}); check the name and the network, or download the "
            "repository elsewhere and give its directory"
        ) from error
    return path


def read_json(path: Path) -> dict:
    """Reads a JSON object; a missing, truncated or other file is a `CheckpointError`."""
    if not path.exists():
        raise CheckpointError(f"{path.parent} has no {path.name}")
    return strict_json.read_json(path, dict, CheckpointError)


def find_weights(directory: Path) -> Path | None:
    """The file that a loader starts from, by transformers' order of preference, or None."""
    return next((directory / f for f in WEIGHT_FILES if (directory / f).is_file()), None)
