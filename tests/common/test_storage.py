"""What differs between disks and buckets, and what is said of storage that fails."""

import errno
import logging
import time
from pathlib import Path

import pytest
from etils import epath

from negclip_jax.common import storage
from negclip_jax.common.errors import InputError


def test_local_paths_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert storage.path("runs/x") == epath.Path(tmp_path / "runs/x")
    assert storage.path("~/x") == epath.Path(tmp_path / "home/x")
    assert not storage.is_remote("runs/x") and storage.is_remote("gs://bucket/x")


def test_unknown_storage_is_a_user_error():
    for address in ("ftp://host/x", "s3://bucket/x"):
        with pytest.raises(InputError, match=f"{address}: a path is on a disk or in a bucket, gs:"):
            storage.path(address)


def test_a_client_that_is_not_installed_is_a_user_error(monkeypatch):
    storage._prepare_client.cache_clear()
    monkeypatch.setattr(storage.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"gs:// needs gcsfs, .*pip install -e '\.\[gcs\]'"):
        storage.path("gs://bucket/x")


def test_a_file_is_written_whole(tmp_path):
    storage.write_whole(epath.Path(tmp_path / "x"), b"one")
    storage.write_whole(epath.Path(tmp_path / "x"), b"two")
    assert (tmp_path / "x").read_bytes() == b"two" and len(list(tmp_path.iterdir())) == 1


def test_json_is_written_whole_and_whatever_it_holds(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    storage.write_json(path, {"b": "\xe9", "a": "\udc80"})
    assert path.read_bytes() == b'{\n "b": "\xc3\xa9",\n "a": "?"\n}\n'
    storage.write_json(path, {"b": 1, "a": "\xe9"}, sort_keys=True, indent=2, ensure_ascii=True)
    former = b'{\n  "a": "\\u00e9",\n  "b": 1\n}\n'
    assert path.read_bytes() == former

    def crash(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        storage.write_json(path, {"a": 2})
    assert path.read_bytes() == former and list(tmp_path.iterdir()) == [path]


def test_lines_are_added(tmp_path):
    file = storage.LineFile(epath.Path(tmp_path / "x"), ["a\n"])
    file.append([], durable=True)
    file.append(["b\n", "c\n"], durable=False)
    assert (tmp_path / "x").read_text() == "a\nb\nc\n"


def test_a_flipped_bit_changes_the_checksum(tmp_path):
    content = bytearray(range(256)) * 20_000  # more than one block
    (tmp_path / "x").write_bytes(content)
    before = storage.crc32(tmp_path / "x")
    content[-1] ^= 4
    (tmp_path / "x").write_bytes(content)
    assert len(before) == 8 and storage.crc32(tmp_path / "x") != before


def test_what_takes_long_is_said_and_what_does_not_is_not(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(storage, "_ANNOUNCE_SECONDS", 0.05)
    with storage.announced("a fast disk"):
        pass
    with storage.announced("a slow disk"):
        time.sleep(0.3)
    assert "still waiting for a slow disk (0 s)" in caplog.text and "fast" not in caplog.text


def test_the_cause_of_a_wrapped_error():
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "x")
        except OSError as error:
            raise RuntimeError("save failed") from error
    except RuntimeError as error:
        cause = storage.root_cause(error)
    assert cause == "OSError: [Errno 28] No space left on device: 'x'"
    assert storage.root_cause(ValueError()) == "ValueError: "
