"""Files appear whole or not at all, and what a killed process left is taken over."""

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from negclip_jax.common import atomic_files
from negclip_jax.common.atomic_files import locked
from negclip_jax.common.errors import InputError


def names(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path):
    with atomic_files.whole_file(tmp_path / "x.npy") as unfinished:
        unfinished.write_bytes(b"half")
        assert unfinished.suffix == ".npy", "numpy would add it"
        assert not (tmp_path / "x.npy").exists()
        unfinished.write_bytes(b"whole")
    assert (tmp_path / "x.npy").read_bytes() == b"whole"
    assert names(tmp_path) == ["x.npy"]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Else a power cut could leave the name of a file whose bytes are lost."""
    synced = []

    def fsync(descriptor):
        synced.append(os.fstat(descriptor).st_size)
        assert not (tmp_path / "x").exists()

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_files.whole_file(tmp_path / "x") as unfinished:
        unfinished.write_bytes(b"whole")
    assert synced == [5] and (tmp_path / "x").exists()


def test_a_directory_that_is_not_there_is_not_made(tmp_path):
    """It may be on a disk that has vanished."""
    with (
        pytest.raises(FileNotFoundError),
        atomic_files.whole_file(tmp_path / "gone" / "x"),
    ):
        pass
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_former_file_and_nothing_else(tmp_path, error):
    (tmp_path / "x").write_text("former")
    with pytest.raises(error), atomic_files.whole_file(tmp_path / "x") as unfinished:
        unfinished.write_text("half")
        raise error
    assert names(tmp_path) == ["x"] and (tmp_path / "x").read_text() == "former"


def test_two_writers_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "x"
    with atomic_files.whole_file(path) as mine:
        mine.write_text("mine")
        with atomic_files.whole_file(path) as other:
            assert other != mine
            other.write_text("other")
        assert path.read_text() == "other" and mine.read_text() == "mine"
    assert names(tmp_path) == ["x"] and path.read_text() == "mine"


KILLED = """
import os, signal, sys
from pathlib import Path
from negclip_jax.common.atomic_files import whole_file
with whole_file(Path(sys.argv[1])) as one, whole_file(Path(sys.argv[1])) as two:
    one.write_text("half")
    two.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_taken_over(tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "x.npy"])
    assert killed.returncode == -signal.SIGKILL
    assert names(tmp_path) == [".x.0.partial.npy", ".x.1.partial.npy"]
    with atomic_files.whole_file(tmp_path / "x.npy") as unfinished:
        assert unfinished.name == ".x.0.partial.npy", "reused, so that the disk does not fill"
        unfinished.write_text("whole")
    assert names(tmp_path) == ["x.npy"] and (tmp_path / "x.npy").read_text() == "whole"


def test_a_lock_holds_for_the_file_that_is_there(tmp_path, monkeypatch):
    """Its owner may remove a file between the opening and the locking of another process."""
    path, flock = tmp_path / "x", fcntl.flock

    def too_late(descriptor, operation):
        monkeypatch.setattr(fcntl, "flock", flock)
        path.unlink()
        flock(descriptor, operation)

    path.touch()
    monkeypatch.setattr(fcntl, "flock", too_late)
    descriptor = atomic_files.lock(path)
    assert os.path.samestat(os.stat(path), os.fstat(descriptor))
    assert atomic_files.lock(path) is None
    os.close(descriptor)


HOLD = (
    "import sys; from pathlib import Path; from negclip_jax.common.atomic_files import locked\n"
    "with locked(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
)


def test_the_holder_is_named_and_a_killed_one_holds_nothing(tmp_path):
    run = tmp_path / "new" / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    with (
        pytest.raises(InputError, match=rf"run is in use by process {holder.pid} on .*; wait"),
        locked(run),
    ):
        pass
    holder.kill()
    holder.communicate()
    with locked(run):
        assert str(os.getpid()) in (run / "lock").read_text()
        (run / "lock").write_text("{")
        with pytest.raises(InputError, match="in use by another process"), locked(run):
            pass
    with locked(run):
        pass


def test_a_directory_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    said = r"cannot be written to \(Not a directory\); give another --out"
    with pytest.raises(InputError, match=said), locked(tmp_path / "file" / "run"):
        pass


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def no_locks(descriptor, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    path = tmp_path / "x"
    (tmp_path / ".x.0.partial").write_text("perhaps somebody writes it")
    with atomic_files.whole_file(path) as unfinished:
        unfinished.write_text("whole")
    assert names(tmp_path) == [".x.0.partial", "x"]
