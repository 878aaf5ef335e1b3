"""Writing a model directory so that it is either whole or not there.

Everything goes into a hidden sibling of the destination, which is renamed at the end: a full
disk, Ctrl-C or a crash leaves the destination as it was.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_dtypes  # noqa: F401 registers bfloat16 with numpy
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from negclip_jax.interop.files import WEIGHT_SUFFIXES, CheckpointError

# A directory that is replaced has one of them: it is an earlier export and no other folder.
_MARKS = ("config.json", "text_encoder/config.json")
SHARD_BYTES = 5 * 10**9  # transformers 4's limit


@contextlib.contextmanager
def staged_directory(out: Path, *, overwrite: bool, keep: Path | None = None) -> Iterator[Path]:
    """Yields an empty directory that becomes `out` when the block ends without an error.

    Args:
      out: destination; it must not exist, or be empty, or be an earlier export (`overwrite`).
      overwrite: replace an earlier export.
      keep: a directory that must survive, e.g. the one that is being converted.

    Raises:
      CheckpointError: `out` is occupied or would destroy `keep`.
    """
    out = out.expanduser().resolve()
    _require_free(out, overwrite, keep and keep.resolve())
    out.parent.mkdir(parents=True, exist_ok=True)
    stage, old = (out.parent / f".{out.name}.{word}-{os.getpid()}" for word in ("partial", "old"))
    stage.mkdir()
    try:
        yield stage
        if out.exists():
            out.rename(old)
        try:
            stage.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def export_directory(out: Path, *, overwrite: bool, keep: Path | None = None) -> Iterator[Path]:
    """`staged_directory`, with a CheckpointError for a disk that is full or cannot be written."""
    try:
        with staged_directory(out, overwrite=overwrite, keep=keep) as stage:
            yield stage
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{out} was not written and is as it was: {error}") from error


def _require_free(out: Path, overwrite: bool, keep: Path | None) -> None:
    if keep and (out == keep or out in keep.parents or keep in out.parents):
        raise CheckpointError(f"{out} and the checkpoint {keep} must not contain each other")
    if not out.exists():
        return
    if not out.is_dir():
        raise CheckpointError(f"{out} is a file; give another directory")
    if not any(out.iterdir()):
        return
    if not overwrite:
        raise CheckpointError(
            f"{out} is not empty; give another directory, or replace it (--overwrite)"
        )
    if not any((out / name).is_file() for name in _MARKS):
        raise CheckpointError(
            f"{out} has no config.json, so it is not an earlier export and is not overwritten"
        )


def copy_non_weights(source: Path | str, destination: Path | str) -> list[str]:
    """Copies every file that is not a weight, byte for byte; returns their relative names.

    Left out: weights of any framework, indexes of shards, and hidden folders (`.git`, `.cache`).

    Args:
      source: checkpoint directory.
      destination: directory, created if need be; files of the same name are replaced.

    Raises:
      CheckpointError: a file that cannot be read or written.
    """
    source, destination, copied = Path(source), Path(destination), []
    try:
        for name in _non_weights(source):
            (destination / name).parent.mkdir(parents=True, exist_ok=True)
            # copyfile follows links: a Hub snapshot is a folder of links into its cache.
            shutil.copyfile(source / name, destination / name)
            copied.append(str(name))
    except OSError as error:
        raise CheckpointError(f"cannot copy {source} to {destination}: {error}") from error
    return copied


def _non_weights(source: Path) -> Iterator[Path]:
    for folder, subfolders, files in os.walk(source):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(files):
            if Path(name).suffix not in WEIGHT_SUFFIXES and not name.endswith(".index.json"):
                yield Path(folder).relative_to(source) / name


def write_json(path: Path, content: dict) -> None:
    """Writes a JSON object the way transformers does: two spaces, final newline."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_weights(
    directory: Path,
    sizes: dict[str, int],
    dtypes: dict[str, str],
    take: Callable[[str], np.ndarray],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> list[str]:
    """Writes `model.safetensors`, or shards with an index above `shard_bytes`.

    Args:
      directory: destination.
      sizes: number of elements of each tensor, in the order to write.
      dtypes: numpy's name of each tensor's type on disk.
      take: fetches a tensor by name, in any float type and memory order.
      shard_bytes: greatest size of one file; also bounds the memory that is needed.

    Returns:
      The names of the files.
    """
    n_bytes = {name: size * np.dtype(dtypes[name]).itemsize for name, size in sizes.items()}
    shards = _shards(n_bytes, shard_bytes)
    files = [_shard_name(i, len(shards)) for i in range(len(shards))]
    for file, names in zip(files, shards, strict=True):
        tensors = {name: converted(name, take(name), dtypes[name]) for name in names}
        write_file(directory / file, tensors)
    if len(shards) > 1:
        totals = {"total_parameters": sum(sizes.values()), "total_size": sum(n_bytes.values())}
        where = {name: f for f, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": totals, "weight_map": where}
        write_json(directory / "model.safetensors.index.json", index)
    return files


def write_file(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes one safetensors file of contiguous arrays."""
    # transformers refuses metadata without this word.
    save_file(tensors, path, metadata={"format": "pt"})


def converted(name: str, tensor: np.ndarray, dtype: str) -> np.ndarray:
    """A tensor as it goes into a file: contiguous, in the type that numpy calls `dtype`.

    Raises:
      CheckpointError: a value that the type cannot hold.
    """
    # Contiguous on purpose: safetensors writes the raw buffer of a transposed view. Not
    # `np.ascontiguousarray`, which turns 0-d into [1], and transformers 5 refuses that.
    with np.errstate(over="ignore"):
        converted = np.asarray(tensor, dtype, order="C")
    if dtype != "float32" and not np.isfinite(converted).all():
        raise CheckpointError(f"{name} holds values that {dtype} cannot; export it as float32")
    return converted


def _shards(n_bytes: dict[str, int], limit: int) -> list[list[str]]:
    shards, used = [[]], 0
    for name, size in n_bytes.items():
        if shards[-1] and used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def _shard_name(i: int, total: int) -> str:
    return "model.safetensors" if total == 1 else f"model-{i + 1:05d}-of-{total:05d}.safetensors"
