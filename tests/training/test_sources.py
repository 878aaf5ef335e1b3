"""Runs on several sources: logged apart, validated apart, killed, and by several processes."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from processes import train_and_be_killed
from tiny_runs import read_metrics
from tiny_tars import write_photos

from negclip_jax.common.errors import InputError
from negclip_jax.training.loop import train
from negclip_jax.training.setup import prepare

CHANGES = {
    "data.pairs": None,
    "data.images": None,
    "data.foils": 1,
    "train.total": "6 steps",
    "eval.every": "2 steps",
    "eval.batch_size": 8,
    "checkpoint.every": "2 steps",
    "optim.eps": 1e-3,  # large, so that updates are smooth in the gradient
    "data.exact_resize": True,
    # Every process compiles: no gradient through the blocks is less to compile.
    "optim.freeze": ("vision/.*", "visual_projection", "text/(blocks|ln_final)/.*"),
    "runtime.timeout": 60.0,
}


@pytest.fixture(scope="module")
def sources(tiny_pairs, tmp_path_factory) -> str:
    """Negated captions of a folder, and plain ones of a tar with other photos."""
    folder = tmp_path_factory.mktemp("sources")
    names = sorted(os.listdir(tiny_pairs / "images"))
    content = json.loads((tiny_pairs / "pairs.json").read_text())
    content["annotations"] = content["annotations"][:50]
    (folder / "half.json").write_text(json.dumps(content))
    write_photos(folder / "t.tar", tiny_pairs / "images", names[25:])
    return (
        f"negated: pairs={folder}/half.json images={tiny_pairs}/images weight=0.7;"
        f"plain: pairs=wds:{folder}/t.tar caption_mode=original weight=0.3"
    )


@pytest.fixture(scope="module")
def by_one(make_config, sources, tmp_path_factory) -> Path:
    """The workdir of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    train(make_config(CHANGES | {"data.sources": sources}), str(workdir))
    return workdir


def test_losses_and_shares_are_logged_apart(by_one):
    metrics = read_metrics(by_one)
    steps = [metrics[step] for step in range(1, 7)]
    shares = [[numbers[f"share/{name}"] for name in ("negated", "plain")] for numbers in steps]
    np.testing.assert_allclose(np.sum(shares, axis=1), 1)
    counts = np.cumsum(shares, axis=0)[:, 0] * 16
    assert (np.abs(counts - 0.7 * 16 * np.arange(1, 7)) < 1).all()
    for numbers, (of_negated, of_plain) in zip(steps, shares, strict=True):
        mean = of_negated * numbers["loss/negated"] + of_plain * numbers["loss/plain"]
        assert numbers["loss"] == pytest.approx(mean, rel=1e-5)
    held = metrics[6]
    means = [held["val/negated/loss"], held["val/plain/loss"]]
    assert held["val/loss"] == pytest.approx(np.dot([0.7, 0.3], means), rel=1e-6)
    assert {"val/negated/foil_accuracy", "val/plain/text_to_image_recall_at_1"} <= held.keys()
    log = (by_one / "train.log").read_text()
    assert re.search(r"step 6/6  loss \S+  loss/negated \S+  loss/plain \S+  ", log)
    assert "source plain: 30.00% of the examples" in log
    assert re.search(r"source negated: 50 pairs of 25 images: 40 to train on, 10 to validate", log)


