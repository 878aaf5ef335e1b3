"""Directories that are written whole or not at all."""

import errno
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from interop import tiny
from safetensors.numpy import load_file
from tiny_runs import ROOT

from negclip_jax.common.errors import InputError
from negclip_jax.interop import huggingface, writing
from negclip_jax.interop.files import CheckpointError


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.saved(tmp_path_factory.mktemp("base") / "base")


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_becomes_the_directory_only_at_the_end(tmp_path):
    out = tmp_path / "deep" / "out"
    with writing.export_directory(out, overwrite=False) as stage:
        (stage / "file").touch()
        assert not out.exists()
    assert names(out) == ["file"] and names(out.parent) == ["out"]
    assert out.stat().st_mode & 0o777 == (tmp_path / "deep").stat().st_mode & 0o777


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_after_an_error(error, tmp_path):
    with pytest.raises(error), writing.export_directory(tmp_path / "out", overwrite=False) as stage:
        (stage / "file").touch()
        raise error
    assert names(tmp_path) == []


def test_empty_directory_is_used_and_occupied_one_refused(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with writing.export_directory(out, overwrite=False) as stage:
        (stage / "mine").touch()
    for overwrite, reason in ((False, r"not empty.*--overwrite"), (True, r"no config\.json")):
        with (
            pytest.raises(CheckpointError, match=reason),
            writing.export_directory(out, overwrite=overwrite),
        ):
            pass
    assert names(out) == ["mine"]
    with (
        pytest.raises(CheckpointError, match="is a file"),
        writing.export_directory(out / "mine", overwrite=True),
    ):
        pass


def test_overwriting_replaces_an_export_whole_or_keeps_it(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").touch()
    with (
        pytest.raises(RuntimeError),
        writing.export_directory(out, overwrite=True),
    ):
        raise RuntimeError
    assert names(out) == ["config.json"]
    with writing.export_directory(out, overwrite=True) as stage:
        (stage / "new").touch()
    assert names(out) == ["new"] and names(tmp_path) == ["out"]


def test_a_full_disk_within_the_block_names_the_destination(tmp_path):
    message = r"out was not written and is as it was: \[Errno 28\]"
    with (
        pytest.raises(CheckpointError, match=message),
        writing.export_directory(tmp_path / "out", overwrite=False),
    ):
        raise OSError(errno.ENOSPC, "full")
    assert names(tmp_path) == []


def test_two_processes_do_not_write_the_same_directory(tmp_path):
    out = tmp_path / "out"
    with writing.export_directory(out, overwrite=False) as stage:
        (stage / "mine").touch()
        with (
            pytest.raises(InputError, match=r"another process is writing .*out: wait"),
            writing.export_directory(out, overwrite=False),
        ):
            pass
    assert names(out) == ["mine"] and names(tmp_path) == ["out"]


KILLED_WHILE = """
import os, pathlib, signal, sys
from negclip_jax.common import atomic_files
from negclip_jax.interop import writing
out, when = pathlib.Path(sys.argv[1]), sys.argv[2]
rename = pathlib.Path.rename

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def rename_then_kill(path, target):
    rename(path, target)
    kill()

with writing.export_directory(out, overwrite=True) as stage:
    (stage / "config.json").write_text("new")
    if when == "writing":
        kill()
    if when == "between the renames":
        pathlib.Path.rename = rename_then_kill
    if when == "clearing up":
        atomic_files._undo = kill
"""


@pytest.mark.parametrize(
    "when",
    [
        "writing",
        *(pytest.param(w, marks=pytest.mark.slow) for w in ("between the renames", "clearing up")),
    ],
)
@pytest.mark.parametrize("again", [True, False])
def test_killed_while(when, again, tmp_path):
    """What is there is an export, the former or the new; the next one clears up."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("former")
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE, out, when], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert names(tmp_path) == [".out.partial"] + ["out"] * (when != "between the renames")
    if again:
        with writing.export_directory(out, overwrite=True) as stage:
            assert names(stage) == []
            (stage / "config.json").write_text("newest")
    else:
        with pytest.raises(CheckpointError), writing.export_directory(out, overwrite=False):
            pass
    now = "newest" if again else "new" if when == "clearing up" else "former"
    assert (out / "config.json").read_text() == now
    assert names(tmp_path) == ["out"], "nothing is left"


@pytest.mark.parametrize("out", ["base", "base/inside", "."])
def test_the_converted_checkpoint_is_never_touched(out, base, tmp_path):
    before = names(base)
    with pytest.raises(CheckpointError, match="must not contain each other"):
        huggingface.save(base.parent / out, *tiny.load(base), base=base, overwrite=True)
    assert names(base) == before and names(base.parent) == ["base"]


def test_full_disk_leaves_nothing_and_keeps_the_earlier_export(base, tmp_path, monkeypatch):
    config, params = tiny.load(base)
    out = huggingface.save(tmp_path / "out", config, params, base=base)
    before = (out / "model.safetensors").read_bytes()
    written = []

    def save_file(tensors, path, metadata):
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        path.touch()

    monkeypatch.setattr(writing, "save_file", save_file)
    for target in (out, tmp_path / "other"):
        written.clear()
        with pytest.raises(CheckpointError, match=r"was not written.*No space left on device"):
            huggingface.save(target, config, params, base=base, overwrite=True, shard_bytes=20_000)
    assert names(tmp_path) == ["out"]
    assert (out / "model.safetensors").read_bytes() == before


def test_copy_follows_links_as_a_hub_snapshot_has_them(tmp_path):
    snapshot, blobs = tmp_path / "models--a--b/snapshots/c0", tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "5e").write_text("content")
    (snapshot / "config.json").symlink_to("../../blobs/5e")
    assert writing.copy_non_weights(snapshot, tmp_path / "out") == ["config.json"]
    copy = tmp_path / "out" / "config.json"
    assert copy.read_text() == "content" and not copy.is_symlink()


def test_links_that_lead_out_of_a_checkpoint_are_not_copied(tmp_path):
    """Else a stranger's folder could carry private files into a published export."""
    (tmp_path / "id_rsa").write_text("secret")
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "README.md").symlink_to("../id_rsa")
    with pytest.raises(CheckpointError, match=r"README\.md is a link that leads out .*id_rsa"):
        writing.copy_non_weights(tmp_path / "from", tmp_path / "out")
    assert not (tmp_path / "out" / "README.md").exists()


def test_copy_failure_is_a_sentence(tmp_path):
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "config.json").symlink_to("gone")
    with pytest.raises(CheckpointError, match=r"cannot copy .*from to .*out"):
        writing.copy_non_weights(tmp_path / "from", tmp_path / "out")


