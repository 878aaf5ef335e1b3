"""Steps of devices that are not there: what is counted agrees with what can be calculated."""

import json

import pytest
from tiny_runs import ROOT

from bench import scaling
from bench.material import ARCHITECTURES
from bench.virtual_steps import Case, flops_per_pair, measure
from negclip_jax.models import flops

# The programs behind the documentation; test_scaling.py makes one of them anew.
RESULTS = json.loads((ROOT / "docs" / "scaling.json").read_text())["results"]
DATA_PARALLEL = [r for r in RESULTS if r["fsdp"] == r["microbatches"] == 1 and r["pairs"] == 64]


def name(result: dict) -> str:
    return f"{result['arch']}-{result['trains']}-{result['devices']}"


@pytest.mark.parametrize("result", DATA_PARALLEL, ids=name)
def test_products_are_those_of_the_model(result):
    """More for padding and recomputed blocks, less for what nobody reads in the last block."""
    batch = result["pairs"] * result["devices"]
    per_pair = flops_per_pair(result["arch"], result["trains"], batch)
    assert result["model_flops"] == pytest.approx(result["pairs"] * per_pair)
    assert 0.95 < result["program_flops"] / result["model_flops"] < 1.45
    assert 22 < result["tokens"] / result["pairs"] < 29


@pytest.mark.parametrize("result", DATA_PARALLEL, ids=name)
def test_messages_are_the_gradient_and_the_features(result):
    dim = ARCHITECTURES[result["arch"]].projection_dim
    sizes = result["trained"], result["pairs"], result["devices"], dim
    expected = scaling.gradient_and_feature_messages(*sizes)
    for device in scaling.ACCELERATORS:
        counted = scaling.message_seconds(result["collectives"], device)
        assert counted == pytest.approx(scaling.message_seconds(expected, device), rel=0.02)


@pytest.mark.parametrize("result", DATA_PARALLEL, ids=name)
def test_arguments_are_parameters_and_two_moments(result):
    assert result["arguments"] == pytest.approx(3 * 4 * result["trained"], rel=0.02)


@pytest.mark.slow
def test_split_parameters_are_gathered_once_and_lie_in_parts():
    case = Case("tiny", "text", 16, fsdp=8, logit_block_mib=0.001)
    result = measure(case)
    assert result["devices"] == 8 and scaling.chosen([result], [case], 8) == [result]
    assert result["arguments"] < 1.2 * 3 * 4 * result["trained"] / 8
    assert not [c for c in result["collectives"] if c["loops"]]
    # The compiler alone would move activations: no parameter, but in large models far more bytes.
    gathered = sum(c["size"] for c in result["collectives"] if c["kind"] == "all-gather")
    assert gathered == pytest.approx(4 * result["trained"], rel=0.05)


def test_both_towers_are_more_work():
    text, both = (flops_per_pair("tiny", trains, 128) for trains in ("text", "all"))
    assert both - text == pytest.approx(3 * flops.vision_forward(ARCHITECTURES["tiny"]))
    logits = flops_per_pair("tiny", "text", 256) - text
    assert logits == pytest.approx(3 * 2 * 128 * ARCHITECTURES["tiny"].projection_dim)
