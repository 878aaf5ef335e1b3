"""Which files a pattern means, and reads from the middle of one, on a disk and in a bucket."""

import gc
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fake_bucket import bucket, served

from negclip_jax.common.errors import InputError
from negclip_jax.data import shards
from negclip_jax.data.shards import ShardError, ShardReader, Shards, find

__all__ = ["bucket", "served"]  # fixtures

NAMES = ["a-000.tar", "a-001.tar", "a-002.tar", "b-000.tar", "x/a-000.tar", "other.txt"]


@pytest.fixture
def folder(tmp_path):
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return str(tmp_path)


@pytest.fixture
def prefix(bucket, folder):
    for name in NAMES:
        bucket.put("tiny", f"set/{name}", name.encode())
    return "gs://tiny/set"


PATTERNS = [
    ("{}/a-{{000..002}}.tar", ["a-000.tar", "a-001.tar", "a-002.tar"]),
    ("{}/a-{{002..001}}.tar", ["a-002.tar", "a-001.tar"]),
    ("{}/{{b,a}}-00{{0..0}}.tar", ["b-000.tar", "a-000.tar"]),
    ("{}/{{a-{{000,002}},b-000}}.tar", ["a-000.tar", "b-000.tar", "a-002.tar"]),
    ("{}/*-000.tar", ["a-000.tar", "b-000.tar"]),
    ("{}/a-00[12].tar", ["a-001.tar", "a-002.tar"]),
    ("{}", ["a-000.tar", "a-001.tar", "a-002.tar", "b-000.tar"]),
    ("{}/b-000.tar::{}/a-000.tar::{}/b-*", ["b-000.tar", "a-000.tar"]),
    ("{}/{{x/,}}a-000.tar", ["x/a-000.tar", "a-000.tar"]),
]


@pytest.mark.parametrize(("pattern", "names"), PATTERNS)
@pytest.mark.parametrize("place", ["folder", "prefix"])
def test_the_files_of_a_pattern(request, place, pattern, names):
    root = request.getfixturevalue(place)
    found = find(pattern.format(root, root, root), ".tar")
    assert sorted(shard.name for shard in found) == sorted(names)
    if "*" not in pattern and "[" not in pattern and "{{a-" not in pattern:
        assert [shard.name for shard in found] == names
    for shard in found:
        assert ShardReader(shard).read(0, shard.size).decode() == shard.name
        assert shard.path == f"{root}/{shard.name}"


@pytest.mark.parametrize("place", ["folder", "prefix"])
@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "{}/a-{{000..004}}.tar",
            "2 of 5 parts of .* match no file: .*/a-003.tar, .*4",
        ),
        ("{}/none*.tar", r"match no file: there is no .*none\*\.tar; correct the pattern, or get"),
        ("{}/none/a.tar", "there is no .*/none/a.tar"),
        ("{}/y", "there is no .*/y"),
    ],
)
def test_patterns_that_match_nothing(request, place, pattern, message):
    with pytest.raises(InputError, match=message):
        find(pattern.format(request.getfixturevalue(place)), ".tar")


