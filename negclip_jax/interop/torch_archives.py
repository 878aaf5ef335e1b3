"""What `torch.save` and `torch.jit.save` wrote, read without torch and without running any of it.

A state dict is a zip (before PyTorch 1.6 a file) of plain arrays beside a pickle that says where
they lie; a TorchScript archive, as OpenAI's released `ViT-B-32.pt`, is the same around a compiled
program, which is never looked at. `torch.load` needs torch, and a pickle may run anything; an
unpickler with a short list of allowed names reads both. Tensors are views of the mapped file.

Formats: `torch/serialization.py` of https://github.com/pytorch/pytorch.
"""

import contextlib
import dataclasses
import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import ml_dtypes  # noqa: F401 registers bfloat16 and the types of 8 bits with numpy
import numpy as np

from negclip_jax.common.plain_pickle import PlainUnpickler
from negclip_jax.common.problems import first
from negclip_jax.interop.files import CheckpointError, StoredTensor

_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}
_TYPES = {*_STORAGES.values(), "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2"}
# Typed lists and dicts of TorchScript arrive as the plain ones that they wrap.
_LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")
# Values without plain elements, or beside the tensors of a training script: they are not read.
_IDLE = {
    "torch._utils": "_rebuild_sparse_tensor _rebuild_qtensor _rebuild_meta_tensor_no_storage "
    "_rebuild_nested_tensor _rebuild_device_tensor_from_numpy _rebuild_wrapper_subclass",
    "torch.serialization": "_get_layout",
    "torch": "device per_tensor_affine per_channel_affine QInt8Storage QUInt8Storage QInt32Storage",
    "argparse": "Namespace",
    "numpy": "dtype",
    "numpy.core.multiarray": "scalar",
    "numpy._core.multiarray": "scalar",
}
_LARGEST_PICKLE = 2**26  # bytes; OpenAI's largest has 300,000
_MOST_TENSORS, _MOST_MODULES = 100_000, 1_000_000
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of a file before PyTorch 1.6


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive; other files, torch's own among them, are not."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception:  # a damaged archive raises many types; whoever reads it says so
        return False


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What goes wrong in the block is a CheckpointError that names the file."""
    try:
        yield
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is refused: it asks for something else than tensors ({_said(error)}), and "
            "loading it otherwise could run code. Convert it to safetensors where it came from, or "
            "save its state dict alone there: torch.save(model.state_dict(), ...)"
        ) from error
    except Exception as error:  # a damaged archive or pickle raises nearly every type
        raise CheckpointError(damaged(path, error)) from error


def damaged(path: Path, error: Exception) -> str:
    """A message about a file that cannot be read because of an error."""
    if isinstance(error, PermissionError):
        return f"{path} cannot be read: {error.strerror}"
    with path.open("rb") as file:
        if file.read(20).startswith(b"version https://git-"):
            return f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` there"
    size, said = path.stat().st_size, _said(error)
    return f"{path} ({size:,} bytes) is damaged or incomplete: {said}; download it again"


def _said(error: Exception) -> str:
    lines = str(error)[:1000].splitlines() or [type(error).__name__]
    return "".join(c for c in lines[0][:200] if c.isprintable())


def activation_in_code(path: Path) -> str:
    """The activation that the code of an archive, which is never run, computes; "" for another.

    What was scripted has the factor of quick_gelu as text, what was traced (OpenAI's releases) as
    a constant.
    """
    with _reading(path), zipfile.ZipFile(path) as archive:
        parts = [i for i in archive.infolist() if i.file_size < 2**20]
        said = [i for i in parts if "/code/" in i.filename or "/constants/" in i.filename]
        code = b"\n".join(archive.read(info) for info in said[:10_000])
    if b"1.702" in code or struct.pack("<d", 1.702) in code:
        return "quick_gelu"
    if b"torch.gelu(" in code:
        return "gelu_pytorch_tanh" if b'approximate="tanh"' in code else "gelu"
    return ""


def torchscript_tensors(path: Path) -> dict[str, StoredTensor]:
    """A compiled module's parameters and buffers by their dotted names, opened lazily.

    Raises CheckpointError for a damaged archive, or one whose pickle asks for more than tensors.
    """
    with _reading(path):
        return _tensors(_archive(path))


def saved_content(path: Path) -> Any:
    """What `torch.save` was given: plain values, and a `StoredTensor` for every tensor.

    Values of a few kinds that hold no plain elements, such as sparse tensors, are objects of a
    class of their own; nothing is read yet. Raises CheckpointError for another or a damaged file,
    one written on a big-endian machine or by PyTorch before 2018, or a pickle that asks for
    anything but tensors and plain values.
    """
    with _reading(path):
        return _archive(path) if zipfile.is_zipfile(path) else _before_1_6(path)


def _archive(path: Path) -> Any:
    """The content of a zip: `NAME/data.pkl`, and `NAME/data/KEY` for each storage."""
    with zipfile.ZipFile(path) as archive:
        parts = {info.filename: info for info in archive.infolist()}
        name = next((n for n in parts if n.endswith("/data.pkl") or n == "data.pkl"), None)
        if name is None:
            raise ValueError("the zip has no data.pkl, so it is none of torch")
        folder = name.removesuffix("data.pkl")
        if parts[name].file_size > _LARGEST_PICKLE:
            raise pickle.UnpicklingError(f"{name} is larger than {_LARGEST_PICKLE:,} bytes")
        # torch packs code alone: this was done by hand, and a few bytes could become any size.
        read = [name, *(n for n in parts if n.startswith(f"{folder}data/"))]
        packed = [n for n in read if parts[n].compress_type != zipfile.ZIP_STORED]
        if packed:
            raise CheckpointError(f"{path} is refused: it holds compressed parts: {first(packed)}")
        order = parts.get(f"{folder}byteorder")
        if order is not None and order.file_size < 100:
            _require_little_endian(path, archive.read(order) == b"little")
        pickled = archive.read(name)
    mapped = np.memmap(path, np.uint8, "r")

    def storage(key: str) -> np.ndarray:
        part = parts[f"{folder}data/{key}"]
        # The local header's own lengths: its extra field, which aligns the data, is its own.
        header = mapped[part.header_offset : part.header_offset + 30].tobytes()
        start = part.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
        if header[:4] != b"PK\x03\x04" or start + part.file_size > len(mapped):
            raise ValueError(f"its part {part.filename} is not whole")
        return mapped[start : start + part.file_size]

    return _Unpickler(path, io.BytesIO(pickled), storage).load()


def _before_1_6(path: Path) -> Any:
    """The content of a file: pickles one after the other, and then the storages' bytes."""
    mapped = np.memmap(path, np.uint8, "r")
    places: dict[str, slice] = {}
    with path.open("rb") as file:
        start = file.read(512)
        if start[257:262] == b"ustar":
            raise CheckpointError(
                f"{path} is a tar that PyTorch wrote before 2018: load it with a PyTorch of its "
                "time and save its state dict again with torch.save, or as safetensors"
            )
        file.seek(0)
        head = [PlainUnpickler(file).load() for _ in range(3)] if start[:1] == b"\x80" else []
        if not head:
            raise ValueError("it is no file of torch.save")
        if head[:2] != [_MAGIC, _PROTOCOL] or not isinstance(head[2], dict):
            raise pickle.UnpicklingError("it is a pickle of another program than torch")
        _require_little_endian(path, head[2].get("little_endian", True))
        reader = _Unpickler(path, file, lambda key: mapped[places[key]])
        content = reader.load()
        for key in PlainUnpickler(file).load():
            dtype, numel = reader.storages[key]
            if struct.unpack("<q", file.read(8))[0] != numel or numel < 0:
                raise ValueError("a storage has another size than its tensors say")
            places[key] = slice(file.tell(), file.tell() + numel * np.dtype(dtype).itemsize)
            if places[key].stop > len(mapped):
                raise ValueError("the file ends within a storage")
            file.seek(places[key].stop)
    return content


def _require_little_endian(path: Path, is_little: bool) -> None:
    if not is_little:
        raise CheckpointError(
            f"{path} was written on a big-endian machine: load it with torch and save it again "
            "as safetensors"
        )


class _Module:
    """A compiled module: a bag of attributes. What class it was does not matter."""


class _Idle:
    """A value that is not read, whatever it is made of."""

    def __init__(self, *_: Any):
        pass


@dataclasses.dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str


class _Unpickler(PlainUnpickler):
    """Plain values, and what tensors and compiled modules are made of.

    `storage` fetches the bytes of a storage by its key, once the content is there; `storages` are
    those that the pickle names: type and number of elements.
    """

    dispatch: ClassVar = dict(PlainUnpickler.dispatch)

    def __init__(self, path: Path, file: BinaryIO, storage: Callable[[str], np.ndarray]):
        super().__init__(file)
        self._path, self._storage, self.storages = path, storage, {}

    def find_class(self, module: str, name: str) -> Any:
        module = "builtins" if module == "__builtin__" else module  # as Python 2 called it
        if module.split(".")[0] == "__torch__":
            return _Module
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and name in _TYPES:
            return name
        if name in _IDLE.get(module, "").split():
            return _Idle
        allowed = {
            ("torch._utils", "_rebuild_tensor_v2"): self._rebuild,
            ("torch._utils", "_rebuild_tensor_v3"): self._rebuild_typed,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
            ("torch._utils", "_rebuild_parameter_with_state"): lambda tensor, *_: tensor,
            ("torch", "Size"): tuple,
            ("collections", "OrderedDict"): dict,
            ("collections", "Counter"): dict,
            ("collections", "defaultdict"): lambda *_: {},
            ("builtins", "set"): set,
            ("builtins", "dict"): dict,  # of a defaultdict
            ("builtins", "list"): list,
            ("_codecs", "encode"): lambda text, encoding: text.encode("latin-1"),
            ("torch.jit._pickle", "restore_type_tag"): lambda value, _: value,
        } | {("torch.jit._pickle", kind): lambda value: value for kind in _LISTS}
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"{module[:80]}.{name[:80]}")
        return allowed[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[5:] not in ((), (None,)):
            raise pickle.UnpicklingError("a storage that is a view of another")
        _, dtype, key, _, numel = pid[:5]
        if dtype is _Idle:
            return _Idle()
        if not (isinstance(dtype, str) and dtype in _TYPES and isinstance(key, str)):
            raise pickle.UnpicklingError("a storage of another kind")
        if type(numel) is not int:
            raise pickle.UnpicklingError("a storage without a size")
        self.storages[key] = dtype, numel
        return _Storage(dtype, key)

    def _rebuild_typed(self, *args: Any) -> StoredTensor:
        """torch._utils._rebuild_tensor_v3: the type stands apart from an untyped storage."""
        storage, dtype = args[0], args[6]
        if not (type(storage) is _Storage and isinstance(dtype, str) and dtype in _TYPES):
            raise pickle.UnpicklingError("a tensor of another kind")
        return self._rebuild(dataclasses.replace(storage, dtype=dtype), *args[1:4])

    def _rebuild(
        self, storage: _Storage, offset: int, shape: tuple, strides: tuple, *_: Any
    ) -> StoredTensor:
        """torch._utils._rebuild_tensor_v2, lazily; offset and strides count elements."""
        numbers = (offset, *shape, *strides)
        if len(shape) != len(strides) or not all(type(n) is int and n >= 0 for n in numbers):
            raise pickle.UnpicklingError("a tensor whose sizes or strides are no numbers")
        if type(storage) is not _Storage:
            raise pickle.UnpicklingError("a tensor without a storage")

        def read() -> np.ndarray:
            with _reading(self._path):
                content, dtype = self._storage(storage.key), np.dtype(storage.dtype)
                if len(content) % dtype.itemsize:
                    raise ValueError("a storage is cut short")
                if not math.prod(shape):
                    return np.zeros(shape, dtype)
                last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
                if last >= len(content) // dtype.itemsize:
                    raise ValueError("a tensor points outside of its storage")
                steps = [step * dtype.itemsize for step in strides]
                return np.ndarray(shape, dtype, content, offset * dtype.itemsize, steps)

        return StoredTensor(tuple(shape), storage.dtype, read)

    def _build(self) -> None:
        """Attributes are given to modules only: to a class or function they would stay.

        Those of a state dict say its versions, and are not read.
        """
        state = self.stack.pop()
        value = self.stack[-1]
        if type(value) in (dict, _Idle, StoredTensor):
            return
        if type(value) is not _Module or not isinstance(state, dict):
            raise pickle.UnpicklingError(f"attributes of a {type(value).__name__}")
        vars(value).update(state)

    dispatch[pickle.BUILD[0]] = _build


def _tensors(root: Any) -> dict[str, StoredTensor]:
    """All tensors below a module by their dotted names, shared ones under each of them."""
    found: dict[str, StoredTensor] = {}
    waiting, modules = [("", root)], 0
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, StoredTensor):
            found[name] = value
        elif isinstance(value, _Module):
            modules += 1
            prefix = f"{name}." if name else ""
            waiting += [(f"{prefix}{key}", child) for key, child in reversed(vars(value).items())]
        # Modules that share modules, thirty levels deep, are a billion paths.
        if len(found) > _MOST_TENSORS or modules > _MOST_MODULES:
            raise pickle.UnpicklingError(f"more than {_MOST_TENSORS:,} tensors or too many modules")
    return found


def state_tensors(path: Path, state: Any) -> dict[str, StoredTensor]:
    """The tensors of a state dict; CheckpointError for anything else, or other values in it."""
    if not isinstance(state, Mapping):
        kind = "tensor" if isinstance(state, StoredTensor) else type(state).__name__
        raise CheckpointError(f"{path} holds a {kind}, not a dict of tensors")
    others = [
        name if isinstance(name, str) else f"a {type(name).__name__}"
        for name, value in state.items()
        if not (isinstance(name, str) and isinstance(value, StoredTensor))
    ]
    if others:
        raise CheckpointError(f"{path} holds values that are not tensors: {first(others)}")
    return dict(state)
