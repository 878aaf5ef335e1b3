"""SigLIP's preprocessing against transformers; CLIP's is compared in test_images.py."""

import json

import numpy as np
import pytest
import transformers
from PIL import Image

from negclip_jax.common.decoding import ImageError
from negclip_jax.data.images import Preprocessor
from negclip_jax.interop.config import settings_of


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(0)
    shapes = [(40, 52, 3), (33, 20, 3), (64, 64, 3)]
    return [Image.fromarray(rng.integers(0, 256, shape, np.uint8)) for shape in shapes]


@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("nested", [False, True])
def test_equals_transformers(resample, nested, photos, tmp_path):
    theirs = transformers.SiglipImageProcessorPil(
        size={"height": 24, "width": 24}, resample=resample
    )
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    if nested:  # as transformers 5 writes a whole processor
        content = {"image_processor": json.loads(path.read_text())}
        (tmp_path / "processor_config.json").write_text(json.dumps(content))
        path.unlink()
    ours = Preprocessor(**settings_of(tmp_path))
    assert ours.squash and ours.resample == {2: "bilinear", 3: "bicubic"}[resample]
    expected = theirs(photos, return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    assert ours(photos).shape == (3, 24, 24, 3)
    np.testing.assert_allclose(ours(photos), expected, atol=1e-6)


def test_fast_resize_is_close(photos):
    exact = Preprocessor(size=24, resize=24, squash=True)
    fast = Preprocessor(size=24, resize=24, squash=True, exact=False)
    ours, expected = (p.uint8(photos[0]).astype(int) for p in (fast, exact))
    assert np.abs(ours - expected).max() <= 2 and np.abs(ours - expected).mean() < 0.1


def test_squashing_keeps_what_a_crop_would_cut():
    wide = Image.new("RGB", (200, 50))
    wide.paste((255, 0, 0), (0, 0, 20, 50))
    squashed, cropped = (
        Preprocessor(size=20, resize=20, squash=squash).uint8(wide) for squash in (True, False)
    )
    assert squashed[:, 0, 0].min() > 200 and not cropped.any()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"do_center_crop": True}, "do_center_crop=True"),
        ({"resample": 1}, "resample=1"),
        ({"size": {"height": 8, "width": 9}}, "the crop is square"),
        ({"image_processor_type": "Siglip2ImageProcessor"}, "Siglip2ImageProcessor"),
    ],
)
def test_other_pipelines_are_refused(change, reason, tmp_path):
    settings = {"image_processor_type": "SiglipImageProcessor", "resample": 3}
    settings |= {"size": {"height": 8, "width": 8}} | change
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ImageError, match=reason) as caught:
        settings_of(tmp_path)
    assert "preprocessor_config.json" in str(caught.value)


def test_a_directory_without_settings(tmp_path):
    assert settings_of(tmp_path) is None
    with pytest.raises(ImageError, match="must be bicubic or bilinear"):
        Preprocessor(resample="nearest")
