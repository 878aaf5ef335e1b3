"""Sets of tars: samples by key, members by name, and problems of one shard among many."""

import errno
import json
import logging
import pickle
import tarfile
import types

import numpy as np
import pytest
import webdataset
from fake_bucket import bucket, served
from tiny_tars import member, write_tar

from negclip_jax.common.errors import InputError
from negclip_jax.data import tar_index
from negclip_jax.data.shard_images import TarImages
from negclip_jax.data.tar_index import TarError, TarShards

__all__ = ["bucket", "served"]  # fixtures


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two tars by webdataset's own writer, and what it was given."""
    folder, given = tmp_path_factory.mktemp("written"), {}
    for shard in range(2):
        with webdataset.TarWriter(str(folder / f"cc-{shard:04d}.tar")) as writer:
            for i in range(20):
                key = f"{shard:05d}{i:04d}"
                sample = {"jpg": key.encode() * 99, "txt": f"ein Käfer {i}", "json": {"key": key}}
                writer.write({"__key__": key, **sample})
                content = sample["jpg"], sample["txt"].encode(), json.dumps(sample["json"]).encode()
                given[shard, key] = dict(zip(sample, content, strict=True))
    return str(folder / "cc-{0000..0001}.tar"), given


def located(tars: TarShards, name: str) -> tuple[int, int, int]:
    """Shard, offset and size of a member `SHARD/MEMBER`."""
    shard, rest = tars.split(name)
    index, row = tars.index(shard), tars.index(shard).find_one(rest)
    assert row >= 0
    return shard, int(index.offsets[row]), int(index.sizes[row])


def test_samples_of_the_real_writer_and_of_the_real_reader(written):
    pattern, given = written
    tars = TarShards(pattern)
    found = {
        (shard, key): {s: tars.read(shard, m.offset, m.size) for s, m in members.items()}
        for shard in range(2)
        for key, members in tars.samples(shard)
    }
    assert list(found) == list(given)
    for key, sample in given.items():
        assert json.loads(found[key].pop("json")) == json.loads(sample["json"])
        assert found[key] == {"jpg": sample["jpg"], "txt": sample["txt"]}
    theirs = webdataset.WebDataset(pattern, shardshuffle=False)
    assert [sample["__key__"] for sample in theirs] == [key for _, key in found]


def test_members_are_located_by_their_names(written):
    pattern, given = written
    tars = TarShards(pattern)
    names = [f"cc-{shard:04d}.tar/{key}.jpg" for shard, key in given]
    for (shard, key), name in zip(given, names, strict=True):
        number, offset, size = located(tars, name)
        assert number == shard and tars.read(number, offset, size) == given[shard, key]["jpg"]
    images = TarImages(pattern)
    places = images.find(names)
    assert [shard for shard, _ in places.tolist()] == [shard for shard, _ in given]
    others = ["cc-0000.tar/none.jpg", "cc-0002.tar/000000000.jpg", "000000000.jpg?", "", names[3]]
    assert np.array_equal(images.find(others), [[-1] * 2] * 4 + [places[3].tolist()])
    assert images.find([]).shape == (0, 2)


def test_a_copy_for_another_process(written, monkeypatch):
    pattern, given = written
    packed = pickle.dumps(TarShards(pattern))
    monkeypatch.setattr(tar_index, "build", None)
    name = "cc-0001.tar/000010007.txt"
    shard, offset, size = located(pickle.loads(packed), name)
    assert pickle.loads(packed).read(shard, offset, size) == given[1, "000010007"]["txt"]
    assert len(packed) < 800


def test_keys_as_webdataset_has_them(tmp_path):
    names = ["d.1/a.b.jpg", "x.jpg", "d.1/a.txt", "x.TXT", "noext", "._x.jpg", "__m__/x.jpg",
             "d/__m__.json", "y.seg.png"]  # fmt: skip
    write_tar(tmp_path / "a.tar", [member(name, name.encode()) for name in names])
    samples = dict(TarShards(str(tmp_path / "a.tar")).samples(0))
    found = {key: {s: m.name for s, m in sample.items()} for key, sample in samples.items()}
    assert found == {
        "d.1/a": {"b.jpg": "d.1/a.b.jpg", "txt": "d.1/a.txt"},
        "x": {"jpg": "x.jpg", "txt": "x.TXT"},
        "__m__/x": {"jpg": "__m__/x.jpg"},
        "y": {"seg.png": "y.seg.png"},
    }


def test_two_members_of_one_key(tmp_path):
    path = write_tar(tmp_path / "a.tar", [member("x.jpg", b"1"), member("x.JPG", b"2")])
    with pytest.raises(TarError, match=r"a\.tar holds 'x\.jpg' and 'x\.JPG', which are of one key"):
        list(TarShards(str(path)).samples(0))


def test_problems_of_some_shards_come_in_one_line(tmp_path, caplog):
    for i in range(6):
        path = write_tar(tmp_path / f"{i}.tar", [member("x.jpg", bytes(2000))])
        if i > 1:
            path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TarError) as caught:
        TarShards(str(tmp_path / "*.tar"))
    message = str(caught.value)
    assert message.count("is cut short: 'x.jpg' at byte 0") == 3 and "and 1 more" in message
    assert "\n" not in message
    with pytest.raises(InputError, match="the pattern is empty"):
        TarShards("")


