"""What is found in tars of all kinds, what is refused, and when an index is made again."""

import gzip
import io
import json
import logging
import os
import tarfile
import zlib

import numpy as np
import pytest
from tiny_tars import member, write_tar

from negclip_jax.common import remote
from negclip_jax.common.errors import InputError
from negclip_jax.data import shards, tar_index
from negclip_jax.data.tar_index import MAGIC, Member, TarError, build, hashed, head, open_index

FORMS = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT, "ustar": tarfile.USTAR_FORMAT}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def shard(path) -> shards.Shard:
    (found,) = shards.find(str(path), ".tar")
    return found


def listed(path) -> dict[str, bytes]:
    """Contents by name, read through the index."""
    content = path.read_bytes()
    found = open_index(shard(path)).listed()
    return {m.name: content[m.offset : m.offset + m.size] for m in found}


@pytest.mark.parametrize("form", FORMS)
def test_members_are_those_that_tarfile_finds(tmp_path, form):
    rng = np.random.default_rng(0)
    sizes = [0, 1, 511, 512, 513, 1024, 300_000, 7]
    names = [f"{'d' * (1 + 90 * (i % 2))}/{i:04d}.jpg" for i in range(len(sizes))]
    names[3] = "café/日本.jpg"
    if form != "ustar":
        names[5] = f"{'long' * 80}.jpg"
    members = [member(name, rng.bytes(size)) for name, size in zip(names, sizes, strict=True)]
    folder = member("a folder", type=tarfile.DIRTYPE)
    path = write_tar(tmp_path / "a.tar", [folder, *members], FORMS[form])
    with tarfile.open(path) as tar:
        expected = {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}
    assert list(listed(path).items()) == list(expected.items()) and len(expected) == 8


def test_sizes_of_more_than_8_gib_and_of_pax_records(tmp_path):
    """The file has holes: 9 GiB that take no room."""
    path, size = tmp_path / "large.tar", 9 * 2**30 + 5
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        large, small = tarfile.TarInfo("large.bin"), tarfile.TarInfo("small.txt")
        large.size, small.size = size, 3
        with open(path, "wb") as file:
            file.write(large.tobuf(form))
            file.seek(-(-size // 512) * 512, os.SEEK_CUR)
            file.write(small.tobuf(form) + b"abc".ljust(512, b"\0") + bytes(1024))
        found = list(open_index(shard(path)).listed())
        assert [(m.name, m.size) for m in found] == [("large.bin", size), ("small.txt", 3)]
        assert os.pread(os.open(path, os.O_RDONLY), 3, found[1].offset) == b"abc"


def test_names_are_found_and_others_are_not(tmp_path):
    names = [f"{i:05d}.{s}" for i in range(3000) for s in ("jpg", "txt")]
    path = write_tar(tmp_path / "a.tar", [member(name, name.encode()) for name in names])
    index = open_index(shard(path))
    assert index.find(names).tolist() == list(range(6000))
    assert index.find(["", "00000.jpgx", "0000.jpg", "\ud800", "00001.JPG"]).tolist() == [-1] * 5
    assert index.find([]).tolist() == []
    assert np.array_equal(index.are_photos(), np.arange(6000) % 2 == 0)
    assert head(shard(path))["photos"] == 3000
    assert len(set(hashed(names).tolist())) == 6000


def test_suffixes_of_photos_in_any_case(tmp_path):
    names = ["a.JPG", "b.jpeg", "c.webp", "jpg", "d.jpgx", "e.txt", ".png", "f.png.json"]
    path = write_tar(tmp_path / "a.tar", [member(name) for name in names])
    photos = open_index(shard(path)).are_photos()
    assert [name for name, yes in zip(names, photos, strict=True) if yes] == names[:3]


def test_what_could_lead_out_of_a_folder_is_left_out(tmp_path):
    kept = member("./x//kept.jpg", b"kept")
    refused = [
        member("../up.jpg", b"1"), member("/etc/absolute.jpg", b"2"), member("a/../../b.jpg", b"3"),
        member("a\\b.jpg", b"4"), member("C:/x.jpg", b"4"),
        member("link.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("hard.jpg", type=tarfile.LNKTYPE, linkname="kept.jpg"),
        member("null.jpg", type=tarfile.CHRTYPE), member("disk.jpg", type=tarfile.BLKTYPE),
        member("pipe.jpg", type=tarfile.FIFOTYPE),
    ]  # fmt: skip
    path = write_tar(tmp_path / "a.tar", [*refused, kept])
    assert listed(path) == {"x/kept.jpg": b"kept"}
    said = head(shard(path))
    assert said["left_out"] == len(refused)
    assert said["example"] == "'../up.jpg' climbs out of the image directory"
    link = write_tar(tmp_path / "b.tar", [*refused[5:6], kept])
    build(shard(link))
    assert head(shard(link))["example"] == "'link.jpg' is a link"


def test_sparse_files_are_left_out(tmp_path):
    old = tarfile.TarInfo("old.bin")
    old.type = tarfile.GNUTYPE_SPARSE
    pax = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "new.bin"}
    new = member("GNUSparseFile.0/new.bin", b"5\n", pax_headers=pax)
    path = write_tar(tmp_path / "a.tar", [new, member("b.jpg", b"b")])
    header = bytearray(old.tobuf(tarfile.GNU_FORMAT))
    header[482] = 1  # one more header follows
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(bytes(header) + bytes(512) + path.read_bytes())
    assert listed(path) == {"b.jpg": b"b"}
    assert head(shard(path))["left_out"] == 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda x: x[:700],
            r"is cut short: 'a\.jpg' at byte 0 needs 812 bytes more than",
        ),
        (lambda x: b"", "is empty: 0 bytes"),
        (lambda x: b"\xff\xd8" + x, "is not a tar: its first 512 bytes are no header"),
        (gzip.compress, r"is compressed with gzip, which allows no random access: unpack it once"),
        (lambda x: b"(\xb5/\xfd" + x, "is compressed with zstd"),
        (lambda x: x[:1536] + b"x" * 512 + x[2048:], "is damaged at byte 1,536, where the header"),
        (lambda x: x[:124] + b"77777777777\0" + x[136:], "is not a tar"),  # the sum is wrong
    ],
)
def test_tars_that_cannot_be_used(tmp_path, damage, message):
    whole = write_tar(tmp_path / "w.tar", [member("a.jpg", b"a" * 1000), member("b.jpg", b"b")])
    path = tmp_path / "a.tar"
    path.write_bytes(damage(whole.read_bytes()))
    with pytest.raises(TarError, match=f"^{path} {message}"):
        open_index(shard(path))
    assert not (tmp_path / "a.tar.index").exists()