@pytest.mark.parametrize("most", [1_000, pytest.param(1_000_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("braces", ["{0..9999999}", "{0..999}{0..999}{0..999}"])
def test_patterns_that_name_far_too_many(folder, monkeypatch, most, braces):
    assert shards._MOST_FILES == 10**6
    monkeypatch.setattr(shards, "_MOST_FILES", most)
    with pytest.raises(InputError, match=f"names more than {most:,} files"):
        find(f"{folder}/{braces}.tar", ".tar")


@pytest.mark.parametrize("pattern", ["", "::", " "])
def test_an_empty_pattern(pattern):
    with pytest.raises(InputError, match="the pattern is empty"):
        find(pattern, ".tar")


def test_addresses_that_are_not_read(folder):
    for address in ("s3://bucket/a.tar", "https://host/a.tar", "pipe:aws s3 cp s3://b/a.tar -"):
        with pytest.raises(InputError, match="a path is on a disk or in a bucket"):
            find(address, ".tar")
    with pytest.raises(InputError, match="match no file"):
        find("pipe:cat a.tar", ".tar")


def test_pipes_devices_and_links(folder):
    os.mkfifo(f"{folder}/c-0.tar")
    os.symlink("/dev/zero", f"{folder}/d-0.tar")
    os.symlink("nowhere", f"{folder}/e-0.tar")
    os.symlink("a-000.tar", f"{folder}/f-0.tar")
    for name in ("c", "d"):
        with pytest.raises(InputError, match=f"{name}-0.tar is a pipe or a device, not a file"):
            find(f"{folder}/{name}-*.tar", ".tar")
    with pytest.raises(InputError, match=r"e-0\.tar cannot be read: No such file"):
        find(f"{folder}/e-0.tar", ".tar")
    assert find(f"{folder}/f-*", ".tar")[0].size == len("a-000.tar")


def test_a_file_with_brackets_in_its_name(tmp_path):
    (tmp_path / "a[1].tar").write_bytes(b"x")
    assert [s.name for s in find(str(tmp_path / "a[1].tar"), ".tar")] == ["a[1].tar"]


def test_names_are_split_at_their_shard(folder):
    found = Shards(f"{folder}/{{x/,}}a-000.tar", ".tar")
    assert found.split("x/a-000.tar/b/c.jpg") == (0, "b/c.jpg")
    assert found.split("a-000.tar/c.jpg") == (1, "c.jpg")
    for other in ("a-000.tar", "c.jpg", "a-001.tar/c.jpg", ""):
        assert found.split(other) is None
    again = pickle.loads(pickle.dumps(found))
    assert again.found == found.found and again.read(1, 2, 3) == b"000"


def test_a_file_that_changes_or_goes_in_the_course_of_a_run(folder):
    found = Shards(f"{folder}/a-*.tar", ".tar")
    assert found.read(0, 0, 5) == b"a-000"
    os.unlink(f"{folder}/a-001.tar")
    with open(f"{folder}/a-002.tar", "ab") as file:
        file.write(b"more")
    with pytest.raises(ShardError, match=r"a-001\.tar cannot be read: No such file"):
        found.read(1, 0, 5)
    with pytest.raises(ShardError, match=r"a-002\.tar was changed in the course of the run"):
        found.read(2, 0, 5)
    os.truncate(f"{folder}/a-000.tar", 4)  # while it is open
    with pytest.raises(ShardError, match=r"a-000\.tar gave 2 of 5 bytes at 2: it was cut short"):
        found.read(0, 2, 5)


def test_few_files_stay_open(folder, monkeypatch):
    def opened() -> int:
        gc.collect()
        targets = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
        return sum(target.startswith(folder) for target in targets)

    monkeypatch.setattr(shards, "_OPEN", 2)
    found = Shards(f"{folder}/*.tar", ".tar")
    for i in (0, 1, 2, 3, 0, 1, 2, 3):
        found.read(i, 0, 1)
    assert opened() == 2
    del found
    assert opened() == 0


@pytest.fixture
def large(bucket):
    content = np.random.default_rng(0).bytes(30 * 2**20)
    bucket.put("tiny", "large/a.tar", content)
    bucket.requests.clear()
    return content, find("gs://tiny/large/a.tar", ".tar")[0]


def test_a_bucket_is_read_in_large_parts_where_reads_follow_each_other(large, bucket):
    content, shard = large
    reader = ShardReader(shard)
    bucket.requests.clear()
    for at in range(0, len(content) - 20_000, 20_000):
        assert reader.read(at + 512, 15_000) == content[at + 512 : at + 15_512]
    assert len(bucket.requests) < 15  # of 1,572 reads


def test_threads_that_go_through_a_shard_together_read_it_once(large, bucket):
    content, shard = large
    reader, places = ShardReader(shard), range(0, len(content) - 20_000, 20_000)
    bucket.requests.clear()

    def read(at: int) -> bytes:
        time.sleep(0.002)  # to decode an image
        return reader.read(at, 20_000)

    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(read, places))
    assert found == [content[at : at + 20_000] for at in places]
    assert len(bucket.requests) < 100  # of 1,572 reads


def test_a_bucket_is_read_exactly_where_reads_are_scattered(large, bucket, monkeypatch):
    content, shard = large
    reader = ShardReader(shard)
    sizes = []
    read = reader._object
    monkeypatch.setattr(
        reader, "_object", lambda start, stop: sizes.append(stop - start) or read(start, stop)
    )
    for at in np.random.default_rng(1).integers(2**21, len(content) - 15_000, 40).tolist():
        assert reader.read(at, 15_000) == content[at : at + 15_000]
    assert np.median(sizes) == 15_000 and sum(sizes) < 40 * 60_000


def test_memory_of_what_was_read_ahead_is_bounded(bucket):
    for i in range(8):
        bucket.put("tiny", f"many/{i}.tar", bytes(2**20))
    found = Shards("gs://tiny/many/*.tar", ".tar")
    for i in range(8):
        for at in range(0, 2**20, 2**16):
            found.read(i, at, 2**16)
    assert sum(bool(found.reader(i)._blocks) for i in range(8)) <= 4


def test_a_bucket_that_fails_half_way(large, bucket):
    _, shard = large
    reader = ShardReader(shard)
    assert len(reader.read(2**22, 100)) == 100
    bucket.refuse = lambda method, name: 403 if method == "GET" else None
    with pytest.raises(ShardError, match=r"^gs://tiny/large/a\.tar cannot be read \(OSError"):
        reader.read(2**24, 100)
    bucket.refuse = lambda method, name: None
    bucket.put("tiny", "large/a.tar", b"shorter")
    with pytest.raises(ShardError, match=r"^gs://tiny/large/a\.tar "):
        reader.read(2**24, 100)
    del bucket.objects["tiny", "large/a.tar"]
    with pytest.raises(ShardError, match=r"^gs://tiny/large/a\.tar cannot be read"):
        reader.read(2**24, 100)