@pytest.mark.slow
def test_killed_and_started_again(make_config, sources, short_run, forked, tmp_path, one_device):
    changes = CHANGES | {"data.sources": sources, "data.cache_features": False}
    train(make_config(changes), str(tmp_path / "whole"))
    workdir, file = tmp_path / "run", tmp_path / "changes.json"
    train_and_be_killed(forked, short_run | changes, file, workdir, 3)
    train(make_config(changes), str(tmp_path / "run"))
    whole, again = (read_metrics(tmp_path / name) for name in ("whole", "run"))
    for numbers in again.values():
        numbers.pop("custom/scale", None)  # of an evaluator of the process that was killed
    assert again == whole
    other = CHANGES | {"data.sources": sources.replace("0.3", "0.4"), "data.cache_features": False}
    with pytest.raises(InputError, match="data_fingerprint"):
        train(make_config(other), str(tmp_path / "run"))


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.long)])
def test_several_processes_equal_one(processes, sources, short_run, by_one, forked, tmp_path):
    changes = CHANGES | {"data.sources": sources, "data.cache_features": processes == 2}
    ends = forked.run(
        short_run | changes,
        tmp_path / "run",
        processes=processes,
        devices=4 // processes,
        seconds=180,
    )
    assert [end.status for end in ends] == [0] * processes, "\n\n".join(e.output for e in ends)
    expected = read_metrics(by_one)
    found = read_metrics(tmp_path / "run")
    assert list(found) == list(expected)
    for step, numbers in found.items():
        for name in numbers.keys() - {"grad_norm"}:
            np.testing.assert_allclose(
                numbers[name], expected[step][name], 1e-5, 1e-6, err_msg=f"{step} {name}"
            )


@pytest.mark.slow
def test_statements_and_anchor_of_one_source_beside_another(
    make_config, sources, tiny_pairs, tmp_path, one_device
):
    """Examples of the plain source have neither foils nor statements; all are anchored."""
    rows = [
        {"image": f"{i:03d}.png", "text": f"{word} {i}", "truth": word == "thing",
         "polarity": "affirms"}
        for i in range(25) for word in ("thing", "other")
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "statements.parquet")
    with_statements = sources.replace(";", f" statements={tmp_path}/statements.parquet;")
    changes = CHANGES | {"data.sources": with_statements, "data.foils": 0, "data.false_texts": 1}
    changes |= {"train.objective": "truth", "train.anchor_weight": 1.0, "train.total": "2 steps"}
    train(make_config(changes), str(tmp_path / "run"))
    numbers = read_metrics(tmp_path / "run")[2]
    assert np.isfinite([numbers["anchor"], numbers["loss/plain"], numbers["foil_accuracy"]]).all()
    batch = next(prepare(make_config(changes), str(tmp_path / "other")).loader.batches(0, 1))
    is_plain = batch["source"] == 1
    assert (batch["truth"][is_plain, 1:] == 0).all()
    assert ((batch["truth"][~is_plain] == -1).sum(axis=1) == 1).all()
    assert batch["is_affirmative"].any(axis=1).all()


def test_no_source_trains_on_what_another_validates(
    make_config, tiny_pairs, tmp_path, one_device, not_compiled
):
    where = f"pairs={tiny_pairs}/pairs.json images={tiny_pairs}/images"
    sources = f"a: {where} weight=1\n b: {where} caption_mode=original weight=1"
    content = json.loads((tiny_pairs / "pairs.json").read_text())
    content["annotations"] = content["annotations"][20:]
    (tmp_path / "other.json").write_text(json.dumps(content))
    sources = sources.replace(f"b: pairs={tiny_pairs}/pairs", f"b: pairs={tmp_path}/other")
    changes = CHANGES | {"data.sources": sources}
    run = prepare(make_config(changes), str(tmp_path / "run"))

    def names(examples) -> set[str]:
        return {examples.images[i].partition(":")[2] for i in np.unique(examples.image_of)}

    trained = names(run.loader.examples)
    held = [names(x._loader.examples) for x in run.validation.losses.values()]
    assert trained and all(held) and held[0] != held[1] and not trained & (held[0] | held[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"data.pairs": "x.json", "data.sources": "a: pairs=x images=. weight=1"},
            r"config\.data\.pairs is set beside data\.sources",
        ),
        ({"data.sources": "a: pairs=x.json weight=1"}, r"a has no images=\.\.\., and config\.data"),
        (
            {"data.sources": "a: pairs=x.json images=. weight=1"},
            r"There is no file of pairs at x\.json",
        ),
        (
            {"data.sources": "a: pairs=x images=. caption_mode=new weight=1"},
            "caption_mode=new is none of negated, original, mix",
        ),
        ({"data.sources": "a: pairs=x images=. weight=0"}, "the weight '0'"),
    ],
)
def test_settings_that_cannot_be(make_config, change, message, tmp_path, one_device):
    with pytest.raises(InputError, match=message):
        prepare(make_config(CHANGES | change), str(tmp_path))
