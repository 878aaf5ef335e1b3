"""Copies of what lies in a bucket, and files that go there; see `fake_bucket`."""

import functools
import os
import time

import pytest
from fake_bucket import bucket, served

from negclip_jax.common import remote, storage
from negclip_jax.common.errors import InputError
from negclip_jax.data.pairs import read_pairs
from negclip_jax.runtime import workdir

__all__ = ["bucket", "served"]  # fixtures


def test_a_copy_is_made_once_and_follows_its_source(bucket, served, caplog):
    bucket.put("tiny", "copies/x/a.txt", b"one")
    bucket.put("tiny", "copies/x/deep/b.txt", b"two")
    first = remote.local_copy(storage.path("gs://tiny/copies/x"))
    assert first.name == "x" and served.cache in first.parents
    assert (first / "deep" / "b.txt").read_text() == "two"
    assert "copied gs://tiny/copies/x (0.0 MB) to " in caplog.text
    caplog.clear()
    assert remote.local_copy(storage.path("gs://tiny/copies/x")) == first
    assert "copied" not in caplog.text
    bucket.put("tiny", "copies/x/a.txt", b"ONE")
    second = remote.local_copy(storage.path("gs://tiny/copies/x"))
    assert second != first and (second / "a.txt").read_text() == "ONE"
    file = remote.local_copy(storage.path("gs://tiny/copies/x/a.txt"))
    assert file.name == "a.txt" and file.read_text() == "ONE"
    part = remote.local_copy(storage.path("gs://tiny/copies/x"), only=("deep/",))
    assert [p.name for p in part.iterdir()] == ["deep"]


def test_a_copy_that_breaks_off_leaves_nothing(bucket, served):
    bucket.put("tiny", "broken/a.txt", b"one")
    remote.cache_folder()
    before = sorted(served.cache.iterdir())
    bucket.refuse = lambda method, name: 403 if name.endswith("a.txt") else None
    with pytest.raises(OSError, match="Forbidden"):
        remote.local_copy(storage.path("gs://tiny/broken"))
    assert sorted(served.cache.iterdir()) == before


def test_what_killed_processes_left_is_cleared_away(bucket, served):
    folder = remote.cache_folder()
    for name, age in ((".partial-old", 2 * 86_400), (".partial-new", 60)):
        (folder / name).mkdir()
        (folder / name / "half").write_text("")
        moment = time.time() - age
        os.utime(folder / name, (moment, moment))
    remote.cache_folder()
    assert not (folder / ".partial-old").exists() and (folder / ".partial-new").exists()


def test_nothing_there_is_a_sentence(bucket):
    with pytest.raises(InputError, match="there is nothing at gs://tiny/nowhere"):
        remote.local_copy(storage.path("gs://tiny/nowhere"))


def test_a_name_that_leaves_the_folder_is_refused(bucket):
    bucket.put("tiny", "evil/../../../etc/passwd", b"x")
    with pytest.raises(InputError, match=r"holds an object named '\.\./\.\./.*': refused"):
        remote.local_copy(storage.path("gs://tiny/evil"))


def test_what_must_come_last_comes_last(bucket, tmp_path):
    for name in ("config.json", "a", "z/w"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    before = bucket.generation
    remote.upload(tmp_path, storage.path("gs://tiny/up"), last=("config.json",))
    assert bucket.names("gs://tiny/up") == ["a", "config.json", "z/w"]
    assert bucket.objects["tiny", "up/config.json"][1] == before + 3


def test_a_folder_that_is_uploaded_at_the_end(bucket, tmp_path):
    with remote.uploaded(storage.path("gs://tiny/new")) as folder:
        (folder / "x").write_text("x")
        assert not bucket.names("gs://tiny/new")
    assert bucket.names("gs://tiny/new") == ["x"]
    with remote.uploaded(storage.path(tmp_path)) as folder:
        assert folder == tmp_path


def test_large_files_go_in_parts(bucket, tmp_path, monkeypatch):
    """The client's second way of uploading, from 50 MB."""
    import gcsfs

    put = gcsfs.GCSFileSystem._put_file
    in_parts = functools.partialmethod(put, chunksize=2**18)
    monkeypatch.setattr(gcsfs.GCSFileSystem, "_put_file", in_parts)
    content = bytes(range(256)) * 4096
    (tmp_path / "large").write_bytes(content)
    remote.upload(tmp_path, storage.path("gs://tiny/parts"))
    assert bucket.content("gs://tiny/parts/large") == content


def test_a_file_of_lines_in_a_bucket_is_written_now_and_then(bucket, monkeypatch):
    lines = storage.LineFile(storage.path("gs://tiny/lines.txt"), ["a\n"])
    lines.append(["b\n"], durable=False)
    assert bucket.content("gs://tiny/lines.txt") == b"a\n"
    lines.append(["c\n"])
    assert bucket.content("gs://tiny/lines.txt") == b"a\nb\nc\n"
    monkeypatch.setattr(storage, "_UPLOAD_SECONDS", 0.0)
    lines.append(["d\n"], durable=False)
    assert bucket.content("gs://tiny/lines.txt") == b"a\nb\nc\nd\n"


def test_listings_are_not_remembered(bucket):
    """Another client or machine may write the next moment: tensorstore writes every checkpoint."""
    folder = storage.path("gs://tiny/seen")
    bucket.put("tiny", "seen/a", b"")
    assert [p.name for p in folder.iterdir()] == ["a"] and not (folder / "b").exists()
    bucket.put("tiny", "seen/b", b"")
    assert [p.name for p in folder.iterdir()] == ["a", "b"] and (folder / "b").exists()


def test_errors_about_a_copy_name_the_bucket(bucket):
    bucket.put("tiny", "pairs.json", b'{"images": ')
    with pytest.raises(InputError, match=r"^gs://tiny/pairs\.json is not valid JSON"):
        read_pairs("gs://tiny/pairs.json")


def test_a_bucket_that_cannot_be_written(bucket):
    bucket.refuse = lambda method, name: 403 if method == "POST" else None
    with pytest.raises(InputError, match=r"cannot write to --workdir=gs://tiny/run: .*Forbidden"):
        workdir.create("gs://tiny/run")


def test_whatever_a_bucket_says_is_a_sentence(bucket):
    bucket.put("tiny", "run/config.json", b"{}")
    bucket.refuse = lambda method, name: 403 if method == "POST" else None
    message = "cannot write to gs://tiny/run: OSError: Forbidden: .*checkpoints that were complete"
    with pytest.raises(InputError, match=message), workdir.disk_errors("gs://tiny/run"):
        (storage.path("gs://tiny/run") / "x").write_text("")
    bucket.objects.clear()
    with (
        pytest.raises(InputError, match="gs://tiny/run has vanished while the run wrote to it"),
        workdir.disk_errors("gs://tiny/run"),
    ):
        (storage.path("gs://tiny/run") / "x").read_text()
