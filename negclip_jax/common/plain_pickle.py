"""Pickles of plain values: numbers, strings, lists, tuples, sets and dicts, and nothing else.

A pickle is a program, and `pickle.load` of a published file may run anything. Without classes there
is nothing to run. The unpickler is Python's, not the one in C: that one fills a table as long as
the largest number in the pickle, so that ten bytes could ask for 30 GB.
"""

import pickle
from typing import Any, BinaryIO


class PlainUnpickler(pickle._Unpickler):
    """Refuses every class, and with them any code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it holds tensors")


def load(stream: BinaryIO, encoding: str = "utf-8") -> Any:
    """The next value of a stream.

    Args:
      stream: of bytes.
      encoding: of strings that Python 2 wrote.

    Raises:
      pickle.UnpicklingError: it holds more than plain values.
      Exception: a damaged pickle raises nearly every type.
    """
    return PlainUnpickler(stream, encoding=encoding).load()
