"""Published files and photos are found by their names, or a message says where we looked."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny_tars import member, write_tar

from evals.images import DataRoots, ImageRef, photos_at
from negclip_jax.common.decoding import ImageError
from negclip_jax.common.errors import InputError


def write(path: Path, content: bytes = b"[1]") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def photo(path: Path, colour: str = "red", size=(4, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def test_a_file_is_found_at_any_depth(tmp_path):
    deep = write(tmp_path / "a" / "b" / "NegRefCOCOg.json")
    assert DataRoots((tmp_path,)).find("NegRefCOCOg.json", download="x") == deep
    near = write(tmp_path / "z" / "NegRefCOCOg.json")
    assert DataRoots((tmp_path,)).find("NegRefCOCOg.json", download="x") == near


def test_an_earlier_folder_wins(tmp_path):
    slices = write(tmp_path / "data" / "slices" / "f.json")
    full = write(tmp_path / "data" / "f.json", b'{"more": 1}')
    first, second = tmp_path / "data" / "slices", tmp_path / "data"
    assert DataRoots((first, second)).find("f.json", download="x") == slices
    assert DataRoots((second, first)).find("f.json", download="x") == full


def test_names_may_ask_for_a_folder(tmp_path):
    write(tmp_path / "other" / "plurals.json")
    wanted = write(tmp_path / "deep" / "valse" / "plurals.json")
    assert DataRoots((tmp_path,)).find("valse/plurals.json", download="x") == wanted
    alternative = write(tmp_path / "valse_plurals.json")
    found = DataRoots((tmp_path,)).find("nothing", "valse_plurals.json", download="x")
    assert found == alternative


def test_a_file_that_is_not_there(tmp_path):
    message = rf"a\.json or b\.json is not below {tmp_path}: get it from github\.com/x"
    with pytest.raises(InputError, match=message):
        DataRoots((tmp_path,)).find("a.json", "b.json", download="github.com/x")


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"the data folder .*gone does not exist"):
        DataRoots((tmp_path / "gone",))
    with pytest.raises(InputError, match=r"the data folder .*f\.json is a file, not a folder"):
        DataRoots((write(tmp_path / "f.json"),))


@pytest.mark.parametrize(
    "name",
    [
        "000000000139.jpg",
        "val2017/000000000139.jpg",
        "data/coco/images/val2017/000000000139.jpg",
        "COCO_val2014_000000000139.jpg",
        "COCO_train2014_000000000139.jpg",
        "train2014\\COCO_train2014_000000000139.jpg",
    ],
)
def test_coco_names_of_both_years_are_one_photo(tmp_path, name):
    file = photo(tmp_path / "photos" / "val2017" / "000000000139.jpg")
    assert DataRoots((tmp_path,)).resolve(name) == file


def test_names_of_2014_are_found_for_2017_too(tmp_path):
    file = photo(tmp_path / "COCO_train2014_000000000139.jpg")
    assert DataRoots((tmp_path,)).resolve("val2017/000000000139.jpg") == file


def test_other_names_are_taken_literally(tmp_path):
    photo(tmp_path / "000139.jpg")
    roots = DataRoots((tmp_path,))
    assert roots.resolve("000000000139.jpg") is None and roots.resolve("139.jpg") is None


def test_of_equal_names_the_folder_decides(tmp_path):
    voc = photo(tmp_path / "VOC2007" / "JPEGImages" / "000001.jpg", "red")
    genome = photo(tmp_path / "VG" / "000001.jpg", "blue")
    roots = DataRoots((tmp_path,))
    assert roots.resolve("data/VOCdevkit/VOC2007/JPEGImages/000001.jpg") == voc
    assert roots.resolve("VG/000001.jpg") == genome
    with pytest.raises(InputError, match=r"000001\.jpg may be .* or .*, which differ"):
        roots.resolve("000001.jpg")


def test_copies_of_one_photo_are_no_question(tmp_path):
    first = photo(tmp_path / "a" / "x.png")
    photo(tmp_path / "b" / "x.png")
    assert DataRoots((tmp_path,)).resolve("x.png") == first


def test_missing_photos_are_listed_once(tmp_path):
    photo(tmp_path / "1.png")
    roots = DataRoots((tmp_path,))
    assert roots.missing(["2.png", "1.png", "3.png", "2.png"]) == ["2.png", "3.png"]


def test_photos_may_lie_elsewhere_and_be_linked(tmp_path):
    file = photo(tmp_path / "elsewhere" / "1.png")
    data = tmp_path / "data"
    data.mkdir()
    assert DataRoots((data,), images=(tmp_path / "elsewhere",)).resolve("1.png") == file
    (data / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(data)  # a circle ends the walk, not the program
    assert DataRoots((data,)).resolve("1.png") == data / "link" / "1.png"


@pytest.mark.parametrize(
    ("there", "asked"),
    [
        ("1.JPG", "1.jpg"),
        ("1.jpg", "1.JPG"),
        ("cafe\u0301.jpg", "caf\u00e9.jpg"),
        ("caf\u00e9.jpg", "cafe\u0301.jpg"),
        ("1.avif", "1.avif"),
        ("1.jfif", "1.jfif"),
        ("000000000139.JPG", "COCO_val2014_000000000139.jpg"),
    ],
)
def test_photos_in_other_spellings_and_formats_are_found(tmp_path, there, asked):
    file = write(tmp_path / "photos" / there, b"a photo")
    assert DataRoots((tmp_path,)).resolve(f"data/{asked}") == file


def test_of_two_spellings_the_one_that_is_asked_for(tmp_path):
    files = [photo(tmp_path / "1.jpg"), photo(tmp_path / "1.JPG", "blue")]
    roots = DataRoots((tmp_path,))
    assert [roots.resolve(name) for name in ("1.jpg", "1.JPG")] == files


VOC = "data/voc2007/VOCdevkit/VOC2007/JPEGImages/000001.jpg"


@pytest.mark.parametrize(
    "folder", ["celeba", "celeba/JPEGImages", "VOC2012/JPEGImages", "photos/celeba", "Aves"]
)
def test_a_photo_of_another_data_set_is_not_the_one_that_is_asked_for(tmp_path, folder, caplog):
    other = photo(tmp_path / folder / "000001.jpg")
    roots = DataRoots((tmp_path,))
    assert roots.resolve(VOC) is None and roots.missing([VOC]) == [VOC]
    assert f"not taken: {other} is not {VOC}" in caplog.text
    assert roots.resolve("000001.jpg") == other  # a bare name does not say where it belongs


@pytest.mark.parametrize(
    "folder", [".", "photos", "JPEGImages", "VOC2007/JPEGImages", "voc2007", "voc", "VOC2007/x"]
)
def test_a_photo_in_a_folder_of_its_name_or_of_no_name_is_taken(tmp_path, folder):
    photo(tmp_path / "celeba" / "000001.jpg", "blue")
    right = photo(tmp_path / folder / "000001.jpg")
    roots = DataRoots((tmp_path,))
    assert roots.resolve(VOC) == right and roots.missing([VOC]) == []


def test_a_box_is_cut_as_pillow_does(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "1.png")
    roots = DataRoots((tmp_path,))
    found = np.asarray(ImageRef("1.png", (2.5, 3.5, 10.0, 8.2)).open(roots))
    # Edges are rounded with halves to even: 2.5 -> 2, 12.5 -> 12, 3.5 -> 4, 11.7 -> 12.
    np.testing.assert_array_equal(found, pixels[4:12, 2:12])
    assert roots.size("1.png") == (30, 20)


@pytest.mark.parametrize("box", [(0, 0, 1e6, 1e6), (0, 0, 0.2, 5), (-1e300, 0, 3, 3)])
def test_boxes_of_no_photo_are_refused(tmp_path, box):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match=r"a\.jpg: the box .* cannot be cut out"):
        ImageRef("a.jpg", box).open(DataRoots((tmp_path,)))


def test_damaged_and_missing_images_are_named(tmp_path):
    write(tmp_path / "bad.png", b"nothing")
    roots = DataRoots((tmp_path,))
    with pytest.raises(ImageError, match=r"bad\.png: this is not an image"):
        ImageRef("bad.png").open(roots)
    with pytest.raises(ImageError, match=r"bad\.png: this is not an image"):
        roots.size("bad.png")
    with pytest.raises(ImageError, match=r"gone\.png: there is no such photo below"):
        ImageRef("gone.png").open(roots)


def test_identity_follows_the_file(tmp_path):
    photo(tmp_path / "1.png")
    roots = DataRoots((tmp_path,))
    before = roots.identity("1.png")
    assert roots.identity("1.png") == before
    photo(tmp_path / "1.png", "blue", (9, 9))
    assert roots.identity("1.png") != before


def test_folders_of_classes(tmp_path):
    photo(tmp_path / "deep" / "imagenet" / "val" / "n01440764" / "1.png")
    roots = DataRoots((tmp_path,))
    assert roots.folder("imagenet/val") == tmp_path / "deep" / "imagenet" / "val"
    assert roots.folder("imagenet/train") is None


def test_images_of_prepared_data_sets(tmp_path, monkeypatch):
    from evals import images

    file = photo(tmp_path / "1.png", size=(7, 5))
    rows = [{}, {"image": file.read_bytes()}]
    monkeypatch.setattr(
        images, "tfds_rows", lambda name, split, folders: {"a/test": rows}[name + "/" + split]
    )
    roots = DataRoots((tmp_path,))
    assert ImageRef("tfds:a/test#1").open(roots).size == (7, 5)
    assert roots.missing(["tfds:a/test#1"]) == []
    assert roots.identity("tfds:a/test#1") == ["tfds:a/test#1"]


@pytest.fixture(params=["wds", "parquet"])
def shards(request, tmp_path):
    """Function of photos by name to what `--images` takes."""

    def write(photos: dict[str, str], name: str = "a") -> str:
        encoded = {}
        for called, colour in photos.items():
            buffer = io.BytesIO()
            Image.new("RGB", (4, 3), colour).save(buffer, "PNG")
            encoded[called] = buffer.getvalue()
        if request.param == "wds":
            write_tar(tmp_path / f"{name}.tar", [member(*item) for item in encoded.items()])
            return f"wds:{tmp_path}/{name}.tar"
        rows = [{"image": {"bytes": x, "path": called}} for called, x in encoded.items()]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
        return f"parquet:{tmp_path}/{name}.parquet"

    return write


def test_photos_in_shards(shards, tmp_path):
    (tmp_path / "data").mkdir()
    name = "COCO_val2014_000000000139.jpg"
    spec = shards({name: "red", "val2017/000000000042.jpg": "blue", "celeba/1.png": "lime"})
    roots = DataRoots((tmp_path / "data",), (photos_at(spec),))
    assert roots.open(f"somewhere/{name}").getpixel((0, 0)) == (255, 0, 0)
    for called in ("000000000042.jpg", "COCO_train2014_000000000042.jpg"):
        assert roots.open(called).getpixel((0, 0)) == (0, 0, 255)
    assert roots.size("celeba/1.png") == (4, 3) and roots.read("1.png").startswith(b"\x89PNG")
    assert roots.missing(["voc2007/1.png", "2.png", "1.png"]) == ["voc2007/1.png", "2.png"]
    before = roots.identity("1.png")
    assert before == roots.identity("1.png") != roots.identity(name)
    with pytest.raises(ImageError, match="there is no such photo"):
        roots.open("gone.jpg")
    # A folder comes first.
    photo(tmp_path / "data" / name, "lime")
    assert DataRoots((tmp_path / "data",), (spec,)).open(name).getpixel((0, 0))[1] > 250


def test_one_name_for_two_photos_in_shards(shards, tmp_path):
    (tmp_path / "data").mkdir()
    specs = (shards({"x/1.png": "red"}), shards({"y/1.png": "blue"}, "b"))
    roots = DataRoots((tmp_path / "data",), specs)
    assert roots.open("x/1.png").getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(InputError, match=r"1\.png may be a.*0*/?.* or b.*, which differ: give"):
        roots.open("1.png")


def test_shards_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match=r"match no file: there is no"):
        DataRoots((tmp_path,), (f"wds:{tmp_path}/gone.tar",))
