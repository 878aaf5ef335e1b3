"""A tiny model and a folder of small photos for the tests of the evaluation."""

import dataclasses
import types

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint):
    """The tiny checkpoint as an evaluation loads it."""
    from evals import models

    return models.load(f"tiny={tiny_checkpoint}")


@pytest.fixture(scope="session")
def other_model(tiny_model):
    """The same with other weights in both towers."""
    rng = np.random.default_rng(5)
    params = dict(tiny_model.params)
    for name in ("text_projection", "visual_projection"):
        params[name] = rng.standard_normal(params[name].shape).astype(np.float32)
    return dataclasses.replace(tiny_model, name="other", params=params)


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> types.SimpleNamespace:
    """`data`: a folder with `photos/0.png` to `photos/11.png`; `refs`: they, and one cropped."""
    from evals.images import ImageRef

    folder = tmp_path_factory.mktemp("evals_data")
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        pixels = rng.integers(0, 256, (40, 36 + i, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{i}.png")
    refs = [ImageRef(f"{i}.png") for i in range(12)]
    return types.SimpleNamespace(data=folder, refs=[*refs, ImageRef("3.png", (2.0, 3.0, 20, 30))])


@pytest.fixture
def one_device_mesh(monkeypatch):
    """Evaluations use one of the eight devices: less to compile."""
    from tiny_runs import use_one_device

    use_one_device(monkeypatch)


@pytest.fixture
def tiny_benchmarks(monkeypatch, photos, tmp_path):
    """Registers `tiny` and `kept` alone; returns a data folder with their file and photos."""
    from tiny_benchmark import write_items

    from evals import registry

    known = {"tiny": "tiny_benchmark:BENCHMARK", "kept": "tiny_benchmark:KEPT"}
    monkeypatch.setattr(registry, "BENCHMARKS", known)
    data = tmp_path / "data"
    data.mkdir()
    (data / "photos").symlink_to(photos.data / "photos")
    write_items(data, images=12)
    return data
