"""The comparison with the published recipe, end to end with tiny towers."""

import contextlib
import io
import json

import pytest

from bench import finetune


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> dict:
    path, said = tmp_path_factory.mktemp("bench") / "results" / "finetune.json", io.StringIO()
    with contextlib.redirect_stdout(said):
        finetune.main(["--arch=tiny", "--batch-size=16", "--repetitions=1", f"--json={path}"])
    return json.loads(path.read_text()) | {"said": said.getvalue()}


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


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--pairs=x.json"], "--images"),
        (["--pairs=absent.json", "--images=."], "absent.json"),
        (["--arch=tiny", "--steps=0"], "--steps"),
    ],
)
def test_bad_flags_exit_with_a_one_line_message(flags, said):
    with pytest.raises(SystemExit) as stopped:
        finetune.main([*flags, "--arch=tiny", "--batch-size=8"])
    assert said in str(stopped.value)