def test_views_and_scalars_are_written_as_what_they_are(tmp_path):
    """safetensors writes the raw buffer of a transposed view; 0-d must not become [1]."""
    tensors = {"turned": np.arange(6.0).reshape(2, 3).T, "scalar": np.float32(2.5)}
    sizes = {name: np.size(t) for name, t in tensors.items()}
    files = writing.write_weights(
        tmp_path, sizes, dict.fromkeys(tensors, "float32"), tensors.__getitem__
    )
    assert files == ["model.safetensors"]
    read = load_file(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(read["turned"], tensors["turned"])
    assert read["scalar"].shape == () and read["scalar"] == 2.5


def test_shards_are_filled_in_order(tmp_path):
    sizes = {"a": 4, "b": 4, "c": 9, "d": 1, "e": 7}
    tensors = {name: np.zeros(size, np.float16) for name, size in sizes.items()}
    dtypes = dict.fromkeys(sizes, "float16")
    files = writing.write_weights(tmp_path, sizes, dtypes, tensors.__getitem__, shard_bytes=16)
    assert [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)] == sorted(files)
    held = sorted(sorted(load_file(tmp_path / file)) for file in files)
    assert held == [["a", "b"], ["c"], ["d", "e"]]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_parameters": 25, "total_size": 50}
    assert all(name in load_file(tmp_path / file) for name, file in index["weight_map"].items())


def test_weights_are_written_in_three_types(base, tmp_path):
    with pytest.raises(CheckpointError, match="dtype 'int8' is not one of float32, float16, bfl"):
        huggingface.save(tmp_path / "out", *tiny.load(base), dtype="int8")
    assert not (tmp_path / "out").exists()
