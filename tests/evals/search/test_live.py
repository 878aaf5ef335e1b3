"""Answers of the live page: those of the command, and of mixed weights, not of mixed scores."""

import dataclasses
import logging

import jax
import numpy as np
import pytest

from evals.search import live as live_module
from evals.search import ranking
from evals.search.live import STEPS, Gone, Live
from evals.search.ranking import photos_of
from negclip_jax.common.errors import InputError
from negclip_jax.data import feature_files
from negclip_jax.interop.parameters import interpolate

pytestmark = pytest.mark.usefixtures("one_device_mesh")
ALONE = [STEPS, STEPS]  # the models themselves


def found(answer, place) -> dict[int, float]:
    return {row["place"]: row["score"] for row in answer["columns"][place]["rows"]}


def ready(ask, *arguments):
    """Asks until the photos are encoded; returns the answer and how often it was asked."""
    for count in range(1, 100):
        answer = ask(*arguments)
        if "pending" not in answer:
            return answer, count
    raise AssertionError(answer)


@pytest.mark.slow
@pytest.mark.parametrize("query", ["a cat", "no dog on a street without any cars, and " * 9])
def test_rankings_are_those_of_the_command(live, three_models, query, tmp_path):
    kept, scores = ranking.rank(three_models, live.folder, [query], cache=tmp_path)
    wanted = ranking.shown(live.folder, kept, {n: s[0] for n, s in scores.items()}, 12)
    answer = live.search(query, ALONE, 12)
    assert answer["cut"] == (len(query) > 100)
    for place, model in enumerate(three_models):
        rows = answer["columns"][place]["rows"]
        assert [r["place"] for r in rows] == [r["place"] for r in wanted[model.name]]
        assert [r["was"] for r in rows] == [r["was"] for r in wanted[model.name]]
        ours, theirs = ([r["score"] for r in x] for x in (rows, wanted[model.name]))
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert len(live.search(query, ALONE, 5)["columns"][2]["rows"]) == 5


def test_alpha_0_is_the_first_model_and_1_the_tuned(live):
    one, zero = live.search("a cat", ALONE, 12), live.search("a cat", [0, 0], 12)
    base = one["columns"][0]["rows"]
    assert [column["rows"] for column in zero["columns"]] == [base] * 3
    assert one["columns"][1]["rows"] != base != one["columns"][2]["rows"]
    assert [column["alpha"] for column in zero["columns"]] == [None, 0, 0]
    assert [column["alpha"] for column in one["columns"]] == [None, 1, 1]


@pytest.mark.parametrize("place", [1, 2])
def test_between_them_the_weights_are_mixed(live, three_models, place, tmp_path):
    alphas = list(ALONE)
    alphas[place - 1] = 5
    answer, _ = ready(live.search, "a cat", alphas, 12)
    base, tuned = three_models[0], three_models[place]
    params = interpolate(base.params, tuned.params, 5 / STEPS)
    mixed = dataclasses.replace(base, name="mixed", params=params)
    _, scores = ranking.rank([mixed], live.folder, ["a cat"], cache=tmp_path)
    ours = found(answer, place)
    np.testing.assert_allclose([ours[i] for i in range(12)], scores["mixed"][0], atol=1e-6)
    of_scores = [
        0.75 * found(answer, 0)[i] + 0.25 * found(live.search("a cat", ALONE, 12), place)[i]
        for i in range(12)
    ]
    assert np.abs(scores["mixed"][0] - of_scores).max() > 1e-3


def test_a_mixture_of_vision_towers_is_encoded_a_batch_at_a_time_and_kept(
    three_models, live, tmp_path, monkeypatch
):
    monkeypatch.setattr("negclip_jax.embeddings.encoder.IMAGES_PER_DEVICE", 4)
    monkeypatch.setattr(Live, "_compile", lambda self: None)
    again = Live(three_models, live.folder, cache=tmp_path)
    answer = again.search("a cat", [STEPS, 7], 12)
    assert answer == {"pending": {"done": 4, "of": 12}}
    # The slider moves on and comes back: what was encoded is kept.
    assert "pending" in again.search("a cat", [STEPS, 8], 12)
    assert again.search("a cat", [STEPS, 7], 12) == {"pending": {"done": 8, "of": 12}}
    _, count = ready(again.search, "a cat", [STEPS, 7], 12)
    assert count == 1
    assert len(again._mixtures) == 1 and not any(w.encoder for w in again._mixtures.values())
    again.search("a cat", [7, 7], 12)  # the text tower's needs no photo
    again.close()


