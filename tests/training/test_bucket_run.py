"""A run whose every path lies in a bucket: the same commands and numbers as on a disk.

What runs is the code of the real clients (gcsfs, tensorstore, google-cloud-storage) against a
server on the loopback interface, which has no folders, renames or appends; see `fake_bucket`.
"""

import json
import logging
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_benchmark
from fake_bucket import bucket, served
from processes import train_and_be_killed
from tiny_benchmark import write_items
from tiny_runs import EVALUATORS, assert_equal, use_one_device

from evals import __main__ as evaluate
from evals import registry
from negclip_jax import CLIP
from negclip_jax.checkpoints import manifest
from negclip_jax.checkpoints.manager import Checkpoints
from negclip_jax.checkpoints.restore import restore_params
from negclip_jax.common import remote, storage
from negclip_jax.common.errors import InputError
from negclip_jax.embeddings import store
from negclip_jax.embeddings.store import EmbeddingStore
from negclip_jax.interop import export
from negclip_jax.interop.readers import read_any
from negclip_jax.training.loop import train
from negclip_jax.training.step import TrainState

__all__ = ["bucket", "served"]  # fixtures
RUN = "gs://tiny/run"


@pytest.fixture(scope="module")
def settings(served, finished_run, tiny_checkpoint, tiny_pairs) -> dict:
    """Those of `finished_run`, with every path in the bucket."""
    served.bucket.put_folder(tiny_checkpoint, "tiny", "base")
    served.bucket.put_folder(tiny_pairs, "tiny", "pairs")
    return finished_run.changes | {
        "model.checkpoint": "gs://tiny/base",
        "data.pairs": "gs://tiny/pairs/pairs.json",
        "data.images": "gs://tiny/pairs/images",
        "data.cache_dir": "gs://tiny/features",
        "checkpoint.every": "4 steps",
    }


@pytest.fixture(scope="module")
def run(served, settings, short_run, make_config, forked, tmp_path_factory):
    """The run of `finished_run` in the bucket: killed, then without storage, then finished."""
    bucket = served.bucket
    of_process = {"runtime.compilation_cache": "{workdir}/compilation_cache"}
    file = tmp_path_factory.mktemp("bucket_run") / "changes.json"
    train_and_be_killed(forked, short_run | settings | of_process, file, RUN, 3)
    with pytest.MonkeyPatch.context() as patch:
        use_one_device(patch)
        stopped = "run/checkpoints/15/"
        bucket.refuse = lambda method, name: 403 if stopped in name and method == "POST" else None
        with pytest.raises(InputError) as error:
            train(make_config(settings), RUN, EVALUATORS)
        bucket.refuse = lambda method, name: None
        state = train(make_config(settings), RUN, EVALUATORS)
    return types.SimpleNamespace(error=str(error.value), state=jax.device_get(state))


# Of a save that failed, the client's threads end after the loop that would hear of it.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_it_equals_the_run_on_a_disk(bucket, run, finished_run):
    assert "cannot finish saving step 15 to gs://tiny/run/checkpoints: " in run.error
    assert "the checkpoint of step 12 is intact" in run.error
    assert_equal(run.state, finished_run.state)
    metrics = bucket.content(f"{RUN}/metrics.jsonl")
    assert metrics == (finished_run.workdir / "metrics.jsonl").read_bytes()
    for step in ("best", "last"):
        assert_equal(restore_params(RUN, step), restore_params(str(finished_run.workdir), step))


@pytest.mark.slow
def test_all_that_a_run_writes_is_in_the_bucket(bucket, run):
    names = bucket.names(RUN)
    assert {"config.json", "environment.json", "timing.jsonl", "base/vocab.json"} <= set(names)
    for folder in ("tensorboard", "compilation_cache", "frozen", "checkpoints/20"):
        assert any(name.startswith(f"{folder}/") for name in names), folder
    log = bucket.content(f"{RUN}/train.log").decode()
    assert "continuing from step 12 in gs://tiny/run" in log
    # The process that was killed took the last half minute of its log along, or all of it.
    assert log.count("image features of 40 images come from gs://tiny/features/") in (2, 3)
    cache = {name.rpartition(".")[2] for name in bucket.names("gs://tiny/features")}
    assert cache == {"bin", "rows"}, "parts are cleared away"
    assert not [name for name in names if "partial" in name or "write_test" in name]


@pytest.mark.slow
def test_exports_are_those_of_a_disk(bucket, run, finished_run, tmp_path, capsys):
    out = tmp_path / "out"
    assert export.main([f"--workdir={finished_run.workdir}", f"--out={out}", "--step=last"]) == 0
    to_bucket = [f"--workdir={RUN}", "--out=gs://tiny/exported", "--step=last"]
    assert export.main(to_bucket) == 0
    assert "wrote gs://tiny/exported: 0." in capsys.readouterr().out
    local = {path.relative_to(out).as_posix() for path in out.rglob("*")}
    assert set(bucket.names("gs://tiny/exported")) == local
    for name in local - {"README.md"}:
        assert bucket.content(f"gs://tiny/exported/{name}") == (out / name).read_bytes()
    assert_equal(read_any("gs://tiny/exported")[1], read_any(out)[1])
    texts = ["a street with no cars"]
    ids = [CLIP.from_pretrained(place).tokenize(texts) for place in ("gs://tiny/exported", out)]
    assert np.array_equal(*ids)
    capsys.readouterr()
    assert export.main(to_bucket) == 1
    assert "gs://tiny/exported is not empty" in capsys.readouterr().err
    bucket.put("tiny", "exported/model-00001-of-00002.safetensors", b"of an earlier export")
    assert export.main([*to_bucket, "--overwrite"]) == 0
    assert set(bucket.names("gs://tiny/exported")) == local


