"""Tensors of a TorchScript archive, read without running it and without torch.

OpenAI's released `ViT-B-32.pt` is not a pickle of tensors but a compiled program with its
parameters. `torch.jit.load` would run that program's code, and torch's weights-only loader refuses
it. The parameters themselves are plain: a zip with one file per storage, and a pickle of nested
modules that points to them. An unpickler with a short list of allowed names reads that.
"""

import contextlib
import dataclasses
import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import ml_dtypes  # noqa: F401 registers bfloat16 with numpy
import numpy as np

from negclip_jax.common.plain_pickle import PlainUnpickler
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
}
# Typed lists and dicts of TorchScript arrive as the plain ones that they wrap.
_LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")
_LARGEST_PICKLE = 2**26  # bytes; OpenAI's largest has 300,000
_MOST_TENSORS, _MOST_MODULES = 100_000, 1_000_000


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive; other files, torch's own among them, are not."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception:  # a damaged archive raises many types; whoever reads it says so
        return False


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """An archive; what goes wrong in the block is a CheckpointError that names the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is refused: its archive asks for something else than tensors ({error})"
        ) from error
    except Exception as error:  # a damaged archive or pickle raises nearly every type
        raise CheckpointError(
            f"{path} is damaged or no archive of a model ({type(error).__name__}: {error}); "
            "download it again"
        ) from error


def activation_in_code(path: Path) -> str:
    """The activation that the code of an archive, which is never run, computes; "" for another.

    What was scripted has the factor of quick_gelu as text, what was traced (OpenAI's releases) as
    a constant.
    """
    with _opened(path) as archive:
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

    Raises:
      CheckpointError: a damaged archive, or one whose pickle asks for anything but tensors.
    """

    def read(name: str) -> bytes:
        """A storage. torch stores them as they are: packed, a few bytes could become many."""
        with _opened(path) as archive:
            if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(f"{path} is refused: its tensor {name} is compressed")
            return archive.read(name)

    with _opened(path) as archive:
        name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
        if archive.getinfo(name).file_size > _LARGEST_PICKLE:
            raise pickle.UnpicklingError(f"{name} is larger than {_LARGEST_PICKLE:,} bytes")
        folder = f"{name.removesuffix('data.pkl')}data/"
        return _tensors(_Unpickler(archive.read(name), lambda key: read(folder + key)).load())


class _Module:
    """A compiled module: a bag of attributes. What class it was does not matter."""


@dataclasses.dataclass(frozen=True)
class _Storage:
    dtype: str
    read: Callable[[], bytes]


class _Unpickler(PlainUnpickler):
    """Plain values, and what a compiled module is made of."""

    dispatch: ClassVar = dict(PlainUnpickler.dispatch)

    def __init__(self, content: bytes, read: Callable[[str], bytes]):
        super().__init__(io.BytesIO(content))
        self._read = read

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        allowed = {
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("collections", "OrderedDict"): dict,
            ("torch.jit._pickle", "restore_type_tag"): lambda value, _: value,
        } | {("torch.jit._pickle", kind): lambda value: value for kind in _LISTS}
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return allowed[module, name]

    def persistent_load(self, pid: tuple) -> _Storage:
        _, dtype, key, _, _ = pid
        if dtype not in _STORAGES.values() or not isinstance(key, str):
            raise pickle.UnpicklingError(f"a storage of {dtype!r}")
        return _Storage(dtype, lambda: self._read(key))

    def _build(self) -> None:
        """Attributes are given to modules only: to a class or function they would stay."""
        state = self.stack.pop()
        module = self.stack[-1]
        if type(module) is not _Module or not isinstance(state, dict):
            raise pickle.UnpicklingError(f"attributes of a {type(module).__name__}")
        vars(module).update(state)

    dispatch[pickle.BUILD[0]] = _build


def _rebuild_tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> StoredTensor:
    """torch._utils._rebuild_tensor_v2, lazily; offset and strides count elements."""
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or not all(type(n) is int and n >= 0 for n in numbers):
        raise pickle.UnpicklingError(f"a tensor of shape {shape} and strides {strides}")

    def read() -> np.ndarray:
        content = storage.read()
        if len(content) % np.dtype(storage.dtype).itemsize:
            raise CheckpointError("a storage of the archive is cut short")
        flat = np.frombuffer(content, np.dtype(storage.dtype))
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if math.prod(shape) and not 0 <= offset <= last < len(flat):
            raise CheckpointError("a tensor of the archive points outside of its storage")
        steps = [step * flat.itemsize for step in strides]
        return np.lib.stride_tricks.as_strided(flat[offset:], shape, steps, writeable=False)

    return StoredTensor(tuple(shape), storage.dtype, read)


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