def test_a_header_that_claims_more_than_the_tar_holds(tmp_path):
    info = tarfile.TarInfo("a.jpg")
    info.size = 2**62
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(TarError, match="is cut short"):
        open_index(shard(tmp_path / "a.tar"))
    long = tarfile.TarInfo("x")
    long.size, long.type = 2**40, tarfile.XHDTYPE
    (tmp_path / "a.tar").write_bytes(long.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(TarError, match="damaged or cut short at byte 0, where a long name stands"):
        open_index(shard(tmp_path / "a.tar"))


def test_one_name_twice(tmp_path):
    path = write_tar(tmp_path / "a.tar", [member(n, b"x") for n in ("a.jpg", "b.jpg", "./a.jpg")])
    with pytest.raises(TarError, match=r"holds 'a\.jpg' at byte 512 and 'a\.jpg' at byte 2,560: "):
        open_index(shard(path))


def test_a_tar_without_an_end_mark_and_two_joined_ones(tmp_path):
    path = write_tar(tmp_path / "a.tar", [member("a.jpg", b"a")])
    whole = path.read_bytes()
    path.write_bytes(whole[:1024])
    assert listed(path) == {"a.jpg": b"a"}
    assert "a.tar has no end mark: was it cut short?" in head(shard(path))["warning"]
    path.write_bytes(whole + whole)
    assert list(listed(path)) == ["a.jpg"]
    assert "as tars do that were joined with cat" in head(shard(path))["warning"]
    path.write_bytes(bytes(10_240))  # a shard in which no download succeeded
    assert listed(path) == {} and head(shard(path))["warning"] == ""


def test_the_index_lies_beside_the_tar_and_is_used(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", [member("a.jpg", b"a")])
    open_index(shard(path))
    assert (tmp_path / "a.tar.index").read_bytes().startswith(MAGIC)
    monkeypatch.setattr(tar_index, "build", None)
    assert list(open_index(shard(path)).listed()) == [Member("a.jpg", 512, 1)]


def test_an_index_that_cannot_lie_beside_the_tar_is_kept_in_the_cache(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", [member("a.jpg", b"a")])
    (tmp_path / "a.tar.index").mkdir()  # where root, too, cannot write a file
    open_index(shard(path))
    (kept,) = (remote.cache_folder() / "tars").iterdir()
    assert kept.name.startswith("a.tar-")
    monkeypatch.setattr(tar_index, "build", None)
    assert head(shard(path))["members"] == 1 and len(open_index(shard(path)).offsets) == 1


def test_a_replaced_tar_is_noticed(tmp_path):
    path = write_tar(tmp_path / "a.tar", [member("a.jpg", b"a")])
    open_index(shard(path))
    write_tar(path, [member("b.jpg", b"b"), member("c.jpg", b"c")])
    assert head(shard(path)) is None
    assert listed(path) == {"b.jpg": b"b", "c.jpg": b"c"}


def test_a_replaced_tar_of_the_same_size_and_time_is_noticed(tmp_path, caplog):
    path = write_tar(tmp_path / "a.tar", [member("a.jpg", b"a"), member("b.jpg", b"b")])
    open_index(shard(path))
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    write_tar(path, [member("a.jpg", b"a"), member("z.jpg", b"b")])
    os.utime(path, ns=times)
    assert list(listed(path)) == ["a.jpg", "z.jpg"]
    assert "is made again: it is of another tar than" in caplog.text


def _rewrite(content: bytes, change) -> bytes:
    """An index with other rows, whose checksum is right."""
    start = len(MAGIC) + 4
    start += int.from_bytes(content[start - 4 : start], "little")
    said = json.loads(content[len(MAGIC) + 4 : start])
    rows = np.frombuffer(content, "<u8", 5 * said["members"], start).reshape(5, -1).copy()
    names = bytearray(content[start + rows.nbytes :])
    change(rows, names)
    body = rows.tobytes() + bytes(names)
    said["crc"] = f"{zlib.crc32(body):08x}"
    text = json.dumps(said).encode()
    return MAGIC + len(text).to_bytes(4, "little") + text + body


HOSTILE = {
    "flipped": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "cut": lambda content: content[:-9],
    "garbage": lambda content: MAGIC + b"\xff\xff\xff\xff" + b"{" * 100,
    "head": lambda content: content.replace(b'"members": 2', b'"members": -'),
    "other": lambda content: b"not an index",
    "outside": lambda content: _rewrite(content, lambda r, n: r[3].fill(2**40)),
    "overflow": lambda content: _rewrite(content, lambda r, n: r[2].fill(2**64 - 1)),
    "members": lambda content: _rewrite(content, lambda r, n: r[1].fill(7)),
    "ends": lambda content: _rewrite(content, lambda r, n: r[4].fill(2**63)),
    "up": lambda content: _rewrite(content, lambda r, n: n.__setitem__(slice(5), b"../ab")),
    "absolute": lambda content: _rewrite(content, lambda r, n: n.__setitem__(slice(5, 6), b"/")),
    "not UTF-8": lambda content: _rewrite(content, lambda r, n: n.__setitem__(0, 0xFF)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_damaged_or_hostile_index_is_made_again(tmp_path, kind, caplog):
    path = write_tar(tmp_path / "a.tar", [member("a.jpg", b"a"), member("b.jpg", b"b")])
    place = build(shard(path))
    sound = place.read_bytes()
    place.write_bytes(HOSTILE[kind](sound))
    assert place.read_bytes() != sound
    with caplog.at_level(logging.WARNING):
        assert listed(path) == {"a.jpg": b"a", "b.jpg": b"b"}
    assert "a.tar.index is made again: " in caplog.text
    assert place.read_bytes() == sound


def test_a_pipe_in_the_place_of_an_index_is_not_waited_for(tmp_path):
    path = write_tar(tmp_path / "a.tar", [member("a.jpg", b"a")])
    os.mkfifo(tmp_path / "a.tar.index")
    assert listed(path) == {"a.jpg": b"a"}


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", [member("a.jpg", b"a")])
    (tmp_path / "a.tar.index").mkdir()
    remote.cache_folder().joinpath("tars").write_text("in the way")
    with pytest.raises(InputError, match=r"^the index of .*a\.tar cannot be written to "):
        open_index(shard(path))


def test_any_bytes_give_an_index_or_one_error(tmp_path):
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for i in range(4):
            info, content = member(f"{'x' * 120 * (i % 2)}{i}.jpg", bytes(600))
            tar.addfile(info, io.BytesIO(content))
    rng, path = np.random.default_rng(0), tmp_path / "a.tar"
    for _ in range(200):
        content = bytearray(whole.getvalue())
        for place in rng.integers(len(content), size=3):
            content[place] = rng.integers(256)
        path.write_bytes(content[: rng.integers(1, len(content))])
        try:
            for found in open_index(shard(path)).listed():
                assert found.offset + found.size <= path.stat().st_size
        except TarError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