@pytest.mark.slow
def test_an_export_that_breaks_off_does_not_look_like_a_model(bucket, run, capsys):
    command = [f"--workdir={RUN}", "--out=gs://tiny/broken"]
    bucket.refuse = lambda method, name: 403 if "model.safetensors" in name else None
    assert export.main(command) == 1
    assert "gs://tiny/broken was not written, or in part and without" in capsys.readouterr().err
    assert "UNFINISHED" in bucket.names("gs://tiny/broken")
    assert "config.json" not in bucket.names("gs://tiny/broken")
    bucket.refuse = lambda method, name: None
    assert export.main(command) == 0
    names = bucket.names("gs://tiny/broken")
    assert "config.json" in names and "UNFINISHED" not in names


@pytest.mark.slow
def test_evaluations_are_those_of_a_disk(
    bucket, run, finished_run, tiny_pairs, tmp_path, monkeypatch
):
    use_one_device(monkeypatch)
    monkeypatch.setattr("negclip_jax.runtime.console.set_up_logging", lambda: None)
    monkeypatch.setattr(registry, "BENCHMARKS", {"tiny": lambda: tiny_benchmark.BENCHMARK})
    (tmp_path / "data" / "photos").mkdir(parents=True)
    write_items(tmp_path / "data", images=12)
    for i in range(12):
        photo = (tiny_pairs / "images" / f"{i:03d}.png").read_bytes()
        (tmp_path / "data" / "photos" / f"{i}.png").write_bytes(photo)
    scores = []
    for workdir in (RUN, finished_run.workdir):
        out = tmp_path / f"out{len(scores)}"
        flags = [f"--data={tmp_path / 'data'}", f"--out={out}", f"--model=run={workdir}@last+ema"]
        assert evaluate.main(flags) == 0
        found = json.loads((out / "results.json").read_text())
        scores.append((found["benchmarks"], found["settings"]["models"]["run"]["fingerprint"]))
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_a_damaged_checkpoint_is_skipped_by_its_name(bucket, run, caplog):
    """Its objects are compared by the bucket's own checksums; nothing is downloaded for that."""
    kept = dict(bucket.objects)
    data = max(
        (n for n in bucket.names(f"{RUN}/checkpoints/20") if "params/" in n),
        key=lambda n: len(bucket.content(f"{RUN}/checkpoints/20/{n}")),
    )
    bucket.flip_bit(f"{RUN}/checkpoints/20/{data}")
    with pytest.raises(InputError, match=f"step 20 cannot be used: {RUN}/checkpoints/20/{data} is"):
        restore_params(RUN, "last")
    checkpoints = Checkpoints(storage.path(RUN), keep=1, best="val/loss")
    checkpoints.skip_damaged()
    assert checkpoints.latest_step < 20
    checkpoints.close()
    assert f"{RUN}/checkpoints/20/{data} is damaged: its checksum is another" in caplog.text
    assert not bucket.names(f"{RUN}/checkpoints/20")
    bucket.objects = kept


def test_damaged_features_are_computed_again_and_a_damaged_copy_is_fetched_again(
    bucket, monkeypatch, caplog
):
    monkeypatch.setattr(store, "PART", 8)
    place = storage.path("gs://tiny/cache/x.rows")
    keys = [store.key(bytes([i])) for i in range(21)]
    features = np.arange(63, dtype=np.float32).reshape(21, 3)
    killed = EmbeddingStore(place, 3)
    for i in range(0, 21, 4):
        killed.add(keys[i : i + 4], features[i : i + 4])
    assert len(EmbeddingStore(place, 3)) == 16, "what a kill loses is less than a part"
    opened = EmbeddingStore(place, 3)
    opened.add(keys[16:], features[16:])
    opened.finish()
    assert bucket.names("gs://tiny/cache") == ["x.rows"]
    for found in (opened, EmbeddingStore(place, 3, writes=False)):
        assert np.array_equal(found.mapped(keys), features)
    copy = remote.local_copy(place)
    copy.write_bytes(copy.read_bytes()[:-2] + b"xx")
    assert np.array_equal(EmbeddingStore(place, 3).rows(keys), features)
    assert not caplog.text.count("computed again")
    bucket.flip_bit("gs://tiny/cache/x.rows")
    damaged = EmbeddingStore(place, 3)
    assert "gs://tiny/cache/x.rows is damaged: 1 of its 21 embeddings have another" in caplog.text
    (lost,) = [i for i in range(21) if keys[i] not in damaged]
    damaged.add([keys[lost]], features[[lost]])
    damaged.finish()
    caplog.clear()
    assert np.array_equal(EmbeddingStore(place, 3).rows(keys), features) and not caplog.text


def test_a_slow_bucket_is_waited_for_with_a_word_and_not_by_the_training(
    bucket, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(storage, "_ANNOUNCE_SECONDS", 0.05)
    checkpoints = Checkpoints(storage.path("gs://tiny/slow"), keep=2, best="val/loss")
    bucket.delay = 0.1
    started = time.monotonic()
    params = {"w": jnp.zeros((50, 100))}
    checkpoints.save(1, TrainState.create(params, optax.adam(1e-3), ema=False), {})
    assert not [n for n in bucket.names("gs://tiny/slow") if n.endswith(manifest.NAME)]
    returned = time.monotonic() - started
    checkpoints.wait()
    assert [n for n in bucket.names("gs://tiny/slow") if n.endswith(manifest.NAME)]
    waiting = "still waiting for the checkpoint of step 1 to reach gs://tiny/slow/checkpoints"
    assert waiting in caplog.text and returned < time.monotonic() - started
    checkpoints.close()
