"""Images in tars are those of the folder that the tars were made of."""

import os
import pickle

import numpy as np
import pytest
from fake_bucket import bucket, served
from tiny_shards import write_records
from tiny_tars import member, write_photos, write_tar

from negclip_jax.common.decoding import ImageError
from negclip_jax.data import shard_images
from negclip_jax.data.images import ImageDirectory
from negclip_jax.data.shard_images import RecordImages, TarImages

__all__ = ["bucket", "served"]  # fixtures

NAMES = [f"{i:03d}.png" for i in range(40)]


@pytest.fixture
def tars(tiny_pairs, tmp_path):
    """The forty images of the tiny pairs in three tars."""
    for i in range(3):
        write_photos(tmp_path / f"t-{i}.tar", tiny_pairs / "images", NAMES[i * 15 : i * 15 + 15])
    return str(tmp_path / "t-{0..2}.tar")


def full(name: str) -> str:
    return f"t-{int(name[:3]) // 15}.tar/{name}"


def test_the_bytes_and_pixels_are_those_of_the_folder(tars, tiny_pairs):
    images, folder = TarImages(tars), ImageDirectory(tiny_pairs / "images")
    for name in NAMES:
        for called in (name, full(name)):
            assert images.read(called) == folder.read(name)
        assert np.array_equal(np.asarray(images.open(full(name))), np.asarray(folder.open(name)))


def test_what_is_missing(tars):
    images = TarImages(tars)
    absent = ["none.png", "t-0.tar/039.png", "t-9.tar/000.png", "t-0.tar/", "t-0.tar", "../000.png"]
    assert images.missing([*NAMES, *map(full, NAMES), *absent, absent[0]]) == absent
    assert images.missing([]) == []
    assert images.read("none.png") == b"" and images.identity("none.png") == []
    for name in absent:
        with pytest.raises(ImageError, match=f"^{name}: there is no such image in .*t-.0..2"):
            images.open(name)


def test_a_name_that_two_tars_have(tars, tiny_pairs, tmp_path):
    write_photos(tmp_path / "t-3.tar", tiny_pairs / "images", NAMES[3:5])
    images = TarImages(tars.replace("0..2", "0..3"))
    message = r"^003\.png is in t-0\.tar and in t-3\.tar: write t-0\.tar/003\.png or t-3"
    for call in (images.open, images.identity, lambda name: images.missing([name])):
        with pytest.raises(ImageError, match=message):
            call("003.png")
    assert images.missing(["t-0.tar/003.png", "t-3.tar/003.png", "005.png"]) == []
    assert images.identity("t-0.tar/003.png") != images.identity("t-3.tar/003.png")


def test_captions_are_no_images_by_their_names_alone(tars):
    images = TarImages(tars)
    assert images.missing(["000.txt"]) == ["000.txt"]
    with pytest.raises(ImageError, match=r"^t-0\.tar/000\.txt in .*: this is not an image"):
        images.open("t-0.tar/000.txt")


def test_identity_follows_the_tar_alone(tars, tiny_pairs, tmp_path):
    images = TarImages(tars)
    before = {name: images.identity(name) for name in NAMES}
    assert len({str(x) for x in before.values()}) == 40
    assert before[NAMES[5]] == images.identity(full(NAMES[5]))
    (tmp_path / "t-0.tar.index").unlink()
    write_photos(tmp_path / "t-2.tar", tiny_pairs / "images", NAMES[30:40])
    again = TarImages(tars)
    changed = [name for name in NAMES if again.identity(name) != before[name]]
    assert changed == NAMES[30:40]


def test_storage_order_is_that_of_bytes(tars):
    images = TarImages(tars)
    shuffled = np.random.default_rng(0).permutation(NAMES).tolist()
    order = images.storage_order(shuffled)
    assert [shuffled[i] for i in order] == NAMES
    assert images.storage_order([*shuffled, "none"])[0] == 40


def test_a_pickle_holds_no_list_of_images_and_no_open_file(tars):
    images = TarImages(tars)
    images.open(NAMES[0])
    packed = pickle.dumps(images)
    assert len(packed) < 1000
    copy = pickle.loads(packed)
    assert copy.read(NAMES[39]) == images.read(NAMES[39])
    assert copy.identity(NAMES[39]) == images.identity(NAMES[39])


def test_tars_without_an_image(tmp_path):
    write_tar(tmp_path / "a.tar", [member("a.txt", b"a"), member("a.json", b"{}")])
    with pytest.raises(ImageError, match=r"^wds:.*: there is no image among 2 members \(looked"):
        TarImages(str(tmp_path / "a.tar"))


def test_an_image_that_is_too_large_is_not_read(tars, monkeypatch):
    monkeypatch.setattr(shard_images, "MAX_BYTES", 10)
    with pytest.raises(ImageError, match=r"^member 0 of .*t-0\.tar has [\d,]+ bytes: refused"):
        TarImages(tars).open("000.png")


