"""open_clip and OpenAI's clip for the tests, also where torchvision cannot be imported.

Both import torchvision for their picture transforms alone, and torchvision has no build for
every torch. Their models, which the tests compare with, do not need it: a stand-in takes its place
while they are imported, with those transforms that preprocess an image, written with Pillow.
OpenAI's package also wants `pkg_resources`, which setuptools has dropped.
"""

import importlib
import sys
import types

import numpy as np
import packaging.version
import pytest
import torch
from PIL import Image

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


class Compose:
    """Transforms of torchvision that preprocess a PIL image, as torchvision has them."""

    def __init__(self, transforms):
        self.transforms = transforms

    def __call__(self, image):
        for transform in self.transforms:
            image = transform(image)
        return image


class Resize(_Transform):
    """Shorter side, or both sides."""

    def __init__(self, size, interpolation, antialias=None):
        self.size, self.how = size, getattr(Image.Resampling, str(interpolation).upper())

    def __call__(self, image):
        size = self.size
        if isinstance(size, int):
            size = [size if n == min(image.size) else int(size * n / min(image.size))
                    for n in image.size[::-1]]  # fmt: skip
        return image.resize(tuple(size)[::-1], self.how)


class CenterCrop(_Transform):
    def __init__(self, size):
        self.size = (size, size) if isinstance(size, int) else tuple(size)

    def __call__(self, image):
        (width, height), (high, wide) = image.size, self.size
        left, top = round((width - wide) / 2), round((height - high) / 2)
        return image.crop((left, top, left + wide, top + high))


class ToTensor(_Transform):
    def __call__(self, image):
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


class Normalize(_Transform):
    def __init__(self, mean, std):
        self.mean, self.std = (torch.tensor(x)[:, None, None] for x in (mean, std))

    def __call__(self, tensor):
        return (tensor - self.mean) / self.std


_REAL = {kind.__name__: kind for kind in (Compose, Resize, CenterCrop, ToTensor, Normalize)}
_REAL["to_tensor"] = ToTensor()


def _stand_in(name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__getattr__ = lambda attribute: _REAL.get(attribute, _Transform)
    return module


def load(name: str) -> types.ModuleType:
    """The package `open_clip` or `clip`; skips the test where it is not installed."""
    if name in sys.modules:
        return sys.modules[name]
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    importlib.import_module("transformers")  # which asks whether there is a torchvision
    stand_ins = {"pkg_resources": types.SimpleNamespace(packaging=packaging)}
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):  # RuntimeError: built for another torch
        stand_ins |= {module: _stand_in(module) for module in _STAND_INS}
        for module in _STAND_INS[1:]:
            parent, _, attribute = module.rpartition(".")
            setattr(stand_ins[parent], attribute, stand_ins[module])
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module(name)
    finally:
        for module in stand_ins:  # transformers asks whether there is a torchvision
            del sys.modules[module]
