"""Checkpoint files as other people made them: finding, opening and judging them.

Nothing here knows what CLIP is. Tensors are opened lazily and read one at a time, so that no
second copy of a checkpoint is ever held.
"""

import pickle
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from negclip_jax.common import extras, remote, storage, strict_json
from negclip_jax.common.problems import first
from negclip_jax.interop.stored import CheckpointError, StoredTensor
from negclip_jax.interop.torchscript import is_torchscript, torchscript_tensors

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
PYTORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
OTHER_SUFFIXES = (".msgpack", ".h5", ".pb", ".tflite", ".ot", ".onnx", ".onnx_data", ".gguf")
WEIGHT_SUFFIXES = frozenset((".safetensors", *PYTORCH_SUFFIXES, *OTHER_SUFFIXES))
FLOAT_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def problem_report(where: Path | str, problems: Mapping[str, Iterable[str]], advice: str) -> str:
    """One message out of lists of problems: first ten of each kind, with the totals.

    Args:
      where: the file or directory.
      problems: kind of problem (`"missing"`) to its cases; kinds without cases are left out.
      advice: what to do about it.
    """
    cases = {kind: list(found) for kind, found in problems.items()}
    lines = [f"  {kind} ({len(found)}): {first(found)}" for kind, found in cases.items() if found]
    return "\n".join([f"{where} cannot be used:", *lines, f"  {advice}"])


