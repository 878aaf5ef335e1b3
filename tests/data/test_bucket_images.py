"""Photos in a bucket behave as photos in a folder do; see `fake_bucket`."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from fake_bucket import bucket, served
from tiny_runs import ROOT

from negclip_jax.common.decoding import ImageError
from negclip_jax.data.images import BucketImages, ImageDirectory, Preprocessor

__all__ = ["bucket", "served"]  # fixtures


@pytest.fixture
def photos(bucket, tiny_pairs):
    bucket.put_folder(tiny_pairs / "images", "tiny", "photos/train")
    return BucketImages("gs://tiny/photos")


def test_the_same_pixels(photos, tiny_pairs):
    local = ImageDirectory(tiny_pairs / "images")
    for name in ("000.png", "001.png"):
        remote = np.asarray(photos.open(f"train/{name}"))
        assert np.array_equal(remote, np.asarray(local.open(name)))
        assert photos.read(f"train/{name}") == local.read(name)


def test_one_listing_says_what_is_missing(photos, bucket):
    bucket.requests.clear()
    names = ["train/003.png", "train/x.png", "003.png", "train/x.png", "train//003.png"]
    assert photos.missing(names) == ["train/x.png", "003.png"]
    assert not bucket.requests, "asked when it was made, once for all images"


@pytest.mark.parametrize(
    ("named", "stored"), [("caf\u00e9.png", "cafe\u0301.png"), ("a.png", "a.PNG")]
)
def test_a_photo_is_found_under_another_spelling_of_its_name(bucket, tiny_pairs, named, stored):
    content = (tiny_pairs / "images" / "000.png").read_bytes()
    bucket.put("tiny", f"spelled/{stored}", content)
    photos = BucketImages("gs://tiny/spelled")
    assert photos.missing([named, "b.png"]) == ["b.png"]
    assert photos.read(named) == content and photos.identity(named) == photos.identity(stored)
    assert pickle.loads(pickle.dumps(photos)).open(named).size == photos.open(stored).size


def test_identity_follows_the_content(photos, bucket):
    before = photos.identity("train/004.png")
    assert before and photos.identity("train/005.png") != before
    assert photos.identity("train/none.png") == []
    bucket.flip_bit("gs://tiny/photos/train/004.png")
    assert BucketImages("gs://tiny/photos").identity("train/004.png") != before


def test_problems_name_the_image(photos, bucket):
    bucket.put("tiny", "photos/bad.png", b"no image")
    with pytest.raises(ImageError, match=r"^gs://tiny/photos/bad\.png: this is not an image"):
        photos.open("bad.png")
    with pytest.raises(ImageError, match=r"^gs://tiny/photos/none\.png: the image cannot be read"):
        photos.open("none.png")
    assert photos.read("none.png") == b""
    for call in (photos.open, photos.read, photos.identity, lambda name: photos.missing([name])):
        with pytest.raises(ImageError, match=r"'\.\./x\.png' climbs out of the image directory"):
            call("../x.png")
    with pytest.raises(ImageError, match="There are no images at gs://tiny/nowhere"):
        BucketImages("gs://tiny/nowhere/")


def test_a_worker_gets_no_list(photos):
    packed = pickle.dumps(photos)
    assert len(packed) < 200
    assert pickle.loads(packed).open("train/000.png").size == (36, 36)


LOAD = """
import sys
import numpy as np
from absl import flags
from negclip_jax.data.images import BucketImages
from negclip_jax.data.examples import Examples
from negclip_jax.data.images import Preprocessor
from negclip_jax.data.loader import PairLoader
from negclip_jax.data.packing import Ragged

if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    names = [f"train/{i:03d}.png" for i in range(8)]
    texts = Ragged(np.ones(64, np.int32), np.arange(9) * 8)
    loader = PairLoader(
        examples=Examples.of_captions(names, np.arange(8), texts),
        images=BucketImages(sys.argv[1]), preprocess=Preprocessor(32, 32),
        batch_size=8, workers=1, shuffle=False,
    )
    batch = next(loader.batches(0, 1))
    print([int(image.sum()) for image in batch["image"]])
"""


@pytest.mark.slow
def test_worker_processes_read_them(photos, tiny_pairs, tmp_path):
    script = tmp_path / "load.py"
    script.write_text(LOAD)
    done = subprocess.run(
        [sys.executable, script, "gs://tiny/photos"],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    local, preprocess = ImageDirectory(tiny_pairs / "images"), Preprocessor(32, 32)
    pixels = [preprocess.uint8(local.open(f"{i:03d}.png")) for i in range(8)]
    assert json.loads(done.stdout) == [int(image.sum()) for image in pixels]
