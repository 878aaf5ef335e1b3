"""Whatever a user names, training gets the same batches of the same images."""

import dataclasses
import os
import pickle
import subprocess
import sys
import types

import numpy as np
import pytest
from fake_bucket import bucket, served
from tiny_batches import assert_same, batches
from tiny_runs import ROOT
from tiny_shards import write_parquet, write_records
from tiny_tars import write_photos

from negclip_jax.common.errors import InputError
from negclip_jax.data import tfds
from negclip_jax.data.images import BucketImages, ImageDirectory
from negclip_jax.data.shard_images import TarImages
from negclip_jax.data.sources import open_images, tfds_name

__all__ = ["bucket", "served"]  # fixtures


def write_tars(images, folder) -> str:
    names = sorted(os.listdir(images))
    for i in range(3):
        write_photos(folder / f"{i:04d}.tar", images, names[i::3])
    return f"wds:{folder}/{{0000..0002}}.tar"


def write_parquets(images, folder) -> str:
    return f"parquet:{write_parquet(images, folder)}"


FORMS = {"wds": write_tars, "parquet": write_parquets}


@pytest.fixture(scope="module", params=FORMS)
def spec(request, tiny_pairs, tmp_path_factory) -> str:
    """The images of the tiny pairs in another form."""
    folder = tmp_path_factory.mktemp(request.param)
    return FORMS[request.param](tiny_pairs / "images", folder)


@pytest.fixture(scope="module")
def whole(make_loader) -> list[dict]:
    """Fifteen batches of the folder, more than two epochs."""
    return batches(make_loader(), 0, 15)


def test_batches_are_those_of_the_folder_from_any_start(make_loader, whole, spec):
    images = open_images(spec)
    for start in (0, 7):
        assert_same(batches(make_loader(images=images), start, 15), whole[start:])


@pytest.mark.slow
def test_worker_processes_load_the_same(make_loader, whole, spec):
    loader = make_loader(images=open_images(spec), workers=1)
    assert_same(batches(loader, 4, 9), whole[4:9])


def test_shares_of_processes_make_up_the_batch(make_loader, whole, spec):
    loader = make_loader(images=open_images(spec))
    for rows in np.split(np.arange(12), [6, 9]):
        for ours, expected in zip(batches(loader, 3, 6, rows), whole[3:6], strict=True):
            assert (ours["image"] == expected["image"][rows]).all()


def test_a_shard_that_disappears_in_a_run_stops_it_and_is_named(make_loader, tiny_pairs, tmp_path):
    images = open_images(write_tars(tiny_pairs / "images", tmp_path))
    loaded = make_loader(images=pickle.loads(pickle.dumps(images)), max_bad_images=0.1)
    assert len(batches(loaded, 0, 1)) == 1
    os.unlink(tmp_path / "0001.tar")
    loader = make_loader(images=pickle.loads(pickle.dumps(images)), max_bad_images=0.1)
    message = (
        r"5 images could not be read, more than the 4 .*0001\.tar cannot be read: No such file"
    )
    with pytest.raises(InputError, match=message):
        batches(loader, 0, 15)


def test_batches_of_records_are_those_of_the_folder(make_loader, whole, tiny_pairs, tmp_path):
    """Whose names are numbers."""
    pattern, called = write_records(tiny_pairs / "images", tmp_path)
    examples = make_loader().examples
    examples = dataclasses.replace(examples, images=[called[name] for name in examples.images])
    images = open_images(f"arrayrecord:{pattern}")
    assert_same(batches(make_loader(examples=examples, images=images), 3, 15), whole[3:])
    loader = make_loader(examples=examples, images=images, workers=1)
    assert_same(batches(loader, 4, 9), whole[4:9])


def test_what_names_mean(tiny_pairs, tmp_path, bucket, monkeypatch):
    bucket.put_folder(tiny_pairs / "images", "tiny", "photos")
    assert isinstance(open_images("gs://tiny/photos"), BucketImages)
    assert isinstance(open_images(str(tiny_pairs / "images")), ImageDirectory)
    assert isinstance(open_images(write_tars(tiny_pairs / "images", tmp_path)), TarImages)
    stand_in = types.SimpleNamespace(where=None)
    monkeypatch.setattr(tfds, "TfdsImages", lambda *where: (stand_in, where))
    assert open_images("tfds:coco_captions/train") == (stand_in, ("coco_captions", "train"))
    (tmp_path / "a:b").mkdir()
    assert isinstance(open_images(f"{tmp_path}/a:b"), ImageDirectory)
    with pytest.raises(InputError, match="write tfds:NAME/SPLIT"):
        tfds_name("tfds:coco")
    with pytest.raises(InputError, match=r"image directory wds does not exist"):
        open_images("wds")
    with pytest.raises(InputError, match="a path is on a disk or in a bucket"):
        open_images("wds:s3://bucket/{000..999}.tar")


UNUSED = {
    "negclip_jax.data.sources": {"pyarrow", "grain", "tensorflow_datasets", "jax"},
    "negclip_jax.data.loader": {"pyarrow", "tensorflow_datasets"},  # in each worker process
}


@pytest.mark.parametrize("module", UNUSED)
def test_no_source_brings_what_it_does_not_need(module):
    """A folder of photos is opened without pyarrow, grain and TFDS."""
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert not UNUSED[module] & set(done.stdout.split())
