"""The tensors of checkpoint files: safetensors, PyTorch's pickles and TorchScript archives.

They are opened lazily and read one at a time, so that no second copy of a checkpoint is ever held.
Pickles go through torch's weights-only loader, TorchScript through a reader of its own that needs
no torch: neither runs the code of a file.
"""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from negclip_jax.common import extras
from negclip_jax.common.problems import first
from negclip_jax.interop.files import (
    PYTORCH_SUFFIXES,
    WEIGHT_FILES,
    WEIGHT_SUFFIXES,
    CheckpointError,
    StoredTensor,
    find_weights,
    problem_report,
    read_json,
)
from negclip_jax.interop.torchscript import is_torchscript, torchscript_tensors

FLOAT_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def open_weights(directory: Path) -> dict[str, StoredTensor]:
    """Opens a checkpoint's tensors, keyed by name; nothing is read yet.

    Reads one safetensors file, shards with an index, and the same two of `pytorch_model.bin`
    (those only through torch's weights-only unpickler, which runs no code).

    Raises:
      CheckpointError: no weights, damaged files, an index that does not fit its shards.
    """
    path = find_weights(directory)
    if path is None:
        others = sorted(p.name for p in directory.iterdir() if p.suffix in WEIGHT_SUFFIXES)
        found = f"; it holds {first(others)}, which are not read" if others else ""
        raise CheckpointError(
            f"{directory} has no weights: none of {', '.join(WEIGHT_FILES)}{found}. "
            "transformers' save_pretrained writes model.safetensors"
        )
    if path.suffix != ".json":
        return _open_one(path)
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map: it is not an index of shards")
    shards = sorted({str(shard) for shard in weight_map.values()})
    outside = [shard for shard in shards if Path(shard).name != shard]
    absent = [shard for shard in shards if not (directory / shard).is_file()]
    if outside or absent:
        problems = {"shards outside the directory": outside, "missing shards": absent}
        raise CheckpointError(problem_report(path, problems, "download the checkpoint again"))
    tensors = {}
    for shard in shards:
        opened = _open_one(directory / shard).items()
        tensors |= {name: t for name, t in opened if weight_map.get(name, shard) == shard}
    misplaced = [f"{name} (in {weight_map[name]})" for name in weight_map if name not in tensors]
    if misplaced:
        problems = {"tensors that their shard does not hold": misplaced}
        raise CheckpointError(
            problem_report(path, problems, "the index belongs to other shards; get both again")
        )
    return tensors


def stored_dtypes(path: Path) -> dict[str, str]:
    """The type of each tensor of a checkpoint directory or file by name; see `open_file`."""
    stored = open_weights(path) if path.is_dir() else open_file(path)[0]
    return {name: tensor.dtype for name, tensor in stored.items()}


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
    if not path.is_file():  # a pipe would block and a device never ends
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


def _open_one(path: Path) -> dict[str, StoredTensor]:
    if ".safetensors" in path.name:
        return _open_safetensors(path)
    return _state_tensors(path, _unpickle(path))


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


def _state_tensors(path: Path, state: object) -> dict[str, StoredTensor]:
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a dict of tensors")
    import torch

    def is_plain(value: object) -> bool:
        """Whether it is a tensor with elements in memory: not sparse, quantized, nested or meta."""
        if type(value) not in (torch.Tensor, torch.nn.Parameter):
            return False
        odd = value.is_nested or value.is_quantized or value.layout is not torch.strided
        return not odd and value.device.type == "cpu"

    others = [str(n) for n, v in state.items() if not (isinstance(n, str) and is_plain(v))]
    if others:
        raise CheckpointError(f"{path} holds values that are not tensors: {first(others)}")

    def stored(tensor: torch.Tensor) -> StoredTensor:
        tensor, dtype = tensor.detach(), str(tensor.dtype).removeprefix("torch.")

        def read() -> np.ndarray:
            if dtype != "bfloat16":
                return tensor.numpy()
            # numpy has no bfloat16 of its own: hand the bits over.
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)

        return StoredTensor(tuple(tensor.shape), dtype, read)

    return {name: stored(tensor) for name, tensor in state.items()}


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
            # torch.save packs nothing: what is packed was put there by hand, and may become any
            # size.
            with zipfile.ZipFile(path) as archive:
                parts = archive.infolist()
            packed = [p.filename for p in parts if p.compress_type != zipfile.ZIP_STORED]
            if packed:
                raise CheckpointError(
                    f"{path} is refused: it holds compressed parts: {first(packed)}"
                )
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
