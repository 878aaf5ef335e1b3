"""Runs on a real small disk that fills up, turns read-only, vanishes or flips a bit."""

import contextlib
import shutil
import subprocess

import jax
import pytest
from tiny_runs import EVALUATORS, assert_equal, read_metrics, use_one_device

from negclip_jax.common.errors import InputError
from negclip_jax.embeddings.store import EmbeddingStore
from negclip_jax.interop import export
from negclip_jax.training.loop import train


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A file system of 8 MB; mounting one takes root."""
    path = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(path)]
    with contextlib.suppress(OSError):
        if subprocess.run(mount, capture_output=True).returncode == 0:
            yield path
            subprocess.run(["umount", "--lazy", str(path)], check=True)
            return
    pytest.skip("mounting a small file system is not permitted here")


@pytest.fixture
def attempt(disk, finished_run, make_config, monkeypatch):
    """Function that runs `finished_run`'s training on the disk and returns how it ended.

    What goes wrong does so at the first evaluation at or after the step that is given.
    """
    use_one_device(monkeypatch)
    config = make_config(finished_run.changes | {"log.tensorboard": False})

    def run(fault=lambda: None, step: int = 0):
        def build(context):
            due = iter([fault])

            def evaluate(params) -> dict:
                at = max(read_metrics(disk / "run"), default=0)
                if at >= step - 5:
                    next(due, lambda: None)()
                return {}

            return evaluate

        try:
            return train(config, str(disk / "run"), EVALUATORS | {"fault": build})
        except InputError as error:
            return str(error)

    run.config = config
    return run


def fill(disk) -> None:
    with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def mounted_again(disk, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


def test_every_fault_is_a_sentence_and_the_run_continues(attempt, disk, finished_run, monkeypatch):
    add = EmbeddingStore.add

    def full_cache(self, keys, rows):
        fill(disk)
        add(self, keys, rows)

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddingStore, "add", full_cache)
        ended = attempt()
    assert "No space left on device" in ended and "features/" in ended, ended
    assert "run the same command again" in ended
    (disk / "filler").unlink()
    assert not list((disk / "run").rglob("*.partial*"))

    ended = attempt(lambda: fill(disk), step=5)
    assert "No space left on device" in ended and str(disk / "run") in ended, ended
    assert "run the same command again to continue" in ended
    (disk / "filler").unlink()

    ended = attempt(lambda: mounted_again(disk, "ro"), step=10)
    assert "Read-only file system" in ended and str(disk / "run") in ended, ended
    ended = attempt()
    assert ended.startswith(f"cannot write to --workdir={disk / 'run'}: ")
    assert "Read-only file system" in ended
    mounted_again(disk, "rw")

    state = attempt()
    assert_equal(jax.device_get(state), finished_run.state)
    ours, theirs = (w / "metrics.jsonl" for w in (disk / "run", finished_run.workdir))
    assert ours.read_bytes() == theirs.read_bytes()


def test_an_export_on_a_full_disk(disk, finished_run, capsys):
    fill(disk)
    command = [f"--workdir={finished_run.workdir}", f"--out={disk / 'out'}"]
    assert export.main(command) == 1
    (disk / "filler").unlink()
    said = capsys.readouterr().err
    assert f"error: {disk / 'out'} was not written and is as it was: " in said
    assert "No space left" in said and not (disk / "out").exists()
    assert not [p for p in disk.iterdir() if "partial" in p.name]
    assert export.main(command) == 0


def test_a_workdir_that_vanishes(attempt, disk):
    shutil.rmtree(disk / "run", ignore_errors=True)
    ended = attempt(lambda: (disk / "run").rename(disk / "gone"), step=10)
    assert "has vanished" in ended and str(disk / "run") in ended, ended


def test_a_run_goes_on_from_what_flipped_bits_left(
    finished_run, make_config, tmp_path, monkeypatch, caplog
):
    """Its newest checkpoint and its features are damaged: both are named, neither is used."""
    use_one_device(monkeypatch)
    workdir = shutil.copytree(finished_run.workdir, tmp_path / "run")
    params = [p for p in (workdir / "checkpoints" / "20" / "params").rglob("*") if p.is_file()]
    (features,) = workdir.glob("features/*.rows")
    damaged = [max(params, key=lambda path: path.stat().st_size), features]
    for path in damaged:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    state = train(make_config(finished_run.changes), str(workdir), EVALUATORS)
    for path in damaged:
        assert f"{path} is damaged" in caplog.text
    assert_equal(jax.device_get(state), finished_run.state)
    ours, theirs = (w / "metrics.jsonl" for w in (workdir, finished_run.workdir))
    assert ours.read_bytes() == theirs.read_bytes()
    assert (
        features.read_bytes() == (finished_run.workdir / features.relative_to(workdir)).read_bytes()
    )
