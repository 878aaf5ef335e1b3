"""The base's text features: what they are, that a run keeps them, and what it does with them."""

import itertools
import json

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flax import nnx
from tiny_runs import assert_equal, read_metrics

from negclip_jax.common.errors import InputError
from negclip_jax.training import patterns
from negclip_jax.training.loop import train
from negclip_jax.training.setup import prepare

# Truth-labelled contrast that keeps what it knew, as the recipe has it.
RECIPE = {
    "train.objective": "truth",
    "train.anchor_weight": 3.0,
    "train.distill_weight": 2.0,
    "train.total": "8 steps",
    "eval.every": "4 steps",
    "checkpoint.every": "4 steps",
    "train.logit_block_mib": 0.001,  # in blocks of rows
    "train.microbatches": 2,
    "optim.lr": 1e-3,
    "optim.eps": 1e-3,  # large, so that updates are smooth in the gradient
}


@pytest.fixture(scope="module")
def statements(tiny_pairs, tmp_path_factory) -> str:
    """Six statements about each of the tiny images, one of them with its caption."""
    rows = []
    for i, (thing, truth) in itertools.product(range(40), enumerate([True, True, False, False])):
        text, polarity = (f"{thing} {i}", "affirms") if truth else (f"no {thing} {i}", "denies")
        rows.append({"image": f"{i:03d}.png", "text": text, "truth": truth, "polarity": polarity})
        rows[-1] |= {"unit": str(i), "form": "a", "caption_id": "1" if thing == 3 else None}
    path = tmp_path_factory.mktemp("statements") / "statements.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


@pytest.fixture(scope="module")
def recipe(make_config, statements):
    """Function of changes to the configuration of a run of the recipe."""
    return lambda changes=None: make_config(
        RECIPE | {"data.statements": statements} | (changes or {})
    )


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """Eight steps on eight devices: folder and last state."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    return workdir, jax.device_get(train(recipe(), str(workdir)))


@pytest.mark.slow
def test_they_are_those_of_the_base(recipe, whole, tiny_pairs, tmp_path, one_device, not_compiled):
    """Also for a run that has gone on from its weights."""
    captions = json.loads((tiny_pairs / "pairs.json").read_text())["annotations"]
    runs = [prepare(recipe(), str(tmp_path)), prepare(recipe({"train.total": "9 steps"}), whole[0])]
    assert [int(run.state.step) for run in runs] == [0, 8]
    params = patterns.merge(runs[0].frozen, runs[0].state.params)
    model, tokenizer = nnx.merge(runs[0].context.graphdef, params), runs[0].context.tokenizer
    for run in runs:
        for loader in (run.loader, run.validation._loader):
            texts = [
                f"thing {int(loader.examples.images[i][:3])}" for i in loader.examples.image_of
            ]
            assert set(texts) <= {a["caption"] for a in captions}
            expected = jax.jit(model.encode_text)(tokenizer(texts))
            found = loader.base_text[np.arange(len(texts))]
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_run_logs_what_it_keeps_and_forgets(whole):
    metrics = read_metrics(whole[0])
    assert set(metrics) == set(range(9))
    names = {"anchor", "distill", "foil_accuracy", "loss", "image_to_text_accuracy"}
    recalls = {f"val/{a}_recall_at_1" for a in ("image_to_text", "text_to_image")}
    for step, numbers in metrics.items():
        assert step == 0 or names <= numbers.keys()
        assert step % 4 or recalls | {"val/anchor", "val/distill"} <= numbers.keys()
    assert metrics[0]["val/anchor"] == pytest.approx(0, abs=1e-9)
    assert metrics[1]["anchor"] == pytest.approx(0, abs=1e-9)
    assert metrics[8]["val/anchor"] > 1e-4 and metrics[8]["val/distill"] > 1e-6


@pytest.mark.slow
def test_one_device_gives_the_same(recipe, whole, tmp_path, one_device):
    """Without micro-batches and blocks of logits, from padded rows."""
    plain = {"train.microbatches": 1, "train.logit_block_mib": 64.0, "data.packing": False}
    train(recipe(plain), str(tmp_path / "run"))
    one, eight = (read_metrics(path) for path in (tmp_path / "run", whole[0]))
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(eight[1][name], one[1][name], rtol=1e-6)
    for step, numbers in one.items():  # rounding grows from step to step
        for name, value in numbers.items():
            np.testing.assert_allclose(eight[step][name], value, rtol=1e-2, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_them(recipe, whole, tmp_path):
    workdir = tmp_path / "run"
    train(recipe({"train.total": "4 steps"}), str(workdir))
    state = jax.device_get(train(recipe(), str(workdir)))
    assert_equal(state.params, whole[1].params)
    assert (workdir / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()
    train_again = recipe({"train.total": "9 steps"})
    (workdir / "base_text" / "text.rows").unlink()
    with pytest.raises(InputError, match=r"it lacks 80 of the 80 embeddings.*Restore it, or start"):
        train(train_again, str(workdir))


@pytest.mark.slow
def test_without_a_checkpoint_they_are_computed_again(
    recipe, whole, tmp_path, one_device, not_compiled
):
    begun = tmp_path / "base_text" / "text.rows"
    begun.parent.mkdir()
    begun.write_bytes((whole[0] / "base_text" / "text.rows").read_bytes()[:-8])
    before = begun.stat().st_size
    prepare(recipe(), str(tmp_path))
    assert begun.stat().st_size > before


@pytest.mark.parametrize(
    ("mode", "texts", "shown"),
    [
        ("negated", 2, [False, True]),
        pytest.param("original", 1, [True], marks=pytest.mark.slow),
        pytest.param("mix", 1, [None], marks=pytest.mark.slow),
    ],
)
def test_the_original_caption_is_shown_where_it_is_compared(
    make_config, tmp_path, one_device, not_compiled, mode, texts, shown
):
    config = make_config({"data.caption_mode": mode, "train.anchor_weight": 1.0})
    loader = prepare(config, str(tmp_path)).loader
    (batch,) = loader.batches(0, 1)
    assert loader.examples.texts == texts
    flags = batch["is_affirmative"]
    if mode == "mix":
        assert flags[:, 0].tolist() == loader.pairs_at(0)[1].astype(bool).tolist()
        assert 0 < flags.sum() < len(flags)
    else:
        assert flags.tolist() == len(flags) * [shown]
    assert texts == 1 or not batch["truth"][:, 1].any(), "it is no part of the contrast"


def test_distillation_needs_frozen_images(make_config, tmp_path, one_device):
    config = make_config({"train.distill_weight": 1.0, "optim.freeze": ()})
    with pytest.raises(InputError, match=r"train\.distill_weight=1\.0 compares with the base on"):
        prepare(config, str(tmp_path))
