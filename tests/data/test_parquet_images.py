"""Images in Parquet files: as `datasets` and img2dataset write them, and damaged ones."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_bucket import bucket, served
from hostile import child
from tiny_shards import write_parquet

from negclip_jax.common.decoding import ImageError
from negclip_jax.common.errors import InputError
from negclip_jax.data import parquet_images
from negclip_jax.data.images import ImageDirectory
from negclip_jax.data.parquet_images import ParquetImages

__all__ = ["bucket", "served"]  # fixtures

NAMES = [f"{i:03d}.png" for i in range(40)]


@pytest.fixture
def folder(tiny_pairs):
    return ImageDirectory(tiny_pairs / "images")


@pytest.fixture
def pattern(tiny_pairs, tmp_path):
    return write_parquet(tiny_pairs / "images", tmp_path)


def row_of(name: str) -> str:
    file, row = divmod(int(name[:3]), 20)
    return f"train-{file:05d}-of-00002.parquet/{row}"


def test_the_bytes_are_those_of_the_folder(pattern, folder):
    images = ParquetImages(pattern)
    for name in NAMES:
        assert images.read(name) == images.read(row_of(name)) == folder.read(name)
    assert np.array_equal(np.asarray(images.open("007.png")), np.asarray(folder.open("007.png")))
    absent = ["040.png", "train-00000-of-00002.parquet/20", "train-00002-of-00002.parquet/0"]
    assert images.missing([*NAMES, *absent]) == absent
    with pytest.raises(ImageError, match=r"^040\.png: there is no such image in .*train-\*"):
        images.open("040.png")


def test_rows_without_paths_are_called_by_their_number(tiny_pairs, tmp_path, folder):
    images = ParquetImages(write_parquet(tiny_pairs / "images", tmp_path, paths=False))
    assert images.missing(["000.png", *map(row_of, NAMES)]) == ["000.png"]
    assert images.read(row_of("033.png")) == folder.read("033.png")


def test_a_path_that_two_rows_have(folder, tmp_path):
    column = [{"bytes": folder.read(name), "path": "same.png"} for name in NAMES[:2]]
    pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet")
    images = ParquetImages(str(tmp_path / "a.parquet"))
    with pytest.raises(ImageError, match=r"^same\.png is in a\.parquet"):
        images.missing(["same.png"])
    assert images.read("a.parquet/1") == folder.read("001.png")


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("name", ["jpg", "content"])
def test_a_column_of_bytes(folder, tmp_path, kind, name):
    """img2dataset's own Parquet has such a column, called by the format of its images."""
    values = pa.array([folder.read(x) for x in NAMES], kind)
    table = pa.table({"key": NAMES, name: values, "url": ["https://x"] * 40})
    pq.write_table(table, tmp_path / "00000.parquet", row_group_size=9)
    images = ParquetImages(str(tmp_path))
    assert [images.read(f"00000.parquet/{i}") for i in range(40)] == list(map(folder.read, NAMES))


def test_which_column(folder, tmp_path):
    values = pa.array([folder.read("000.png")])
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"left": values, "right": pa.array([folder.read("001.png")])}), path)
    with pytest.raises(ImageError, match=r"several columns that could hold images, left, right: w"):
        ParquetImages(path)
    images = ParquetImages(f"{path}#right")
    assert pickle.loads(pickle.dumps(images)).read("a.parquet/0") == folder.read("001.png")
    with pytest.raises(ImageError, match="has no column middle of image bytes"):
        ParquetImages(f"{path}#middle")
    pq.write_table(pa.table({"embedding": values, "image": values}), path)
    assert ParquetImages(path).read("a.parquet/0") == folder.read("000.png")


def test_addresses_alone_are_no_images(tmp_path):
    pq.write_table(pa.table({"url": ["https://x"], "caption": ["a"]}), tmp_path / "a.parquet")
    message = (
        r"a\.parquet has no column of image bytes; it has: url \(string\), caption \(string\)\. "
        "Images that are addresses are downloaded first"
    )
    with pytest.raises(ImageError, match=message):
        ParquetImages(str(tmp_path / "a.parquet"))


