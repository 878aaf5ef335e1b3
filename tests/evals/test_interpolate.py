"""Mixtures of weights and the choice among them."""

import dataclasses

import numpy as np
import pytest

from evals.interpolate import Mixtures, best_alpha_text, check_kinds, curve, row_name
from negclip_jax.common.errors import InputError
from negclip_jax.interop.parameters import interpolate


def test_ends_and_equal_parts_are_exact(tiny_model, other_model):
    base, tuned = tiny_model.params, other_model.params
    assert interpolate(base, tuned, 0) is base and interpolate(base, tuned, 1) is tuned
    half = interpolate(base, tuned, 0.3)
    same = half["text"]["position_embedding"], base["text"]["position_embedding"]
    np.testing.assert_array_equal(*same)
    expected = 0.7 * base["text_projection"] + 0.3 * tuned["text_projection"]
    np.testing.assert_allclose(half["text_projection"], expected, rtol=1e-5, atol=1e-7)
    assert half["text_projection"].dtype == np.float32


def test_mixtures_are_models_with_names_and_facts(tiny_model, other_model):
    mixtures = Mixtures(tiny_model, other_model, [0, 0.25, 1])
    models = list(mixtures)
    assert [m.name for m in models] == ["alpha 0", "alpha 0.25", "alpha 1"]
    assert models[1].facts["weights"].startswith("0.75 x ")
    assert list(mixtures.described()) == [m.name for m in models]
    assert models[0].fingerprints == tiny_model.fingerprints


def test_a_frozen_tower_stays_one_tower(tiny_model, other_model):
    params = other_model.params | {"visual_projection": tiny_model.params["visual_projection"]}
    tuned = dataclasses.replace(other_model, params=params)
    prints = [m.fingerprints for m in Mixtures(tiny_model, tuned, [0, 0.3, 1])]
    assert len({p["image"] for p in prints}) == 1 and len({p["text"] for p in prints}) == 3


@pytest.mark.parametrize("alphas", [[0.5, 1], [0, 1.5], [-0.1, 0]])
def test_alphas_that_make_no_curve(tiny_model, other_model, alphas):
    with pytest.raises(InputError, match="values must lie between 0 and 1, with 0, the base"):
        Mixtures(tiny_model, other_model, alphas)


def test_different_models_cannot_be_mixed(tiny_model, other_model):
    text = dataclasses.replace(other_model.config.text, hidden_act="gelu")
    config = dataclasses.replace(other_model.config, text=text)
    with pytest.raises(InputError, match="tiny and other cannot be mixed: their config differs"):
        Mixtures(tiny_model, dataclasses.replace(other_model, config=config), [0])


def test_both_kinds_of_benchmark_are_needed():
    check_kinds({"valse": False, "coco_retrieval": True})
    with pytest.raises(InputError, match="among valse none measures retention"):
        check_kinds({"valse": False})
    with pytest.raises(InputError, match="among cifar10 none measures negation"):
        check_kinds({"cifar10": True})


ALPHAS = [0, 0.5, 0.75, 1]
RETENTION = {"valse": False, "mcq": False, "coco": True}


def document(**values) -> dict:
    """{benchmark: value at each alpha} in the shape of `results.json`."""
    return {
        name: {
            "rows": {
                row_name(alpha): {"metrics": {"accuracy": {"value": value, "headline": True}}}
                for alpha, value in zip(ALPHAS, column, strict=True)
            }
        }
        for name, column in values.items()
    }


@pytest.mark.parametrize(("max_loss", "best"), [(0.0, 0), (0.01, 0.5), (0.02, 0.75), (0.5, 0.75)])
def test_the_best_alpha_is_the_most_negation_within_the_loss(max_loss, best):
    benchmarks = document(
        valse=[0.5, 0.6, 0.8, 0.7], mcq=[0.3, 0.4, 0.6, 0.7], coco=[0.6, 0.59, 0.58, 0.3]
    )
    found = curve(benchmarks, ALPHAS, RETENTION, max_loss)
    assert found["best"] == best
    assert found["points"][1] == pytest.approx({"alpha": 0.5, "negation": 0.5, "retention": 0.59})
    assert found["benchmarks"] == {"negation": ["valse", "mcq"], "retention": ["coco"]}


def test_of_equal_negation_the_smaller_alpha():
    benchmarks = document(valse=[0.5, 0.7, 0.7, 0.7], mcq=[0.3] * 4, coco=[0.6] * 4)
    assert curve(benchmarks, ALPHAS, RETENTION, 0.01)["best"] == 0.5


def test_the_text_states_gain_loss_and_limit():
    benchmarks = document(valse=[0.5, 0.6, 0.7, 0.7], mcq=[0.3] * 4, coco=[0.6, 0.6, 0.594, 0.5])
    text = best_alpha_text(curve(benchmarks, ALPHAS, RETENTION, 0.01))
    assert text.startswith("best alpha 0.75: negation +10.0, retention -0.6 points against alpha 0")
    assert "at most 1.0 may be lost" in text
    row = benchmarks["mcq"]["rows"][row_name(0.75)]["metrics"]["accuracy"]
    row["ties"] = 1234
    assert best_alpha_text(curve(benchmarks, ALPHAS, RETENTION, 0.01)).endswith(
        "At it 1,234 items tie"
    )
