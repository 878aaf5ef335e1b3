"""The tensors of checkpoint files: safetensors, PyTorch's pickles and TorchScript archives.

They are opened lazily and read one at a time, so that no second copy of a checkpoint is ever held.
PyTorch's files are read by `torch_archives`, which needs no torch and runs nothing.
"""

import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import ml_dtypes  # noqa: F401 registers bfloat16 with numpy
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
from negclip_jax.interop.torch_archives import (
    activation_in_code,
    damaged,
    is_torchscript,
    saved_content,
    state_tensors,
    torchscript_tensors,
)

# Where training scripts keep the model's state dict, and what wrappers put before or into names.
_STATE_KEYS = ("state_dict", "model_state_dict", "model", "module", "clip_model", "clip", "net")
_WRAPPERS = re.compile(
    r"(^|\.)(?:(?:module|_orig_mod|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module)"
    r"\.)+"
)
_TOWERS = ("text_model", "vision_model", "text", "visual")  # stay, where it is one tower alone
# Names of a CLIP or a tower of one, as each library has it: what stands before them is a wrapper's.
_KNOWN = {"ln_final.weight", "text.ln_final.weight", "text_model.final_layer_norm.weight"}
_KNOWN |= {"vision_model.post_layernorm.weight", "encoder.layers.0.layer_norm1.weight"}
FLOAT_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def open_weights(directory: Path) -> dict[str, StoredTensor]:
    """Opens a checkpoint's tensors, keyed by name (see `open_file`); nothing is read yet.

    Reads one safetensors file, shards with an index, and the same two of `pytorch_model.bin`.
    Raises CheckpointError for no weights, damaged files and an index that does not fit its shards.
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
        tensors = _open_one(path)
        return {plain: tensors[name] for name, plain in _plain_names(list(tensors)).items()}
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map: it is not an index of shards")
    # `./name` and the like are the name that they lead to, whatever is a link there.
    weight_map = {name: posixpath.normpath(str(shard)) for name, shard in weight_map.items()}
    shards = sorted(set(weight_map.values()))
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
    return {plain: tensors[name] for name, plain in _plain_names(list(tensors)).items()}


def stored_dtypes(path: Path) -> dict[str, str]:
    """The type of each tensor of a checkpoint directory or file by name; see `open_file`."""
    stored = open_weights(path) if path.is_dir() else open_file(path)[0]
    return {name: tensor.dtype for name, tensor in stored.items()}


def open_file(path: Path) -> tuple[dict[str, StoredTensor], str]:
    """Opens the tensors of one file, safetensors or of PyTorch; nothing is read yet.

    Of what `torch.save` wrote it takes a state dict, one that a training script put beside its
    epoch and optimizer, and a TorchScript archive (what OpenAI released). What wrappers put into
    names (`module.`, `_orig_mod.`) is dropped, and what stands before all those of a CLIP.

    Returns the tensors by name, and how they stood there: "bare" in a file of PyTorch, as in
    OpenAI's and NegationCLIP's releases; an activation in an archive whose code has it; "wrapped"
    in safetensors or what a training script wrote. Raises CheckpointError for another kind of file,
    a damaged one, or a pickle with more than tensors.
    """
    origin = "wrapped"
    if not path.is_file():  # a pipe would block and a device never ends
        raise CheckpointError(f"{path} is no file, but a folder, a pipe, a device or a broken link")
    if path.suffix == ".safetensors":
        opened = _open_safetensors(path)
    elif path.suffix not in PYTORCH_SUFFIXES and not path.name.endswith((".pth.tar", ".pt.tar")):
        known = ", ".join((".safetensors", *PYTORCH_SUFFIXES))
        raise CheckpointError(f"{path} is no weight file that is read; those end with {known}")
    elif is_torchscript(path):
        opened = torchscript_tensors(path)
        origin = activation_in_code(path) or "bare"
    else:
        content = saved_content(path)
        state = _state_dict(path, content)
        opened = state_tensors(path, state)
        origin = "bare" if state is content else "wrapped"
    names = _plain_names(list(opened))
    if origin == "bare" and (not names or any(name != short for name, short in names.items())):
        origin = "wrapped"
    return {plain: opened[name] for name, plain in names.items()}, origin


def _plain_names(names: list[str]) -> dict[str, str]:
    """Names as the model itself has them, by those in the file."""
    plain = {name: _WRAPPERS.sub(r"\1", name) for name in names}
    if len(set(plain.values())) < len(names):
        return dict(zip(names, names, strict=True))
    plain.pop("n_averaged", None)  # torch's AveragedModel counts in it
    parts = [name.split(".") for name in plain.values()]
    depth = 0
    for column in zip(*(part[:-1] for part in parts), strict=False):
        if len(set(column)) > 1 or column[0] in _TOWERS:
            break
        depth += 1
    short = {name: ".".join(part[depth:]) for name, part in zip(plain, parts, strict=True)}
    return short if not _KNOWN.isdisjoint(short.values()) else plain


def _state_dict(path: Path, content: object) -> object:
    """The state dict in what a training script saved; the content itself where it is none.

    Raises CheckpointError for several of them, of which none has a usual name.
    """
    depth = 0
    while isinstance(content, Mapping) and (depth := depth + 1) < 10:  # a dict may hold itself
        dicts = {k: v for k, v in content.items() if isinstance(v, Mapping) and _leads_to(v)}
        known = [key for key in _STATE_KEYS if key in dicts]
        # Beside one of an unusual name no tensor may stand: it could be a part of the model.
        found = known or ([] if _holds_tensors(content) else list(dicts))
        if not found:
            return content
        if len(found) > 1 and not known:
            raise CheckpointError(
                f"{path} holds several state dicts ({first([str(key) for key in found])}): save "
                "the model's own alone"
            )
        content = dicts[found[0]]
    return content


def _holds_tensors(value: Mapping) -> bool:
    return any(isinstance(tensor, StoredTensor) for tensor in value.values())


def _leads_to(value: Mapping) -> bool:
    """Whether a dict is a state dict, or one of dicts of which one is."""
    inner = [v for v in value.values() if isinstance(v, Mapping)]
    return all(isinstance(key, str) for key in value) and any(map(_holds_tensors, (value, *inner)))


def _open_one(path: Path) -> dict[str, StoredTensor]:
    if ".safetensors" in path.name:
        return _open_safetensors(path)
    return state_tensors(path, saved_content(path))


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    try:
        file = safe_open(path, framework="numpy")
        names = list(file.keys())
    except (SafetensorError, OSError, MemoryError) as error:
        raise CheckpointError(damaged(path, error)) from error

    def stored(name: str) -> StoredTensor:
        header = file.get_slice(name)
        dtype = FLOAT_TYPES.get(header.get_dtype(), header.get_dtype())
        return StoredTensor(tuple(header.get_shape()), dtype, lambda: file.get_tensor(name))

    return {name: stored(name) for name in names}


def import_torch(why: str) -> ModuleType:
    """torch, which writing its own format needs; else a CheckpointError that begins with `why`."""
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(
            f"{why} PyTorch: {extras.install('torch')}; or write --layout=huggingface or open_clip"
        ) from error
    return torch