def test_what_is_left_out_and_looks_cut_is_said(tmp_path, caplog):
    link = member("l.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")
    write_tar(tmp_path / "0.tar", [member("x.jpg", b"1"), link, member("../y.jpg", b"2")])
    path = write_tar(tmp_path / "1.tar", [member("x.jpg", b"1"), link])
    path.write_bytes(path.read_bytes()[:1536])
    with caplog.at_level(logging.WARNING):
        TarShards(str(tmp_path / "?.tar"))
    assert f"3 members of 2 tars are not read, e.g. of {tmp_path}/0.tar: 'l.jpg' is a link" in (
        caplog.text
    )
    assert f"{path} has no end mark: was it cut short?" in caplog.text


def test_tars_in_a_bucket(written, bucket, served, monkeypatch):
    pattern, given = written
    for i in range(2):
        with open(pattern.replace("{0000..0001}", f"{i:04d}"), "rb") as file:
            bucket.put("tiny", f"cc/cc-{i:04d}.tar", file.read())
    address = "gs://tiny/cc/cc-{0000..0001}.tar"
    tars = TarShards(address)
    for shard, key in given:
        _, offset, size = located(tars, f"cc-{shard:04d}.tar/{key}.txt")
        assert tars.read(shard, offset, size) == given[shard, key]["txt"]
    assert sorted(p.name[:12] for p in (served.cache / "tars").iterdir()) == [
        "cc-0000.tar-",
        "cc-0001.tar-",
    ]
    bucket.requests.clear()
    packed = pickle.dumps(TarShards(address))
    assert len(bucket.requests) < 4  # the folder is listed; no tar is read again
    assert located(pickle.loads(packed), "cc-0001.tar/000010000.txt")[0] == 1
    bucket.flip_bit("gs://tiny/cc/cc-0001.tar")
    with monkeypatch.context() as patch:
        built = []
        build = tar_index.build
        patch.setattr(tar_index, "build", lambda shard: built.append(shard.name) or build(shard))
        TarShards(address)
        assert built == ["cc-0001.tar"]


@pytest.mark.parametrize("has_room", [True, False])
def test_a_tar_in_a_bucket_is_downloaded_once(written, bucket, served, monkeypatch, has_room):
    """Where there is room on the disk; a copy that was removed, or cut, is not missed."""
    free = {True: 10**12, False: 10**11}[has_room]
    usage = types.SimpleNamespace(total=10**12, free=free)
    monkeypatch.setattr("negclip_jax.common.remote.shutil.disk_usage", lambda _: usage)
    pattern, given = written
    name, address = f"once-{has_room}/cc-0000.tar", f"gs://tiny/once-{has_room}/cc-0000.tar"
    with open(pattern.replace("{0000..0001}", "0000"), "rb") as file:
        bucket.put("tiny", name, file.read())
    key, members = next((key, given[shard, key]) for shard, key in given if shard == 0)
    bucket.requests.clear()

    def gets() -> int:
        return sum(request == ("GET", name) for request in bucket.requests)

    def text(tars: TarShards) -> bytes:
        _, offset, size = located(tars, f"cc-0000.tar/{key}.txt")
        return tars.read(0, offset, size)

    for _ in range(2):
        assert text(TarShards(address)) == members["txt"]
    downloads = gets()
    copies = [path for path in served.cache.rglob("cc-0000.tar") if path.is_file()]
    assert (len(copies) == 1) == has_room
    if not has_room:
        return
    assert text(TarShards(address)) == members["txt"] and gets() == downloads
    copies[0].write_bytes(b"cut")
    assert text(TarShards(address)) == members["txt"] and gets() > downloads
    copies[0].unlink()
    assert text(TarShards(address)) == members["txt"]


@pytest.mark.parametrize("broken", ["disk", "bucket"])
def test_a_copy_that_cannot_be_made(written, bucket, served, monkeypatch, broken):
    """A full disk is no reason not to read the tar in place; a bucket that fails is one line."""
    pattern, given = written
    with open(pattern.replace("{0000..0001}", "0000"), "rb") as file:
        bucket.put("tiny", f"broken-{broken}/cc-0000.tar", file.read())
    address = f"gs://tiny/broken-{broken}/cc-0000.tar"
    if broken == "disk":

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("negclip_jax.common.remote.local_copy", full)
        key = next(key for shard, key in given if shard == 0)
        assert min(located(TarShards(address), f"cc-0000.tar/{key}.jpg")) >= 0
        return
    media = [0]

    def refuse(method: str, name: str) -> int | None:
        media[0] += method == "GET" and name.endswith(".tar")
        return 403 if media[0] > 0 and name.endswith(".tar") and method == "GET" else None

    bucket.refuse = refuse
    with pytest.raises(TarError, match=rf"^{address} cannot be read") as caught:
        TarShards(address)
    assert "\n" not in str(caught.value)
    bucket.refuse = lambda method, name: None
    assert len(TarShards(address).heads) == 1
