"""A side of a benchmark in this process, where everything has been imported and compiled before."""

import importlib
from typing import Any


class InProcess:
    """What tests of figures and tables use for `harness.Side`, which has tests of its own."""

    def __init__(self, make: str, *args: Any):
        module, _, name = make.partition(":")
        self._made = getattr(importlib.import_module(module), name)(*args)

    def __call__(self, method: str, *args: Any) -> Any:
        return getattr(self._made, method)(*args)

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(self, *_: Any) -> None:
        pass
