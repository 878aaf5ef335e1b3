"""open_clip and OpenAI's clip for the tests, also where torchvision cannot be imported.

Both import torchvision for their picture transforms alone, and torchvision has no build for
every torch. Their models, which the tests compare with, do not need it: a stand-in takes its place
while they are imported. OpenAI's package also wants `pkg_resources`, which setuptools has dropped.
"""

import importlib
import sys
import types

import packaging.version
import pytest

_STAND_INS = tuple(
    f"torchvision{part}"
    for part in ("", ".transforms", ".transforms.functional", ".ops", ".ops.misc")
)


class _AnyName(type):
    """Attributes of the class, like `InterpolationMode.BICUBIC`, are their own names."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Transform(metaclass=_AnyName):
    """Any class of torchvision: takes any arguments, does nothing."""

    def __init__(self, *args, **kwargs):
        pass


def _stand_in(name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__getattr__ = lambda _: _Transform
    return module


def load(name: str) -> types.ModuleType:
    """The package `open_clip` or `clip`; skips the test where it is not installed."""
    if name in sys.modules:
        return sys.modules[name]
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    stand_ins = {"pkg_resources": types.SimpleNamespace(packaging=packaging)}
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):  # RuntimeError: built for another torch
        stand_ins |= {module: _stand_in(module) for module in _STAND_INS}
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module(name)
    finally:
        for module in stand_ins:  # transformers asks whether there is a torchvision
            del sys.modules[module]
