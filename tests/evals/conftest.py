"""A tiny benchmark for the tests of the evaluation."""

import pytest


@pytest.fixture
def tiny_benchmarks(monkeypatch, photos, tmp_path):
    """Registers `tiny` and `kept` alone; returns a data folder with their file and photos."""
    from tiny_benchmark import BENCHMARK, KEPT, write_items

    from evals import registry

    known = {"tiny": lambda: BENCHMARK, "kept": lambda: KEPT}
    monkeypatch.setattr(registry, "BENCHMARKS", known)
    data = tmp_path / "data"
    data.mkdir()
    (data / "photos").symlink_to(photos.data / "photos")
    write_items(data, images=12)
    return data
