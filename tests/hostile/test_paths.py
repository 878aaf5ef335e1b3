"""No name in a stranger's file leads out of the folder that it is looked up in."""

import json
import os

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from data_gen.images import PhotoError, PhotoFolder
from data_gen.stages.ingest import read_captions
from evals.benchmarks import zeroshot
from evals.images import DataRoots, ImageRef
from negclip_jax.common.decoding import ImageError
from negclip_jax.common.errors import InputError
from negclip_jax.data.images import ImageDirectory
from negclip_jax.data.pairs import PairError, read_pairs
from negclip_jax.data.records import unsafe_name
from negclip_jax.interop.readers import read_any
from negclip_jax.interop.tensors import open_file, open_weights

OUTSIDE = [
    "../secret.png",
    "a/../../secret.png",
    "a/b/../../../secret.png",
    "..",
    "/secret.png",
    "//secret.png",
    "..\\secret.png",
    "a\\..\\..\\secret.png",
    "C:\\secret.png",
    "c:secret.png",
    "\\\\host\\share\\secret.png",
    "secret.png\0.jpg",
    "\ud800.png",
    "",
    " ",
    ".",
    "./",
]


@pytest.fixture
def root(tmp_path):
    """A folder of photos with a secret one beside it."""
    folder = tmp_path / "photos"
    (folder / "a" / "b").mkdir(parents=True)
    for place in (tmp_path / "secret.png", folder / "good.png"):
        Image.new("RGB", (3, 2)).save(place)
    return folder


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_of_images(name, root, tmp_path):
    assert unsafe_name(name)
    with pytest.raises(ImageError):
        ImageDirectory(root).open(name)
    with pytest.raises(ImageError):
        ImageDirectory(root).read(name)
    with pytest.raises(PhotoError) as caught:
        PhotoFolder(root, 64).load(name)
    assert caught.value.code == "image_outside"
    line = json.dumps({"image": name, "caption": "x", "negated": "y"})
    (tmp_path / "pairs.jsonl").write_text(line)
    with pytest.raises(PairError, match="the image name"):
        read_pairs(tmp_path / "pairs.jsonl")


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_in_captions_files(name, tmp_path):
    images = [{"id": 1, "file_name": "good.png"}, {"id": 2, "file_name": name}]
    annotations = [{"id": i, "image_id": i, "caption": "x"} for i in (1, 2)]
    content = {"images": images, "annotations": annotations}
    (tmp_path / "c.json").write_text(json.dumps(content))
    found = read_captions(str(tmp_path / "c.json"))
    assert [image.file_name for image in found.images] == ["good.png"]
    assert [row["code"] for row in found.rejects] == ["image_outside"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_in_benchmarks_are_only_looked_up_in_the_list_of_files(name, root):
    """A photo is found by its last part among those that are there, wherever a name points."""
    with pytest.raises(InputError, match="there is no such photo"):
        ImageRef(name).open(DataRoots((root,)))


@pytest.mark.parametrize("name", ["../secret", "a/../../secret", "/secret", ".hidden", "a/b/c"])
def test_names_of_prepared_data_sets_are_names(name, root):
    """A benchmark's file may call a photo `tfds:NAME/SPLIT#ROW` too."""
    with pytest.raises(InputError, match="there is no such photo"):
        DataRoots((root,)).read(f"tfds:{name}/train#0")
    with pytest.raises(InputError, match="is not prepared"):
        DataRoots((root,)).read("tfds:secret/train#0")


def test_pipes_are_not_waited_for(root):
    os.mkfifo(root / "pipe.png")
    assert ImageDirectory(root).read("pipe.png") == b""
    assert DataRoots((root,)).read("pipe.png") == b""
    with pytest.raises(InputError, match="a device or a pipe"):
        ImageRef("pipe.png").open(DataRoots((root,)))
    with pytest.raises(PhotoError):
        PhotoFolder(root, 64).load("pipe.png")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".bin"])
def test_weights_are_files(kind, suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    make = {"pipe": os.mkfifo, "folder": os.mkdir, "device": lambda p: p.symlink_to("/dev/zero")}
    make.get(kind, lambda p: p.symlink_to(p.name))(path)
    with pytest.raises(InputError, match="is no file, but a folder, a pipe, a device or a"):
        open_file(path)
    with pytest.raises(InputError):
        read_any(tmp_path)  # which looks for weights by their names


def test_links_out_of_a_folder_of_images(root, tmp_path):
    (root / "link.png").symlink_to("../secret.png")
    (root / "up").symlink_to("..")
    os.link(root / "good.png", root / "hard.png")
    assert ImageDirectory(root).open("hard.png").size == (3, 2)
    for name in ("link.png", "up/secret.png", "up/photos/../secret.png"):
        with pytest.raises(ImageError):
            ImageDirectory(root).open(name)
        with pytest.raises(PhotoError):
            PhotoFolder(root, 64).load(name)


SHARDS = ["../w.safetensors", "/w.safetensors", "a/../../w.safetensors", "..\\w.safetensors",
          "w.safetensors\0", "..", "", "x/w.safetensors", 3, None]  # fmt: skip


@pytest.mark.parametrize("shard", SHARDS)
def test_an_index_of_shards_names_files_of_its_own_folder(shard, tmp_path):
    folder = tmp_path / "checkpoint"
    (folder / "x").mkdir(parents=True)
    for place in (tmp_path, folder / "x"):
        save_file({"w": np.zeros(2, np.float32)}, place / "w.safetensors")
    index = {"weight_map": {"w": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"index\.json"):
        open_weights(folder)


@pytest.mark.parametrize("name", ["../../../../secret", "/secret", "a\\b"])
def test_annotations_of_voc_stay_in_their_folder(name, tmp_path):
    folder = tmp_path / "VOCdevkit" / "VOC2007"
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "test.txt").write_text(name)
    (tmp_path / "secret.xml").write_text("<annotation/>")
    with pytest.raises(InputError, match=r"test\.txt names"):
        zeroshot.load_voc2007(DataRoots((tmp_path,)), download="there")


def test_entities_of_an_annotation_are_not_unpacked(tmp_path):
    folder = tmp_path / "VOCdevkit" / "VOC2007"
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Main" / "test.txt").write_text("a")
    laughs = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b SYSTEM "file:///etc/hostname">]><x>&b;</x>'
    (folder / "Annotations" / "a.xml").write_text(laughs)
    with pytest.raises(InputError, match="declares a document type"):
        zeroshot.load_voc2007(DataRoots((tmp_path,)), download="there")
