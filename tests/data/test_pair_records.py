"""Pairs from sets of shards: tars, Parquet that holds its images, ArrayRecords; and broken ones."""

import json
import os
import shutil
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from fake_bucket import bucket, served
from tiny_shards import write_parquet
from tiny_tars import member, write_tar

from negclip_jax.data.pairs import Pair, PairError, content_of, read_pairs
from negclip_jax.data.sources import open_images
from negclip_jax.data.tar_index import TarError

__all__ = ["bucket", "served"]  # fixtures


def sample(key: str, **parts) -> list:
    """Members of a sample as img2dataset writes it: image, caption and what is known of it."""
    about = {"key": key, "url": "http://x", "status": "success"}
    parts = {"jpg": b"image", "txt": f"a photo {key}", "json": about} | parts
    members = []
    for suffix, value in parts.items():
        if isinstance(value, dict | list):
            value = json.dumps(value)
        if value is not None:
            content = value.encode() if isinstance(value, str) else value
            members.append(member(f"{key}.{suffix.replace('_', '.')}", content))
    return members


def written(folder, *samples, name="00000.tar") -> str:
    write_tar(folder / name, [m for members in samples for m in members])
    return f"wds:{folder}/{name}"


def read(spec, **options) -> list[Pair]:
    return read_pairs(spec, **{"require_negated": False} | options)