def resolve(path_or_hub_id: str | Path) -> Path:
    """Directory of a checkpoint: a local one, or a copy of one in a bucket or on the Hub.

    Raises:
      CheckpointError: no such directory, or the Hub has no such model or cannot be reached.
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


def open_weights(directory: Path) -> dict[str, StoredTensor]:
    """Opens a checkpoint's tensors, keyed by name; nothing is read yet.

    Reads one safetensors file, shards with an index, and the same two of `pytorch_model.bin`
    (those only through torch's weights-only unpickler, which runs no code).

    Raises:
      CheckpointError: no weights, damaged files, an index that does not fit its shards.
    """
    path = find_weights(directory)
    if path is None:
        raise CheckpointError(_no_weights(directory))
    opener = _open_safetensors if ".safetensors" in path.name else _open_pickle
    return _open_shards(path, opener) if path.suffix == ".json" else opener(path)


def open_file(path: Path) -> tuple[dict[str, StoredTensor], bool]:
    """Opens the tensors of one file, safetensors or of PyTorch; nothing is read yet.

    Of what `torch.save` wrote it takes a state dict, one under the key `state_dict`, and a
    TorchScript archive (what OpenAI released). The prefix `module.` of DataParallel is dropped.

    Returns:
      The tensors by name, and whether they stood bare in a file of PyTorch, as in OpenAI's and
      NegationCLIP's releases, and not in safetensors or in a training script's wrapper.

    Raises:
      CheckpointError: another kind of file, a damaged one, or a pickle with more than tensors.
    """
    bare = False
    if not path.is_file():  # a pipe would be waited for and a device read for ever
        raise CheckpointError(f"{path} is no file, but a folder, a pipe, a device or a broken link")
    if path.suffix == ".safetensors":
        opened = _open_safetensors(path)
    elif path.suffix not in PYTORCH_SUFFIXES:
        known = ", ".join((".safetensors", *PYTORCH_SUFFIXES))
        raise CheckpointError(f"{path} is no weight file that is read; those end with {known}")
    elif is_torchscript(path):
        opened, bare = torchscript_tensors(path), True
    else:
        state = _unpickle(path)
        wrapped = isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping)
        opened = _state_tensors(path, state["state_dict"] if wrapped else state)
        bare = not wrapped and not any(name.startswith("module.") for name in opened)
    return {name.removeprefix("module."): tensor for name, tensor in opened.items()}, bare


def _no_weights(directory: Path) -> str:
    others = sorted(p.name for p in directory.iterdir() if p.suffix in WEIGHT_SUFFIXES)
    found = f"; it holds {first(others)}, which are not read" if others else ""
    return (
        f"{directory} has no weights: none of {', '.join(WEIGHT_FILES)}{found}. "
        "transformers' save_pretrained writes model.safetensors"
    )


def _open_shards(
    index: Path, opener: Callable[[Path], dict[str, StoredTensor]]
) -> dict[str, StoredTensor]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map: it is not an index of shards")
    shards = sorted({str(shard) for shard in weight_map.values()})
    outside = [shard for shard in shards if Path(shard).name != shard]
    absent = [shard for shard in shards if not (index.parent / shard).is_file()]
    if outside or absent:
        problems = {"shards outside the directory": outside, "missing shards": absent}
        raise CheckpointError(problem_report(index, problems, "download the checkpoint again"))

    tensors = {}
    for shard in shards:
        opened = opener(index.parent / shard).items()
        tensors |= {name: t for name, t in opened if weight_map.get(name, shard) == shard}
    misplaced = [f"{name} (in {weight_map[name]})" for name in weight_map if name not in tensors]
    if misplaced:
        problems = {"tensors that their shard does not hold": misplaced}
        raise CheckpointError(
            problem_report(index, problems, "the index belongs to other shards; get both again")
        )
    return tensors


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    try:
        file = safe_open(path, framework="numpy")
        names = list(file.keys())
    except (SafetensorError, OSError, MemoryError) as error:
        raise CheckpointError(_damaged(path, error)) from error

    def stored(name: str) -> StoredTensor:
        header = file.get_slice(name)
        dtype = FLOAT_TYPES.get(header.get_dtype(), header.get_dtype())
        return StoredTensor(tuple(header.get_shape()), dtype, lambda: file.get_tensor(name))

    return {name: stored(name) for name in names}


def _damaged(path: Path, error: Exception) -> str:
    if isinstance(error, PermissionError):
        return f"{path} cannot be read: {error.strerror}"
    with path.open("rb") as file:
        if file.read(20).startswith(b"version https://git-"):
            return f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` there"
    size = path.stat().st_size
    return f"{path} ({size:,} bytes) is damaged or incomplete: {error}; download it again"


def _open_pickle(path: Path) -> dict[str, StoredTensor]:
    return _state_tensors(path, _unpickle(path))


def _state_tensors(path: Path, state: object) -> dict[str, StoredTensor]:
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a dict of tensors")
    others = [str(n) for n, v in state.items() if not (isinstance(n, str) and _is_plain(v))]
    if others:
        raise CheckpointError(f"{path} holds values that are not tensors: {first(others)}")
    return {name: _stored_torch(tensor) for name, tensor in state.items()}


def _is_plain(value: object) -> bool:
    """Whether it is a tensor with elements in memory: not sparse, quantized, nested or meta."""
    import torch

    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        return False
    odd = value.is_nested or value.is_quantized or value.layout is not torch.strided
    return not odd and value.device.type == "cpu"


def import_torch(why: str) -> ModuleType:
    """torch, which only files in its own format need.

    Args:
      why: the message's first words, e.g. "x.pt is a pickle, and reading it safely needs".

    Raises:
      CheckpointError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(
            f"{why} PyTorch: {extras.install('torch')}; or use model.safetensors, which "
            "transformers' save_pretrained writes"
        ) from error
    return torch


def _unpickle(path: Path) -> object:
    torch = import_torch(f"{path} is a pickle, and reading it safely needs")
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6):
        # CVE-2025-32434: before 2.6 `weights_only=True` could still run code.
        raise CheckpointError(
            f"{path} is a pickle, and PyTorch {torch.__version__} cannot read one safely: "
            f"{extras.install('torch')}"
        )
    try:
        # Only the zip format (torch >= 1.6) can be mapped instead of read whole.
        mapped = zipfile.is_zipfile(path)
        if mapped:
            _require_unpacked(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is refused: torch's weights-only loader found something else than tensors "
            "in it, and loading it otherwise could run code. Convert it to safetensors where it "
            f"came from. ({str(error).splitlines()[0]})"
        ) from error
    except Exception as error:  # on a damaged file torch raises nearly every type
        raise CheckpointError(_damaged(path, error)) from error


def _require_unpacked(path: Path) -> None:
    """torch.save packs nothing: what is packed was put there by hand and may become any size."""
    with zipfile.ZipFile(path) as archive:
        packed = [i.filename for i in archive.infolist() if i.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise CheckpointError(f"{path} is refused: it holds compressed parts: {first(packed)}")


def _stored_torch(tensor) -> StoredTensor:
    import torch

    tensor, dtype = tensor.detach(), str(tensor.dtype).removeprefix("torch.")

    def read() -> np.ndarray:
        if dtype != "bfloat16":
            return tensor.numpy()
        # numpy has no bfloat16 of its own: hand the bits over.
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)

    return StoredTensor(tuple(tensor.shape), dtype, read)
