"""A tiny CLIPSeg, its text tower untouched and tuned, and a folder of photos with masks."""

import json

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def clipseg_directory(tiny_vocabulary, tmp_path_factory):
    """A tiny random CLIPSeg with a tokenizer."""
    from tiny_clipseg import write_clipseg

    return write_clipseg(tmp_path_factory.mktemp("clipseg") / "clipseg", tiny_vocabulary)


@pytest.fixture(scope="session")
def same_tower(clipseg_directory, tiny_vocabulary, tmp_path_factory):
    """A CLIP whose text tower is CLIPSeg's own."""
    from tiny_clipseg import write_clip

    return write_clip(tmp_path_factory.mktemp("same") / "same", clipseg_directory, tiny_vocabulary)


@pytest.fixture(scope="session")
def tuned_tower(clipseg_directory, tiny_vocabulary, tmp_path_factory):
    """A CLIP whose text tower is a little away from CLIPSeg's own."""
    from tiny_clipseg import write_clip

    path = tmp_path_factory.mktemp("tuned") / "tuned"
    return write_clip(path, clipseg_directory, tiny_vocabulary, noise=0.3)


@pytest.fixture
def annotated(tmp_path):
    """A data folder: three photos, and an instances.json with polygons and a run-length code."""
    data = tmp_path / "data"
    (data / "photos").mkdir(parents=True)
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(1, 4):
        name, (width, height) = f"{i:012d}.png", (60 + i, 40)
        noise = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(noise).save(data / "photos" / name)
        images.append({"id": i, "file_name": name, "width": width, "height": height})
        square = [[5.0, 5.0, 25.0 + i, 5.0, 25.0 + i, 30.0, 5.0, 30.0]]
        runs = {"size": [height, width], "counts": [10 * height, 20 * height, (30 + i) * height]}
        for j, (category, shape) in enumerate(((1, square), (2, runs), (2, square))):
            annotations.append(
                {"id": 10 * i + j, "image_id": i, "category_id": category, "segmentation": shape,
                 "bbox": [5.0, 5.0, 20.0 + i, 25.0], "iscrowd": int(isinstance(shape, dict))}
            )  # fmt: skip
    names = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": names}
    (data / "instances.json").write_text(json.dumps(content))
    return data
