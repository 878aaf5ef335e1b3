"""Writing a model directory so that it is either whole or not there.

Everything goes into a hidden folder beside the destination, which it is renamed to at the end: a
full disk, Ctrl-C or a crash leaves the destination as it was, and what a killed process left is
cleared away by the next one.
"""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 registers bfloat16 with numpy
import numpy as np
from etils import epath
from safetensors import SafetensorError
from safetensors.numpy import save_file

from negclip_jax.common import atomic_files, remote, storage
from negclip_jax.data.images import Preprocessor
from negclip_jax.interop.files import CheckpointError, OtherVision
from negclip_jax.models.clip import CLIPConfig

DTYPES = ("float32", "float16", "bfloat16")

# A directory that is replaced has one of them: it is an earlier export and no other folder.
_MARKS = ("config.json", "text_encoder/config.json", "open_clip_config.json")
_UNFINISHED = "UNFINISHED"
SHARD_BYTES = 5 * 10**9  # transformers 4's limit

TOKENIZER_FILES = (
    *("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "spiece.model", "tokenizer.model"),
)
# What belongs to a model beside its weights and open_clip's own configuration.
_BELONGING = {*TOKENIZER_FILES, "config.json", "generation_config.json", "README.md"}
_BELONGING |= {"preprocessor_config.json", "processor_config.json", "README.base.md"}
_LEGAL = ("LICENSE", "LICENCE", "NOTICE", "COPYING")


@dataclasses.dataclass(frozen=True)
class Export:
    """What a layout writes.

    Attributes:
      config, params: the whole model; params are the tree of `models.clip.abstract(config)`, of
        numpy or jax arrays.
      base: directory in Hugging Face's layout that the model was made from, whose other files go
        along; its weights may be absent.
      tokenizer: directory with a tokenizer, instead of the base's.
      preprocessor: of a model without a base, or instead of the base's.
      dtype: of the weights; None for the layout's own rule.
      tokenizer_keys: what a configuration of open_clip says of the tokenizer.
      other_vision: of a model whose vision tower is not read, what its file holds of it, for the
        layout of the library that wrote it.
      architecture: class to write it as, where the layout has several.
      shard_bytes: greatest size of one weight file of Hugging Face's.
    """

    config: CLIPConfig
    params: dict[str, Any]
    base: Path | None = None
    tokenizer: Path | None = None
    preprocessor: Preprocessor | None = None
    dtype: str | None = None
    tokenizer_keys: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    other_vision: OtherVision | None = None
    architecture: str = ""
    shard_bytes: int = SHARD_BYTES


def saver(write: Callable[[Path, Export], None]) -> Callable[..., Path]:
    """A layout's `save(directory, config, params, *, overwrite=False, **others)`.

    The others are fields of `Export`. It writes the directory whole or not at all and returns it.
    Raises CheckpointError for an unknown dtype, an occupied destination (`overwrite` replaces an
    earlier export), a full disk, and whatever `write` refuses.
    """

    def save(
        directory: Path | str,
        config: CLIPConfig,
        params: dict[str, Any],
        *,
        overwrite: bool = False,
        **others: Any,
    ) -> Path:
        paths = {name: Path(others[name]) for name in ("base", "tokenizer") if others.get(name)}
        export = Export(config, params, **others | paths)
        if export.dtype not in (None, *DTYPES):
            raise CheckpointError(f"dtype {export.dtype!r} is not one of {', '.join(DTYPES)}")
        with export_directory(Path(directory), overwrite=overwrite, keep=export.base) as stage:
            write(stage, export)
        return Path(directory)

    return save


@contextlib.contextmanager
def export_directory(
    out: Path | epath.Path, *, overwrite: bool, keep: Path | None = None
) -> Iterator[Path]:
    """Yields an empty directory that becomes `out` when the block ends without an error.

    The destination, possibly in a bucket, must not exist, or be empty, or be an earlier export,
    which `overwrite` replaces. `keep` is a directory that must survive, e.g. the one that is
    converted.

    Raises CheckpointError where `out` is occupied or would destroy `keep`, or cannot be written,
    and InputError where another process is writing it.
    """
    if storage.is_remote(out):
        with _bucket_directory(out, overwrite=overwrite) as stage:
            yield stage
        return
    path, keep = out.expanduser().resolve(), keep and keep.resolve()
    try:
        # Before it is judged: a killed process may have moved it.
        atomic_files.recover_directory(path)
        if keep and (path == keep or path in keep.parents or keep in path.parents):
            raise CheckpointError(f"{path} and the checkpoint {keep} must not contain each other")
        if path.exists() and not path.is_dir():
            raise CheckpointError(f"{path} is a file; give another directory")
        if path.exists() and any(path.iterdir()):
            if not overwrite:
                raise CheckpointError(
                    f"{path} is not empty; give another directory, or replace it (overwrite=True, "
                    "or --overwrite)"
                )
            if not any((path / name).is_file() for name in _MARKS):
                raise CheckpointError(
                    f"{path} has no config.json, so it is not an earlier export and is not "
                    "overwritten"
                )
        with atomic_files.whole_directory(path) as stage:
            yield stage
    except (OSError, SafetensorError, CheckpointError) as error:
        if isinstance(error, CheckpointError) and not isinstance(error.__cause__, OSError):
            raise
        raise CheckpointError(f"{out} was not written and is as it was: {error}") from error


@contextlib.contextmanager
def _bucket_directory(out: epath.Path, *, overwrite: bool) -> Iterator[Path]:
    """The same in a bucket, which has no renames: the file that marks an export comes last.

    An earlier export loses its mark first, so that no mixture of the two looks like a model. What
    an export that broke off left has a mark of its own, and is replaced by the next one.
    """
    found = remote.listed(out)
    marks = [name for name in _MARKS if name in found]
    if found and _UNFINISHED not in found and not (overwrite and marks):
        raise CheckpointError(
            f"{out} is not empty; give another folder, or replace an earlier export (--overwrite)"
        )
    with remote.staging() as folder:
        whole = folder / out.name
        whole.mkdir()
        yield whole
        new = {path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()}
        try:
            (out / _UNFINISHED).write_text("an export to this folder began and has not ended\n")
            for name in (*marks, *found.keys() - new - {*marks, _UNFINISHED}):
                (out / name).unlink()
            remote.upload(whole, out, last=_MARKS)
            (out / _UNFINISHED).unlink()
        except storage.errors() as error:
            raise CheckpointError(
                f"{out} was not written, or in part and without the file that marks an export: "
                f"{storage.root_cause(error)}. Run the same command again"
            ) from error


def copy_non_weights(source: Path | str, destination: Path | str) -> list[str]:
    """Copies what belongs to a model beside its weights, byte for byte; returns the names.

    That is configurations, tokenizer, preprocessor, card and licence. Whatever else lies in the
    directory stays there. Raises CheckpointError for a file that cannot be read or written, or a
    link out of the directory.
    """
    source, destination, copied = Path(source), Path(destination), []
    try:
        destination.mkdir(parents=True, exist_ok=True)
        for name in sorted(path.name for path in source.iterdir() if not path.is_dir()):
            if name in _BELONGING or name.upper().startswith(_LEGAL):
                copy_file(source, name, destination / name)
                copied.append(name)
    except OSError as error:
        raise CheckpointError(f"cannot copy {source} to {destination}: {error}") from error
    return copied


def copy_file(source: Path, name: Path | str, destination: Path) -> None:
    """Copies one file of a checkpoint directory.

    Links are followed, as a Hub snapshot is a folder of links into its cache, but not to anywhere
    else: an untrusted folder must not carry this machine's files into what is published. Raises
    CheckpointError for such a link.
    """
    folder, real = source.resolve(), (source / name).resolve()
    roots = [folder, *([folder.parents[1] / "blobs"] if folder.parent.name == "snapshots" else [])]
    if not any(real.is_relative_to(root) for root in roots):
        raise CheckpointError(
            f"{source / name} is a link that leads out of the directory, to {real}: put the file "
            "itself there, or remove the link"
        )
    shutil.copyfile(real, destination)


def write_json(path: Path, content: dict) -> None:
    """Writes a JSON object the way transformers does: two spaces, final newline."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_weights(
    directory: Path,
    sizes: dict[str, int],
    dtypes: dict[str, str],
    take: Callable[[str], np.ndarray],
    shard_bytes: int = SHARD_BYTES,
) -> list[str]:
    """Writes `model.safetensors`, or shards with an index above `shard_bytes`; returns their names.

    `sizes` are numbers of elements, in the order to write, and `dtypes` numpy's names of the types
    on disk. `take` fetches a tensor by name, in any float type and memory order. `shard_bytes` also
    bounds the memory that is needed.
    """
    import huggingface_hub  # a third of a second

    n_bytes = {name: size * np.dtype(dtypes[name]).itemsize for name, size in sizes.items()}
    split = huggingface_hub.split_state_dict_into_shards_factory(
        n_bytes,
        get_storage_size=int,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes,
    )
    for file, names in split.filename_to_tensors.items():
        tensors = {name: converted(name, take(name), dtypes[name]) for name in names}
        write_file(directory / file, tensors)
    if split.is_sharded:
        totals = {"total_parameters": sum(sizes.values())} | split.metadata
        index = {"metadata": totals, "weight_map": split.tensor_to_filename}
        write_json(directory / "model.safetensors.index.json", index)
    return list(split.filename_to_tensors)


def write_file(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes one safetensors file of contiguous arrays."""
    # transformers refuses metadata without this word.
    save_file(tensors, path, metadata={"format": "pt"})


def converted(name: str, tensor: np.ndarray, dtype: str) -> np.ndarray:
    """A tensor as it goes into a file: contiguous, in the type that numpy calls `dtype`.

    Raises CheckpointError for a value that the type cannot hold.
    """
    # Contiguous on purpose: safetensors writes the raw buffer of a transposed view. Not
    # `np.ascontiguousarray`, which turns 0-d into [1], and transformers 5 refuses that.
    with np.errstate(over="ignore"):
        converted = np.asarray(tensor, dtype, order="C")
    if dtype != "float32" and not np.isfinite(converted).all():
        raise CheckpointError(f"{name} holds values that {dtype} cannot; export it as float32")
    return converted
