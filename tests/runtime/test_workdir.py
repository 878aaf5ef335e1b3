"""What a run writes down about itself, and what it says of a directory it cannot write to."""

import errno
import json
import os
import sys

import jax
import pytest
from etils import epath

from negclip_jax.common.errors import InputError
from negclip_jax.runtime import workdir


def test_a_directory_is_made(tmp_path):
    path = workdir.create(str(tmp_path / "a" / "b"))
    assert path.is_dir() and list(path.iterdir()) == []


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        InputError, match=r"cannot write to --workdir=.*file/run: .*Not a directory"
    ):
        workdir.create(str(tmp_path / "file" / "run"))


def test_a_directory_that_is_read_only(tmp_path, monkeypatch):
    def refuse(self, text):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(type(epath.Path(tmp_path)), "write_text", refuse)
    with pytest.raises(InputError, match=r"cannot write to --workdir=.*Read-only file system"):
        workdir.create(str(tmp_path))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_the_disk_gets_a_sentence(tmp_path, code):
    message = f"cannot write to {tmp_path}: .*checkpoints that were complete stay usable"
    with pytest.raises(InputError, match=message), workdir.disk_errors(str(tmp_path)):
        raise OSError(code, "what the system says")
    with (
        pytest.raises(InputError, match=r"cannot write to /shared/f\.npy: .*Mend the disk"),
        workdir.disk_errors(str(tmp_path)),
    ):
        raise OSError(code, "what the system says", "/shared/f.npy")


def test_other_errors_are_not_the_disk(tmp_path):
    with pytest.raises(FileNotFoundError), workdir.disk_errors(str(tmp_path)):
        raise FileNotFoundError(errno.ENOENT, "no such file")


def test_a_directory_that_has_vanished_is_named(tmp_path):
    path = str(tmp_path / "run")
    message = f"{path} has vanished while the run wrote to it .*: nothing could be saved since"
    with pytest.raises(InputError, match=message), workdir.disk_errors(path):
        (tmp_path / "run" / "metrics.jsonl").write_text("")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)  # by a save that was under way
    with pytest.raises(InputError, match=message), workdir.disk_errors(path):
        (tmp_path / "run" / "metrics.jsonl").read_text()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"metrics\.jsonl: .*No such"), workdir.disk_errors(path):
        (tmp_path / "run" / "metrics.jsonl").read_text()


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    message = rf"cannot read or write {tmp_path}/metrics\.jsonl: IsADirectoryError.* stay usable"
    with pytest.raises(InputError, match=message), workdir.disk_errors(str(tmp_path)):
        (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize("content", [None, "{", "[1]", "\xff"])
def test_a_run_that_does_not_say_how_it_was_started(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content, "latin-1")
    with pytest.raises(InputError, match=r"config\.json, which says how .* cannot be read .* copy"):
        workdir.read_config(epath.Path(tmp_path))


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(InputError, match=r"config\.json, which .* it is a pipe or a device"):
        workdir.read_config(epath.Path(tmp_path))


def test_configuration_and_environment_are_recorded(tmp_path):
    workdir.record(epath.Path(tmp_path), {"optim": {"lr": 1e-6}})
    assert json.loads((tmp_path / "config.json").read_text()) == {"optim": {"lr": 1e-6}}
    found = json.loads((tmp_path / "environment.json").read_text())
    assert found["command"] == sys.argv
    assert found["packages"]["jax"] == jax.__version__
    assert {"flax", "optax", "orbax-checkpoint", "grain", "negclip-jax"} <= set(found["packages"])
    assert found["python"].count(".") == 2
    assert len(found["devices"]) == 8 and found["processes"] == 1
    assert found["git_revision"] == workdir.git_revision()
    assert not list(tmp_path.glob("*.partial*"))


def test_differences_of_configurations():
    old = {"optim": {"lr": 1e-6, "freeze": ["a"]}, "seed": 0, "gone": 1}
    new = {"optim": {"lr": 1e-5, "freeze": ["a"]}, "seed": 0, "added": None}
    assert workdir.differences(old, new) == {"optim.lr": (1e-6, 1e-5), "gone": (1, None)}
