"""The comparison with the published recipe, end to end with tiny towers."""

import contextlib
import io
import json
import logging
import subprocess
import sys

import pytest
from bench_in_process import InProcess

from bench import finetune, harness
from bench.harness import Side


def ours_in_process(make: str, *args) -> InProcess | Side:
    """The side of PyTorch has a process of its own, and with it its memory."""
    return (InProcess if make == "bench.ours:Ours" else Side)(make, *args)


@pytest.fixture(
    scope="module",
    params=[ours_in_process, pytest.param(Side, marks=pytest.mark.long)],
    ids=lambda side: side.__name__,
)
def result(request, tmp_path_factory) -> dict:
    path, said = tmp_path_factory.mktemp("bench") / "results" / "finetune.json", io.StringIO()
    root = logging.getLogger()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(root, "level", root.level)  # which our side sets
        patch.setattr(finetune, "Side", request.param)
        patch.setattr(harness, "SIDE", 256)
        finetune.main(["--arch=tiny", "--batch-size=16", "--repetitions=1", f"--json={path}"])
    return json.loads(path.read_text()) | {"said": said.getvalue()}


@pytest.mark.slow
def test_both_sides_compute_the_same_losses(result):
    (measured,) = result["rounds"]
    assert len(measured["ours"]["losses"]) == len(measured["reference"]["losses"]) == 1
    assert result["loss_max_rel_diff"] < 1e-4


def test_ratios_follow_from_the_seconds_of_each_side(result):
    (measured,) = result["rounds"]
    ours, theirs = (measured[side]["seconds"] for side in ("ours", "reference"))
    assert result["ratio_later_epochs"] == pytest.approx(theirs / ours)
    assert result["pairs_per_second_later_epochs"] == pytest.approx(16 / ours)
    cache = measured["cache"]
    first = ours + cache["seconds"] * (16 / 5) / cache["images"]
    assert result["ratio_first_epoch"] == pytest.approx(theirs / first)
    share = measured["flops"]["model"] / ours / measured["matmul_rate"]["ours"]
    assert result["flops_share_of_matmul"] == pytest.approx(share)
    assert 0 < result["flops_share_of_matmul_read_only"] < result["flops_share_of_matmul"] < 1


def test_waiting_and_memory_are_of_each_side(result):
    assert 0 <= result["data_wait_share"] < 1
    assert 0 < result["reference_data_wait_share"] < 1
    assert result["peak_memory_gib"] != result["reference_peak_memory_gib"]
    assert 1 <= result["text_tokens_computed_per_real"] < 6  # eight devices share 16 captions


def test_the_table_names_machine_and_ratio(result):
    assert result["machine"]["processor"] in result["said"]
    assert f"{result['ratio_later_epochs']:.2f} x" in result["said"]


def test_a_table_without_the_other_side(result):
    alone = {k: v for k, v in result.items() if "reference" not in k and "ratio" not in k}
    del alone["loss_max_rel_diff"]
    _, rows = finetune.table(alone)
    assert rows[0][1:] == [f"{result['pairs_per_second_later_epochs']:.1f}", "", ""]


class StandIn:
    """A side that answers at once; ours takes 1, 2, ... seconds, the other ten times as long."""

    def __init__(self, make: str, *args):
        self._factor, self._rounds = (1 if make == "bench.ours:Ours" else 10), 0
        if isinstance(args[0], dict) and args[0].get("optim.lora_rank"):
            self._factor = 0.5

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __call__(self, method: str, *args):
        if method == "epoch":
            self._rounds += 1
            seconds = self._factor * self._rounds
            said = {"waited": 0.0, "losses": [1.0], "memory": 2**30, "trained": 4_000_000}
            return {"seconds": seconds} | said
        return {
            "device": "none",
            "batches": [],
            "matmul_rate": 1.0,
            "fill_cache": {"seconds": 1.0, "images": 1},
            "flops": {"model": 1.0, "read": 1.0, "computed": 2.0, "tokens": 1.0},
        }[method]


def test_the_side_of_pytorch_imports_no_jax():
    """It imports the measurement too, and its memory is a figure."""
    script = "import sys, bench.finetune; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


@pytest.mark.parametrize(("budget", "rounds"), [("540", 5), ("0", 1)])
def test_median_and_range_of_five_rounds_or_of_what_the_budget_has_room_for(
    monkeypatch, tmp_path, capsys, budget, rounds
):
    monkeypatch.setattr(finetune, "Side", StandIn)
    path = tmp_path / "x.json"
    flags = ["--arch=tiny", "--batch-size=60", f"--budget={budget}", f"--json={path}"]
    finetune.main(flags)
    result, (out, err) = json.loads(path.read_text()), capsys.readouterr()
    assert len(result["rounds"]) == result["rounds_measured"] == rounds
    middle = (rounds + 1) / 2
    assert result["pairs_per_second_later_epochs"] == pytest.approx(60 / middle)
    assert result["range"]["pairs_per_second_later_epochs"] == [60 / rounds, 60]
    assert result["range"]["ratio_later_epochs"] == [10, 10]
    assert f"median (range) of {rounds} rounds" in out
    assert ("20.0 (12.0 to 60.0)" in out) is (rounds == 5)
    assert ("1 of 5 rounds: another one of" in err) is (rounds == 1)


def test_adapters_take_turns_with_the_rest(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(finetune, "Side", StandIn)
    path = tmp_path / "x.json"
    flags = ["--arch=tiny", "--batch-size=60", "--lora-rank=4", f"--json={path}"]
    finetune.main([*flags, "--no-reference"])
    result = json.loads(path.read_text())
    assert result["lora_step_ratio"] == 0.5 and len(result["rounds"]) == 5
    assert [round["lora"]["seconds"] for round in result["rounds"]] == [0.5, 1, 1.5, 2, 2.5]
    out = capsys.readouterr().out
    assert "0.50 (0.50 to 0.50)" in out and "trained parameters, millions | 4.00" in out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--pairs=x.json"], "--images"),
        (["--pairs=absent.json", "--images=."], "absent.json"),
        (["--arch=tiny", "--steps=0"], "--steps"),
    ],
)
def test_bad_flags_exit_with_a_one_line_message(flags, said, monkeypatch):
    monkeypatch.setattr(finetune, "Side", InProcess)
    with pytest.raises(SystemExit) as stopped:
        finetune.main([*flags, "--arch=tiny", "--batch-size=8"])
    assert said in str(stopped.value)
