"""Examples without a photo: what stands for the image, and runs that learn from them."""

import json
import re

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_runs import assert_equal, read_metrics

from negclip_jax.common.errors import InputError
from negclip_jax.data.packing import Ragged
from negclip_jax.embeddings import encoder
from negclip_jax.training.base_text import WithStandIns, least_in_common, stand_ins
from negclip_jax.training.loop import train
from negclip_jax.training.setup import prepare


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_stand_in_lies_where_the_image_of_such_a_caption_would():
    rng = np.random.default_rng(0)
    text = unit(rng.standard_normal((400, 16)) + 2)
    gap = 3 * rng.standard_normal(16)
    image = gap + 0.7 * (text - text.mean(axis=0)) + 0.01 * rng.standard_normal(text.shape)
    made, slope = stand_ins(text[:50], text, image, np.arange(50))
    assert slope == pytest.approx(0.7, abs=0.01)
    np.testing.assert_allclose(made[:], unit(image[:50]), atol=1e-6)
    other, _ = stand_ins(text[:50], text, image, np.arange(50, 100))
    assert made[:].dtype == np.float32 and 1e-4 < np.abs(made[:] - other[:]).max() < 0.02
    # Each is the same whatever is read with it: runs on any number of processes are equal.
    some = np.array([7, 3, 7, 49])
    np.testing.assert_array_equal(made[some], made[:][some])
    photos = rng.standard_normal((5, 16)).astype(np.float32)
    joined = WithStandIns(photos, made)[np.array([4, 5, 54, 0])]
    np.testing.assert_array_equal(joined, np.stack([photos[4], *made[:][[0, 49]], photos[0]]))


def test_the_residual_is_of_a_photo_that_has_little_in_common():
    def ragged(rows):
        return Ragged(
            np.concatenate(rows).astype(np.int32), np.cumsum([0, *map(len, rows)], dtype=np.int64)
        )

    captions = ragged([[1, 10 + i % 4, 9] for i in range(40)])  # 1 and 9 are in all
    lender = least_in_common(ragged([[1, 10, 9], [1, 11, 12, 9]]), captions, seed=0)
    shown = [captions.ids[3 * i + 1] for i in lender]
    assert shown[0] != 10 and shown[1] not in (11, 12)
    assert np.array_equal(
        lender, least_in_common(ragged([[1, 10, 9], [1, 11, 12, 9]]), captions, 0)
    )


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A folder of 24 text rows with statements, as `python -m data_gen nouns` writes them."""
    folder = tmp_path_factory.mktemp("rows")
    pairs, said = [], []
    for i in range(24):
        there = f"thing {50 + i} and thing {90 - i}"
        image = f"text:{i}:{there}"
        pair = {"image": image, "image_id": f"text:{i}", "caption": there}
        pairs.append(pair | {"negated": f"{there}, no thing {i}"})
        for text, truth, polarity in (
            (f"thing {50 + i}", True, "affirms"),
            (f"no thing {i}", True, "denies"),
            (f"thing {i}", False, "affirms"),
            (f"no thing {50 + i}", False, "denies"),
        ):
            said.append({"image": image, "text": text, "truth": truth, "polarity": polarity})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
    pq.write_table(pa.Table.from_pylist(said), folder / "statements.parquet")
    return folder


@pytest.fixture(scope="module")
def config(make_config, rows, tiny_pairs, tmp_path_factory):
    """Function of changes to the configuration of a run that learns from text rows too."""
    said = []
    for i in range(40):
        for thing in (i, (i + 1) % 40):  # so that each text is true of one photo, false of another
            for text, polarity in ((f"thing {thing}", "affirms"), (f"no thing {thing}", "denies")):
                said.append({"image": f"{i:03d}.png", "text": text, "polarity": polarity})
                said[-1]["truth"] = (thing == i) == (polarity == "affirms")
    path = tmp_path_factory.mktemp("said") / "statements.parquet"
    pq.write_table(pa.Table.from_pylist(said), path)
    fixed = {
        "data.statements": str(path),
        "data.text_nouns": str(rows),
        "data.caption_mode": "mix",
        "train.objective": "truth",
        "train.anchor_weight": 1.0,
        "train.image_choice_weight": None,  # of no probes: 1
        "train.total": "8 steps",
        "optim.lr": 1e-3,
        "optim.eps": 1e-3,  # large, so that updates are smooth in the gradient
    }
    return lambda changes=None: make_config(fixed | (changes or {}))


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """Eight steps on eight devices: folder and last state."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    return workdir, jax.device_get(train(config(), str(workdir)))


