"""The profile of a step by part: every operation of its trace is found, and time is shared out."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import harness, profile
from bench.hlo import Operation
from bench.profile import PARTS, attributed, part_of


def test_time_is_shared_among_what_runs_side_by_side():
    events = [(0, 10, "a"), (4, 10, "b"), (12, 14, "a"), (12, 13, "a"), (12, 14, "b")]
    found = attributed(events)
    assert found["a"] == pytest.approx(4 + 3 + 2 / 3 + 1 / 2)
    assert found["b"] == pytest.approx(3 + 1 / 3 + 1 / 2)
    assert found[""] == pytest.approx(2)
    assert sum(found.values()) == pytest.approx(14)
    assert attributed([]) == {}


def operation(
    *kinds: str, frames: tuple = (), shape=(60, 8), name="jit(f)", flops=0.0, batched=False
):
    return Operation(frozenset(kinds), shape, name, frames, batched, flops)


LINEAR = ("flax/nnx/nn/linear.py:Linear.__call__", "models/transformer.py:MLP.__call__")
BACKWARD = "jit(f)/transpose(jvp())/dot_general"


@pytest.mark.parametrize(
    ("found", "part"),
    [
        (operation("while"), None),
        (operation("dot", frames=LINEAR, flops=9), "linear layers, forward"),
        (
            operation("dot", frames=LINEAR, flops=9, name=BACKWARD),
            "linear layers, gradient of inputs",
        ),
        (
            operation("dot", frames=LINEAR, flops=9, name=BACKWARD, shape=(8, 8)),
            "linear layers, gradient of weights",
        ),
        (operation("dot", flops=9, batched=True), "attention: products"),
        (operation("dot", frames=("training/objectives.py:f",), flops=9), "loss"),
        (operation("copy", "bitcast", frames=LINEAR), "transposes and copies"),
        (operation("bitcast", frames=LINEAR), "activation"),
        (operation("multiply", frames=LINEAR), "activation"),
        (
            operation("exponential", frames=("models/transformer.py:Attention.__call__",)),
            "attention: softmax and mask",
        ),
        (operation("add", frames=("optax/_src/update.py:apply_updates",)), "AdamW and norms"),
        (operation("broadcast", frames=("models/transformer.py:run_blocks",)), PARTS[-4]),
        (operation("gather"), "embedding and the rest"),
    ],
)
def test_operations_belong_to_parts(found, part):
    assert part_of(found, 60) == part


@pytest.mark.slow
def test_all_products_of_a_step_are_in_its_trace(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(harness, "SIDE", 256)
    out = tmp_path / "profile.json"
    profile.main(["--arch=tiny", "--batch-size=16", "--steps=2", f"--json={out}"])
    result = json.loads(out.read_text())
    assert len(result["turns"]) == 2
    for turn in result["turns"]:
        assert sum(turn["flops"].values()) == result["program_flops"] > 1e6
        assert 0 < sum(turn["nanoseconds"].values()) <= turn["seconds"] * 1e9
    expected = set(PARTS) - {"between operations"}
    assert expected - set(result["parts"]) == set()
    shown = capsys.readouterr().out
    assert "linear layers, gradient of weights" in shown and "of a 2048 x 2048 one's" in shown


def test_a_batch_of_none_is_refused():
    with pytest.raises(SystemExit, match=r"bench\.profile: --batch-size must be 1 or more"):
        profile.main(["--batch-size=0"])


def test_an_end_that_comes_after_the_trace(monkeypatch):
    named = [("dot.1", 0), ("dot.2", 4), ("end: dot.1", 6), ("add", 7), ("end: add", 9)]
    events = [SimpleNamespace(name=name, start_ns=float(at)) for name, at in named]
    data = SimpleNamespace(planes=[SimpleNamespace(lines=[SimpleNamespace(events=events)])])
    monkeypatch.setattr(profile.jax.profiler.ProfileData, "from_file", lambda path: data)
    dot = operation("dot", frames=LINEAR, flops=5.0)
    found = profile._turn(Path("x"), {"dot.1": dot, "dot.2": dot, "add": operation("add")}, 60)
    assert found["flops"] == {"linear layers, forward": 10.0, "embedding and the rest": 0.0}
    assert sum(found["nanoseconds"].values()) == 9