def test_a_damaged_image_is_named(tars, tiny_pairs, tmp_path):
    content = (tiny_pairs / "images" / "000.png").read_bytes()
    write_tar(tmp_path / "b.tar", [member("a.png", content[:-30]), member("b.png", b"")])
    images = TarImages(str(tmp_path / "b.tar"))
    with pytest.raises(ImageError, match=r"^a\.png in .*b\.tar: the image is damaged or cut short"):
        images.open("a.png")
    with pytest.raises(ImageError, match=r"^b\.png in .*b\.tar: the image file is empty"):
        images.open("b.png")


def test_a_tar_that_disappears_in_a_run(tars, tmp_path):
    images = TarImages(tars)
    images.open("000.png")
    os.unlink(tmp_path / "t-1.tar")
    assert images.open("001.png")  # of a tar that is there
    with pytest.raises(ImageError, match=r"t-1\.tar cannot be read: No such file or directory"):
        images.open("020.png")
    assert images.read("020.png") == b""


def test_a_bucket_of_tars(tars, tiny_pairs, tmp_path, bucket):
    for i in range(3):
        bucket.put("tiny", f"tars/t-{i}.tar", (tmp_path / f"t-{i}.tar").read_bytes())
    images, folder = TarImages("gs://tiny/tars/t-{0..2}.tar"), ImageDirectory(tiny_pairs / "images")
    assert [images.read(name) for name in NAMES] == [folder.read(name) for name in NAMES]
    before = images.identity("000.png")
    assert TarImages("gs://tiny/tars").identity("000.png") == before
    bucket.flip_bit("gs://tiny/tars/t-1.tar")
    assert TarImages("gs://tiny/tars").identity("000.png") == before
    assert TarImages("gs://tiny/tars").identity("020.png") != images.identity("020.png")
    bucket.refuse = lambda method, name: 403 if name.endswith("t-2.tar") else None
    fresh = pickle.loads(pickle.dumps(images))
    with pytest.raises(ImageError, match=r"^gs://tiny/tars/t-2\.tar cannot be read \(OSError"):
        fresh.open("035.png")


@pytest.fixture
def records(tiny_pairs, tmp_path):
    """The forty images of the tiny pairs in two files, and the name of each there."""
    return write_records(tiny_pairs / "images", tmp_path)


def test_records_are_the_files_of_the_folder(records, tiny_pairs):
    pattern, called = records
    images, folder = RecordImages(pattern), ImageDirectory(tiny_pairs / "images")
    for name, number in called.items():
        assert images.read(number) == folder.read(name)
        assert np.array_equal(np.asarray(images.open(number)), np.asarray(folder.open(name)))
    names = list(called.values())
    absent = ["a-0.array_record/20", "a-0.array_record/-1", "a-0.array_record/x", "000.png",
              "a-2.array_record/0", f"a-0.array_record/{'9' * 30}"]  # fmt: skip
    assert images.missing([*names, *absent]) == absent
    assert len({str(images.identity(name)) for name in names}) == 40
    order = images.storage_order(names[::-1])
    assert [names[::-1][i] for i in order] == names
    packed = pickle.dumps(images)
    assert len(packed) < 1000 and pickle.loads(packed).read(names[33]) == images.read(names[33])


def test_records_that_are_no_images(tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(tmp_path / "a.array_record"), "group_size:1")
    writer.write(b"\n\x10an example")
    writer.close()
    with pytest.raises(ImageError, match=r"first record of .*: this is not an image"):
        RecordImages(str(tmp_path / "a.array_record"))


@pytest.mark.parametrize("damage", [lambda x: x[: len(x) // 2], lambda x: b"", lambda x: b"x" * 99])
def test_damaged_records(records, tmp_path, damage):
    path = tmp_path / "a-1.array_record"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ImageError, match=r"^/.*a-1\.array_record cannot be read as ArrayRecord \("):
        RecordImages(records[0])


def test_records_that_disappear_in_a_run(records, tmp_path):
    images = pickle.loads(pickle.dumps(RecordImages(records[0])))
    os.unlink(tmp_path / "a-1.array_record")
    assert images.open("a-0.array_record/0")
    with pytest.raises(ImageError, match=r"a-1\.array_record cannot be read: No such file"):
        images.open("a-1.array_record/0")


def test_a_bucket_of_records(records, tiny_pairs, tmp_path, bucket):
    called = records[1]
    for i in range(2):
        content = (tmp_path / f"a-{i}.array_record").read_bytes()
        bucket.put("tiny", f"records/a-{i}.array_record", content)
    images = RecordImages("gs://tiny/records")
    folder = ImageDirectory(tiny_pairs / "images")
    assert all(images.read(number) == folder.read(name) for name, number in called.items())