def test_mixtures_are_made_once_and_bounded_in_memory(three_models, live, tmp_path, monkeypatch):
    monkeypatch.setattr(Live, "_compile", lambda self: None)
    again = Live(three_models, live.folder, cache=tmp_path)
    made = []
    monkeypatch.setattr(
        live_module, "interpolate", lambda *a: made.append(a[-1]) or interpolate(*a)
    )
    for step in (3, 4, 3, 4):
        again.search("a cat", [step, STEPS], 12)
    assert made == [3 / STEPS, 4 / STEPS]
    monkeypatch.setattr(live_module, "_MIXTURE_BYTES", 1)
    again.search("a cat", [5, STEPS], 12)
    assert list(again._mixtures) == [(1, 5)]


def test_captions_of_a_photo(live, three_models, photos, tmp_path):
    captions = ["a cat", "no cat", "a dog", *(f"{i} dogs" for i in range(9))]
    answer = live.captions(3, captions, ALONE)
    _, scores = ranking.rank(three_models, live.folder, captions, cache=tmp_path)
    for model, column in zip(three_models, answer["columns"], strict=True):
        wanted = scores[model.name][:, 3]
        rows = column["rows"]
        assert [row["caption"] for row in rows] == np.argsort(-wanted, kind="stable").tolist()
        np.testing.assert_allclose([r["score"] for r in rows], np.sort(wanted)[::-1], atol=1e-6)
        logits = np.exp(float(model.params["logit_scale"])) * np.sort(wanted)[::-1].astype(float)
        shares = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose([row["share"] for row in rows], shares, atol=1e-4)
    name = live.upload(
        (photos.data / "photos" / live.folder.refs[3].path.split("/")[-1]).read_bytes()
    )
    same = live.captions(name, captions, [0, STEPS])
    for ours, theirs in zip(same["columns"][::2], answer["columns"][::2], strict=True):
        assert [r["caption"] for r in ours["rows"]] == [r["caption"] for r in theirs["rows"]]
        ours, theirs = ([r["score"] for r in x["rows"]] for x in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_uploads_are_forgotten_oldest_first(live, photos, monkeypatch):
    monkeypatch.setattr(live_module, "_UPLOADS", 2)
    data = (photos.data / "photos" / "1.png").read_bytes()
    first, _, last = (live.upload(data) for _ in range(3))
    live.captions(last, ["a"], ALONE)
    with pytest.raises(Gone, match="not kept any more"):
        live.captions(first, ["a"], ALONE)


def test_models_of_other_sizes_have_no_mixture(live, three_models, tmp_path, monkeypatch):
    preprocess = dataclasses.replace(three_models[1].preprocess, crop="transformers")
    odd = dataclasses.replace(three_models[1], name="odd", preprocess=preprocess)
    monkeypatch.setattr(Live, "_compile", lambda self: None)
    again = Live([three_models[0], odd], live.folder, cache=tmp_path)
    assert "their preprocess differs" in again.unmixable["odd"]
    assert again.search("a cat", [STEPS], 3)["columns"][1]["rows"]
    with pytest.raises(InputError, match="cannot be mixed"):
        again.search("a cat", [3], 3)


def test_features_of_another_library_need_no_photo(live, three_models, tmp_path):
    """They are every mixture's, and no photo beside them can be encoded."""
    kept, features = ranking.encoded(three_models[:1], live.folder, [], cache=tmp_path)
    names = [live.folder.refs[i].path for i in kept]
    feature_files.write(tmp_path / "f.parquet", names, features["base"][0], "x")
    given = feature_files.open_features(str(tmp_path / "f.parquet"))
    models = [dataclasses.replace(model, features=given) for model in three_models]
    again = Live(models, photos_of(None, given), cache=tmp_path / "cache")
    one, wanted = again.search("a cat", [10, 10], 12), live.search("a cat", [10, STEPS], 12)
    for place in (0, 1):
        ours, theirs = found(one, place), found(wanted, place)
        assert {again.folder.refs[i].path: s for i, s in ours.items()} == pytest.approx(
            {live.folder.refs[i].path: s for i, s in theirs.items()}, abs=1e-6
        )
    assert again.captions(3, ["a", "b"], ALONE)["columns"][0]["rows"]
    with pytest.raises(InputError, match="listed photos alone"):
        again.upload(b"")


def test_no_query_waits_for_a_compiler(live, photos, caplog):
    def compiled() -> list[str]:
        return [r.getMessage() for r in caplog.records if r.getMessage().startswith("Compiling")]

    caplog.set_level(logging.WARNING)
    upload = live.upload((photos.data / "photos" / "5.png").read_bytes())
    with jax.log_compiles():
        for number, words in enumerate(("a", "a new dog", "many words " * 3, "many words " * 50)):
            live.search(f"{words} {number}", [11, STEPS], 3)
        live.captions(upload, [f"a new caption {'word ' * i}" for i in range(20)], [11, STEPS])
        live.captions(2, ["one more"], [11, STEPS])
        assert not compiled()
        jax.jit(lambda x: x * 3 + 1)(np.ones(3))
    assert compiled()