def test_they_are_examples_of_training_alone(config, tmp_path, one_device, not_compiled):
    run = prepare(config(), str(tmp_path))
    examples = run.loader.examples
    assert (examples.stand_ins, len(examples.photos)) == (24, 40)
    assert run.validation._loader.examples.stand_ins == 0
    is_row = examples.image_of >= 40
    assert is_row.sum() == 24 and not is_row[:-24].any()
    tokenizer = run.context.tokenizer
    first = int(np.flatnonzero(is_row)[0])
    bits = np.arange(1, 9, dtype=np.uint64)
    shown = examples.shown(np.full(8, first), np.arange(8) % 2, bits)
    texts = [
        [tuple(row) for row in examples.tokens.padded(index, 24).tolist()]
        for index in shown.index_BxM
    ]

    def ids(text):
        return tuple(tokenizer([text])[0].tolist())

    true = {ids("thing 50"), ids("no thing 0")}
    false = {ids("thing 0"), ids("no thing 50")}
    assert {text for row in texts for text in row[1:2]} <= true
    assert {text for row, truth in zip(texts, shown.truth_BxM, strict=True)
            for text, t in zip(row[1:], truth[1:], strict=True) if t < 0} == false  # fmt: skip
    assert texts[1][0] == ids("thing 50 and thing 90")
    # What the loader hands out for it is its own stand-in, of unit length.
    stored = run.loader.cached.features
    made = stored[np.arange(40, 64)]
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, rtol=1e-5)
    pairs = run.loader.pairs_at(0)[0]
    (batch,) = run.loader.batches(0, 1)
    np.testing.assert_array_equal(batch["feature"], stored[examples.image_of[pairs]])
    assert (examples.image_of[pairs] >= 40).any()
    # A statement about a photo meets the one other photo that it is told about, with its features,
    # and none that validation holds out.
    held_out = set(run.validation._loader.examples.image_of.tolist())
    assert 0 < len(held_out) < 40
    for row, (own, texts) in enumerate(zip(examples.image_of[pairs], batch["truth"], strict=True)):
        there = batch["has_opposite"][row]
        near = {int(own - 1) % 40, int(own + 1) % 40} - held_out if own < 40 else set()
        is_told = [bool(t) for t in texts[1:]]
        assert not there[0] and (there[1:] <= is_told).all()
        assert len(near) < 2 or there[1:].tolist() == is_told
        for feature in batch["opposite"][row][there]:
            assert any(np.array_equal(feature, stored[np.array([i])][0]) for i in near)
    assert batch["has_opposite"].any() and not batch["has_opposite"].all()


@pytest.mark.slow
def test_one_device_gives_the_same(config, whole, tmp_path, one_device):
    train(config({"data.packing": False}), str(tmp_path / "run"))
    one, eight = (read_metrics(path) for path in (tmp_path / "run", whole[0]))
    assert 0 <= one[1]["image_choice_accuracy"] <= 1
    for name in ("loss", "image_choice_accuracy"):
        np.testing.assert_allclose(eight[1][name], one[1][name], rtol=1e-5)
    np.testing.assert_allclose(eight[8]["loss"], one[8]["loss"], rtol=1e-2)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_them(config, whole, tmp_path):
    workdir = tmp_path / "run"
    train(config({"train.total": "4 steps"}), str(workdir))
    state = jax.device_get(train(config(), str(workdir)))
    assert_equal(state.params, whole[1].params)
    assert (workdir / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()
    (workdir / "base_text" / "stand_ins.rows").unlink()
    with pytest.raises(InputError, match=r"it lacks .* embeddings.*Restore it, or start over"):
        train(config({"train.total": "9 steps"}), str(workdir))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.cache_features": False}, r"data\.text_nouns needs a frozen vision tower"),
        ({"optim.freeze": ()}, r"data\.text_nouns needs a frozen vision tower"),
        (
            {"data.caption_mode": "negated", "train.anchor_weight": 0.0},
            r"data\.text_nouns measures on original captions: .*data\.caption_mode=mix",
        ),
        ({"data.text_nouns": "nouns.txt"}, r"nouns\.txt is no folder: write .*--nouns=nouns\.txt"),
    ],
)
def test_what_it_needs(config, tmp_path, one_device, changes, message):
    with pytest.raises(InputError, match=message):
        prepare(config(changes), str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"data.cache_features": False}, "features of further images: a frozen vision tower"),
        ({"optim.freeze": ()}, "features of further images: a frozen vision tower"),
        ({"data.statements": None, "data.foils": 1}, "texts that are known .*: data.statements"),
    ],
)
def test_where_there_is_nothing_to_compare(
    config, tmp_path, one_device, not_compiled, caplog, changes, missing
):
    run = prepare(config(changes | {"data.text_nouns": None}), str(tmp_path))
    assert re.search(f"image_choice_weight has no effect without {missing}", caplog.text)
    (batch,) = run.loader.batches(0, 1)
    assert "opposite" not in batch


def test_a_photo_is_no_text_row(config, rows, tmp_path, one_device):
    lines = (rows / "pairs.jsonl").read_text().replace("text:3:", "photo:3:")
    (tmp_path / "pairs.jsonl").write_text(lines)
    with pytest.raises(InputError, match=r"'photo:3:.*' is a photo, no text row"):
        prepare(config({"data.text_nouns": str(tmp_path)}), str(tmp_path / "run"))


def test_features_of_texts_are_the_base_models(
    config, whole, tmp_path, one_device, not_compiled, monkeypatch
):
    """Also where the run goes on from weights that have moved."""
    asked = []
    real = encoder.text_features

    def spy(*args, **kwargs):
        asked.append((args[2].name, kwargs["computes"]))
        return real(*args, **kwargs)

    monkeypatch.setattr(encoder, "text_features", spy)
    before = prepare(config(), str(tmp_path)).loader.cached.features
    after = prepare(config({"train.total": "9 steps"}), str(whole[0])).loader.cached.features
    assert dict(asked)["stand_ins.rows"] is False
    np.testing.assert_allclose(before[np.arange(64)], after[np.arange(64)], atol=1e-5)