def test_tars_of_webdatasets_own_writer(tmp_path):
    for shard in range(2):
        with webdataset.TarWriter(str(tmp_path / f"cc-{shard}.tar")) as writer:
            for i in range(3):
                about = {"negated": f"no dog {i}", "foils": [f"a dog {i}"], "object": "dog"}
                about |= {"image_id": i // 2, "provenance": "us"} if shard else {}
                parts = {"__key__": f"{shard}{i:04d}", "png": b"x", "txt": f"ein Käfer {i}"}
                writer.write(parts | {"json": about})
    pairs = read(f"wds:{tmp_path}/cc-{{0..1}}.tar", require_negated=True)
    assert len(pairs) == 6
    name = "cc-0.tar/00001.png"
    assert pairs[1] == Pair(name, "ein Käfer 1", "no dog 1", ("a dog 1",), "dog", image_id=name)
    more = (("a dog 1",), "dog", "us")
    assert pairs[4] == Pair("cc-1.tar/10001.png", "ein Käfer 1", "no dog 1", *more, image_id="0")


def test_tars_of_img2dataset_are_plain_captions(tmp_path):
    spec = written(tmp_path, sample("000"), sample("001", txt=None), sample("002", json=None))
    first, third = read(spec, fields="caption=txt")
    assert (first.caption, third.caption) == ("a photo 000", "a photo 002")
    spec = written(tmp_path, sample("000", txt=None, json={"caption": "of the JSON\n"}))
    assert [pair.caption for pair in read(spec)] == ["of the JSON\n"]
    with pytest.raises(PairError, match=r'none of its 1 records has "negated".*"original"'):
        read_pairs(spec)


def test_the_images_of_pairs_are_those_of_the_same_tars(tmp_path, tiny_pairs):
    names = sorted(os.listdir(tiny_pairs / "images"))[:4]
    content = [(tiny_pairs / "images" / name).read_bytes() for name in names]
    spec = written(tmp_path, *(sample(f"{i}", jpg=x) for i, x in enumerate(content)))
    images = open_images(spec)
    assert [images.read(pair.image) for pair in read(spec)] == content
    found = read(written(tmp_path, sample("0", seg_png=b"s", png=b"p")), fields="image=png")
    assert [pair.image for pair in found] == ["00000.tar/0.png"]
    assert (
        len(read(written(tmp_path, sample("0", seg_png=b"s")))) == 1
    )  # one photo: .seg.png is none


def test_samples_without_a_text_or_an_image_are_counted(tmp_path, caplog):
    samples = [sample("0"), sample("1", txt=None), sample("2", txt=" \n"), sample("3", jpg=None)]
    pairs = read(written(tmp_path, *samples))
    assert [pair.image for pair in pairs] == ["00000.tar/0.jpg"]
    message = "left out that have no caption (2): 00000.tar/1, 00000.tar/2; no image (1): 00000.t"
    assert message in caplog.text
    with pytest.raises(
        PairError, match=r"no caption \(1\): 00000.tar/1; samples have .* jpg, json"
    ):
        read(written(tmp_path, sample("1", txt=None)))


BAD = {
    "JSON": (
        sample("0", json=b'{"a": '),
        r"member \.json is not valid JSON \(1\): 00000\.tar/0 \(",
    ),
    "a key twice": (sample("0", json=b'{"a": 1, "a": 2}'), r"the key 'a' occurs twice in an obj"),
    "bytes": (sample("0", txt=b"\xff"), r"the member \.txt is not UTF-8 \(1\): 00000\.tar/0"),
    "long": (sample("0", txt="x" * 400_001), r"\.txt is too long \(1\).*400,001 bytes"),
    "longer": (sample("0", txt="x" * 100_001), "caption is longer than 100,000 characters"),
    "list": (sample("0", txt=None, json={"caption": ["a"]}), r"the caption is not a string \(1\)"),
    "several": (sample("0", png=b"x"), r"several images: name one in data\.fields, as image=jpg"),
    "foils": (sample("0", json={"foils": [1]}), r"the foil is not a string \(1\): 00000\.tar/0"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_in_a_sample_is_named(tmp_path, name):
    members, message = BAD[name]
    spec = written(tmp_path, members, sample("1"))
    with pytest.raises(PairError, match=message) as caught:
        read(spec)
    assert str(caught.value).startswith(f"{spec} has 1 problem: ")
    assert "\n" not in str(caught.value)


def test_a_key_twice_and_no_tar(tmp_path):
    doubled = [member("0.jpg", b"a"), member("0.JPG", b"b"), member("0.txt", b"c")]
    with pytest.raises(TarError, match=r"'0\.jpg' and '0\.JPG', which are of one key and suffix"):
        read(written(tmp_path, doubled))
    (tmp_path / "00000.tar").write_bytes(b"image,caption\n" * 99)
    with pytest.raises(TarError, match="is not a tar"):
        read(f"wds:{tmp_path}/00000.tar")


def test_parquet_with_its_images_inside(tmp_path, tiny_pairs):
    pattern = write_parquet(tiny_pairs / "images", tmp_path)
    pairs = read(f"parquet:{pattern}")
    assert len(pairs) == 40 and pairs[21].image == "train-00001-of-00002.parquet/1"
    images = open_images(f"parquet:{pattern}")
    assert images.read(pairs[21].image) == (tiny_pairs / "images" / pairs[21].caption).read_bytes()
    assert [p.image for p in read(tmp_path / "train-00001-of-00002.parquet")] == [
        pair.image for pair in pairs[20:]
    ]
    by_path = read(f"parquet:{pattern}", fields="image=image.path")
    assert [pair.image for pair in by_path] == [pair.caption for pair in pairs]
    # As img2dataset writes them: the column is called by its format.
    pq.write_table(pa.table({"jpg": [b"x", b"y"], "caption": ["a", None]}), tmp_path / "0.parquet")
    assert [(p.image, p.caption) for p in read(f"parquet:{tmp_path}/0.parquet#jpg")] == [
        ("0.parquet/0", "a")
    ]
    pq.write_table(pa.table({"jpg": [b"x"], "text": ["a"]}), tmp_path / "0.parquet")
    with pytest.raises(PairError, match=r'no column "caption"; it has: jpg, text'):
        read(f"parquet:{tmp_path}/0.parquet")


def test_rows_that_img2dataset_could_not_download(tmp_path, caplog):
    columns = {"jpg": [b"x", None, b"z"], "caption": ["a", "b", "c"], "error_message": [None] * 3}
    columns |= {"status": ["success", "failed_to_download", "success"]}
    pq.write_table(pa.table(columns), tmp_path / "0.parquet")
    found = read(f"parquet:{tmp_path}/0.parquet")
    assert [(p.image, p.caption) for p in found] == [("0.parquet/0", "a"), ("0.parquet/2", "c")]
    assert "samples are left out that have no image (1): 0.parquet row 1" in caplog.text
    del columns["error_message"]  # then it is a user's own
    pq.write_table(pa.table(columns), tmp_path / "0.parquet")
    assert len(read(f"parquet:{tmp_path}/0.parquet")) == 3


def test_dots_in_the_names_of_a_tar(tmp_path):
    """A key ends at the first dot: the image is not found, and the error says how to name it."""
    spec = written(tmp_path, [member("a.v2.jpg", b"x"), member("a.v2.txt", b"a photo")])
    with pytest.raises(
        PairError, match=r"no image but v2\.jpg: .* image=v2\.jpg \(1\): 00000\.tar/a;.*v2"
    ):
        read(spec)
    (pair,) = read(spec, fields="image=v2.jpg,caption=v2.txt")
    assert (pair.image, pair.caption) == ("00000.tar/a.v2.jpg", "a photo")


def test_members_that_macos_adds_and_names_of_all_lengths(tmp_path):
    """`._x` is no sample; long and Unicode keys, as GNU tar, pax and ustar write them."""
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
        keys = ["Käfer/猫" if form != tarfile.USTAR_FORMAT else "k", f"{'d' * 90}/{'e' * 95}"]
        keys += [f"{'f' * 300}"] if form != tarfile.USTAR_FORMAT else []
        members = [member("._0.jpg", b"x"), member("__MACOSX/._0.txt", b"\xff")]
        for key in keys:
            members += [member(f"{key}.JPG", b"x"), member(f"{key}.TXT", b"a")]
        write_tar(tmp_path / "a.tar", members, form)
        pairs = read(f"wds:{tmp_path}/a.tar")
        assert [pair.image for pair in pairs] == [f"a.tar/{key}.JPG" for key in keys]
        images = open_images(f"wds:{tmp_path}/a.tar")
        assert images.names() == [pair.image for pair in pairs]
        assert [images.read(pair.image) for pair in pairs] == [b"x"] * len(keys)


def test_array_records_that_are_no_json(tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(tmp_path / "a.array_record"), "group_size:1")
    for record in (b"\xff\xd8", b"[1]", b'{"image": "a.jpg", "caption": "x"}'):
        writer.write(record)
    writer.close()
    message = r"not valid JSON \(1\): a\.array_record/0 .*; not an object \(1\): a\.array_record/1"
    with pytest.raises(PairError, match=message):
        read(f"arrayrecord:{tmp_path}/a.array_record")


def test_content_changes_with_texts_and_not_with_times(tmp_path):
    def content(spec, **options):
        version, digest = content_of(spec, **options)
        return version, digest()

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    spec = written(tmp_path / "a", sample("0"), sample("1"))
    options = {"require_negated": False}
    before = content(spec, **options)
    assert content(spec, **options) == before
    shutil.copy(tmp_path / "a" / "00000.tar", tmp_path / "b" / "00000.tar")
    copied = content(spec.replace("/a/", "/b/"), **options)
    assert copied[1] == before[1] and copied[0] != before[0]
    after = content(written(tmp_path / "a", sample("0"), sample("1", txt="b photo 001")), **options)
    assert after[0] != before[0] and after[1] != before[1]
    assert content(spec, fields="caption=json.key", **options)[1] != after[1]


def test_tars_in_a_bucket(tmp_path, bucket):
    for i in range(2):
        samples = [sample(key, txt=f"photo {i} {key}") for key in ("0", "1")]
        written(tmp_path, *samples, name=f"{i}.tar")
        bucket.put("b", f"cc/{i}.tar", (tmp_path / f"{i}.tar").read_bytes())
    spec = "wds:gs://b/cc/{0..1}.tar"
    assert [p.caption for p in read(spec)] == ["photo 0 0", "photo 0 1", "photo 1 0", "photo 1 1"]
    version, digest = content_of(spec)
    before = len(bucket.requests)
    assert digest() and len(bucket.requests) == before  # by checksums alone
    bucket.flip_bit("gs://b/cc/1.tar")
    assert content_of(spec)[0] != version
