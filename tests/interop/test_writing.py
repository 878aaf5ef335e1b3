"""Directories that are written whole or not at all."""

import errno
import os

import numpy as np
import pytest
from interop import tiny
from safetensors.numpy import load_file

from negclip_jax.interop import huggingface, writing
from negclip_jax.interop.files import CheckpointError


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.saved(tmp_path_factory.mktemp("base") / "base")


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_becomes_the_directory_only_at_the_end(tmp_path):
    out = tmp_path / "deep" / "out"
    with writing.staged_directory(out, overwrite=False) as stage:
        (stage / "file").touch()
        assert not out.exists()
    assert names(out) == ["file"] and names(out.parent) == ["out"]
    assert out.stat().st_mode & 0o777 == (tmp_path / "deep").stat().st_mode & 0o777


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_after_an_error(error, tmp_path):
    with pytest.raises(error), writing.staged_directory(tmp_path / "out", overwrite=False) as stage:
        (stage / "file").touch()
        raise error
    assert names(tmp_path) == []


def test_empty_directory_is_used_and_occupied_one_refused(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with writing.staged_directory(out, overwrite=False) as stage:
        (stage / "mine").touch()
    for overwrite, reason in ((False, r"not empty.*--overwrite"), (True, r"no config\.json")):
        with (
            pytest.raises(CheckpointError, match=reason),
            writing.staged_directory(out, overwrite=overwrite),
        ):
            pass
    assert names(out) == ["mine"]
    with (
        pytest.raises(CheckpointError, match="is a file"),
        writing.staged_directory(out / "mine", overwrite=True),
    ):
        pass


def test_overwriting_replaces_an_export_whole_or_keeps_it(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").touch()
    with (
        pytest.raises(RuntimeError),
        writing.staged_directory(out, overwrite=True),
    ):
        raise RuntimeError
    assert names(out) == ["config.json"]
    with writing.staged_directory(out, overwrite=True) as stage:
        (stage / "new").touch()
    assert names(out) == ["new"] and names(tmp_path) == ["out"]


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
    (tmp_path / "blob").write_text("content")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "config.json").symlink_to(tmp_path / "blob")
    assert writing.copy_non_weights(tmp_path / "snapshot", tmp_path / "out") == ["config.json"]
    copy = tmp_path / "out" / "config.json"
    assert copy.read_text() == "content" and not copy.is_symlink()


def test_copy_failure_is_a_sentence(tmp_path):
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "config.json").symlink_to(tmp_path / "gone")
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


def test_shards_are_filled_in_order():
    n_bytes = {"a": 4, "b": 4, "c": 9, "d": 1, "e": 7}
    assert writing._shards(n_bytes, 8) == [["a", "b"], ["c"], ["d", "e"]]
