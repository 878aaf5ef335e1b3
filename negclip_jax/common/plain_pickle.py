"""Pickles of plain values: numbers, strings, lists, tuples, sets and dicts, and nothing else.

A pickle is a program, and `pickle.load` of a published file may run anything. Without classes there
is nothing to run. The unpickler is Python's, not the one in C: that one fills a table as long as
the largest number in the pickle, so that ten bytes could ask for 30 GB.
"""

import pickle
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from negclip_jax.common.errors import InputError


class PlainUnpickler(pickle._Unpickler):
    """Refuses every class, and with them any code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it holds tensors")


def load(stream: BinaryIO, encoding: str = "utf-8") -> Any:
    """The next value of a stream; `encoding` is of strings that Python 2 wrote.

    Raises UnpicklingError for more than plain values, and nearly every type for a damaged pickle.
    """
    return PlainUnpickler(stream, encoding=encoding).load()


def load_torch(file: Path, advice: str, error: type[InputError] = InputError) -> Any:
    """What `torch.save` wrote, in either of its layouts, if it is made of plain values.

    Raises `error` for anything else; `advice` says what to do.
    """
    try:
        with file.open("rb") as stream:
            if zipfile.is_zipfile(stream):
                with zipfile.ZipFile(stream) as archive:
                    name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
                    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
                        raise pickle.UnpicklingError("it is compressed, which torch does not do")
                    with archive.open(name) as data:
                        return load(data)
            stream.seek(0)
            for _ in range(3):  # before 1.6: magic number, version and machine come first
                load(stream)
            return load(stream)
    except Exception as problem:  # a damaged pickle raises nearly every type
        raise error(
            f"{file} is no torch file of plain lists and strings ({problem}): {advice}."
        ) from None