def test_a_row_without_bytes(folder, tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": folder.read("000.png"), "path": "a"}, {"bytes": None, "path": "b"}, None]
    pq.write_table(pa.table({"image": pa.array(rows, kind)}), tmp_path / "a.parquet")
    images = ParquetImages(str(tmp_path / "a.parquet"))
    for name in ("b", "a.parquet/1", "a.parquet/2"):
        with pytest.raises(ImageError, match=r"^row \d of .*a\.parquet holds no bytes: its d"):
            images.open(name)
        assert images.read(name) == b""


def test_a_data_set_of_paths_alone(tmp_path):
    """What `datasets` writes where nothing was embedded: the struct, without bytes."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": None, "path": f"https://x/{i}.jpg"} for i in range(9)], kind)
    pq.write_table(pa.table({"image": rows}), tmp_path / "a.parquet")
    with pytest.raises(ImageError, match=r"a\.parquet holds no image in its first 9 rows, but at"):
        ParquetImages(str(tmp_path / "a.parquet"))


def damaged_page(content: bytes) -> bytes:
    return content[:20] + b"\xff" * 400 + content[420:]


@pytest.mark.parametrize(
    "damage", [lambda x: x[: len(x) // 2], lambda x: b"", lambda x: b"PAR1" * 9, lambda x: x[:-1]]
)
def test_files_that_are_no_parquet(pattern, tmp_path, damage):
    path = tmp_path / "train-00001-of-00002.parquet"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=f"^{path} cannot be read as Parquet") as caught:
        ParquetImages(pattern)
    assert "\n" not in str(caught.value)


def test_a_damaged_page_is_one_bad_image_or_an_error_that_names_the_file(pattern, tmp_path):
    path = tmp_path / "train-00001-of-00002.parquet"
    path.write_bytes(damaged_page(path.read_bytes()))
    images = ParquetImages(pattern)
    assert images.open("000.png")
    with pytest.raises(ImageError, match=f"{path} cannot be read as Parquet"):
        images.open(row_of("020.png"))


_EACH_BYTE = """
content, refused = bytearray(path.read_bytes()), 0
for place in range(len(content) - footer, len(content) - 8, step):
    kept, content[place] = content[place], 0
    path.write_bytes(content)
    content[place] = kept
    try:
        images = ParquetImages(str(path))
        images.missing(["000.png"])
        images.open("train-00000-of-00002.parquet/3")
    except InputError:
        refused += 1
result = refused
"""


@pytest.mark.parametrize("step", [61, pytest.param(3, marks=pytest.mark.long)])
def test_damaged_metadata_does_not_end_the_process(step, pattern, tmp_path):
    path = tmp_path / "train-00000-of-00002.parquet"
    footer = int.from_bytes(path.read_bytes()[-8:-4], "little") + 8
    setup = "from negclip_jax.data.parquet_images import ParquetImages\n"
    setup += "from negclip_jax.common.errors import InputError"
    setup += (
        f"\nfrom pathlib import Path\npath, footer, step = Path({str(path)!r}), {footer}, {step}"
    )
    result, _, _ = child.measured(setup, _EACH_BYTE)
    assert footer / step / 100 < result < footer / step


def test_a_file_that_claims_to_unpack_to_far_more_than_it_is(tmp_path):
    table = pa.table({"image": pa.array([b"\0" * 2**20] * 200)})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    assert (tmp_path / "a.parquet").stat().st_size < 2**20
    with pytest.raises(InputError, match=r"a\.parquet of [\d,]+ bytes unpacks to [\d,]+ bytes"):
        ParquetImages(str(tmp_path / "a.parquet"))


def test_an_image_that_is_too_large_and_a_file_without_rows(pattern, tmp_path, monkeypatch):
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "e.parquet")
    with pytest.raises(ImageError, match=r"^parquet:.*e\.parquet: there is no row in 1 files"):
        ParquetImages(str(tmp_path / "e.parquet"))
    monkeypatch.setattr(parquet_images, "MAX_BYTES", 10)
    with pytest.raises(ImageError, match=r"^row 0 of .* has an image of [\d,]+ bytes: refused"):
        ParquetImages(pattern).open("000.png")
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "train-0.parquet")
    assert ParquetImages(pattern).missing(["007.png"]) == []


def test_large_row_groups_are_warned_of(pattern, monkeypatch, caplog):
    monkeypatch.setattr(parquet_images, "_LARGE", 1000)
    ParquetImages(pattern)
    assert "write the files again with row groups of some hundred images" in caplog.text


def test_each_row_group_is_read_once_and_few_are_kept(pattern, folder, monkeypatch):
    images, reads = ParquetImages(pattern), []
    read = images._read
    monkeypatch.setattr(images, "_read", lambda *where: reads.append(where[:2]) or read(*where))
    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(images.read, map(row_of, NAMES))) == list(map(folder.read, NAMES))
    every = [(file, group) for file in range(2) for group in range(3)]
    assert sorted(reads) == every[1:]  # the first was read to see whether there are images
    monkeypatch.setattr(parquet_images, "_KEPT", 1)
    images = ParquetImages(pattern)
    for name in NAMES:
        images.read(row_of(name))
    assert len(images._groups) == 1
    with ThreadPoolExecutor(16) as threads:  # groups that others are waiting for
        assert list(threads.map(images.read, map(row_of, NAMES))) == list(map(folder.read, NAMES))


def test_a_group_that_could_not_be_read_is_tried_again(pattern, folder, monkeypatch):
    images = pickle.loads(pickle.dumps(ParquetImages(pattern)))
    with monkeypatch.context() as patch:
        patch.setattr(images, "_read", lambda *where: (_ for _ in ()).throw(ImageError("no net")))
        with pytest.raises(ImageError, match="no net"):
            images.open(row_of("000.png"))
    assert images.read(row_of("000.png")) == folder.read("000.png")


def test_identity_order_and_pickle(pattern, tiny_pairs, tmp_path):
    images = ParquetImages(pattern)
    before = {name: images.identity(name) for name in NAMES}
    assert len({str(x) for x in before.values()}) == 40
    assert images.storage_order(NAMES[::-1]).tolist() == list(range(39, -1, -1))
    packed = pickle.dumps(images)
    assert len(packed) < 1000 and pickle.loads(packed).identity("003.png") == before["003.png"]
    os.utime(tmp_path / "train-00001-of-00002.parquet")
    again = ParquetImages(pattern)
    assert [n for n in NAMES if again.identity(n) != before[n]] == NAMES[20:]


def test_a_file_that_disappears_in_a_run(pattern, tmp_path):
    images = pickle.loads(pickle.dumps(ParquetImages(pattern)))
    os.unlink(tmp_path / "train-00001-of-00002.parquet")
    assert images.open(row_of("000.png"))
    with pytest.raises(ImageError, match=r"train-00001-of-00002\.parquet cannot be read: No such"):
        images.open(row_of("020.png"))


def test_a_bucket(pattern, tmp_path, folder, bucket):
    for i in range(2):
        name = f"train-{i:05d}-of-00002.parquet"
        bucket.put("tiny", f"parquet/{name}", (tmp_path / name).read_bytes())
    images = ParquetImages("gs://tiny/parquet")
    assert [images.read(name) for name in NAMES] == [folder.read(name) for name in NAMES]
    fresh = pickle.loads(pickle.dumps(images))
    bucket.refuse = lambda method, name: 403 if name.endswith("00001-of-00002.parquet") else None
    with pytest.raises(ImageError, match=r"gs://tiny/parquet/train-00001-of-00002\.parquet cannot"):
        fresh.open(row_of("020.png"))
