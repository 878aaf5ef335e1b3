"""One process fails: all end with its reason, soon, and none hangs."""

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from processes import Ended, Nursery, commands, run_alone
from tiny_runs import checkpoint_steps, read_metrics

TIMEOUT, SILENCE = 20.0, 10.0
# From the end of the first process to that of the last: silence, a suspicion, and slow machines.
SOON = 20.0
CHANGES = {
    "train.total": "6 steps",
    "data.validation_fraction": 0.0,
    "checkpoint.every": "3 steps",
    "mesh.fsdp": 2,
    "mesh.min_shard_size": 64,
    # Two processes compile anew in each run: no gradient through the blocks is less to compile.
    "optim.freeze": ("vision/.*", "visual_projection", "text/(blocks|ln_final)/.*"),
    "runtime.timeout": TIMEOUT,
    "runtime.heartbeat_timeout": SILENCE,
}


@pytest.fixture
def run(forked: Nursery, short_run, tmp_path):
    """Function of changes, events and what differs to the ends of two processes."""

    def start(changes: dict | None = None, **arguments) -> list[Ended]:
        settings = short_run | CHANGES | (changes or {})
        return forked.run(settings, tmp_path / "run", processes=2, devices=1, **arguments)

    return start


def assert_all_say(ends: list[Ended], reason: str, *, fallen: int | None = None) -> None:
    """All but the one that fell end with status 1 and one sentence, this reason, and in time."""
    outputs = "\n\n".join(end.output for end in ends)
    for i, end in enumerate(ends):
        assert end.status is not None, f"process {i} hung: {outputs}"
        if i != fallen:
            assert end.status == 1, outputs
            errors = [line for line in end.output.splitlines() if line.startswith("error: ")]
            assert len(errors) == 1 and re.search(reason, errors[0]), outputs
            assert "Traceback" not in end.output
    seconds = [end.seconds for end in ends]
    assert max(seconds) - min(seconds) < SOON, f"{seconds}: {outputs}"


@pytest.mark.slow
def test_another_configuration(short_run, tmp_path):
    """These two are started one by one, like any command."""
    arguments = commands(short_run | CHANGES, tmp_path / "run", 2, {1: {"optim.lr": 5e-3}})
    ends = run_alone(arguments, devices=1, seconds=60)
    reason = r"process 1 differs from process 0 in its configuration: optim\.lr: 0\.005 instead of"
    assert_all_say(ends, reason)


def test_other_data(run, tiny_pairs, tmp_path):
    content = json.loads((tiny_pairs / "pairs.json").read_text())
    content["annotations"][7]["updated_caption"] += "!"
    (tmp_path / "edited.json").write_text(json.dumps(content))
    ends = run(differing={1: {"data.pairs": str(tmp_path / "edited.json")}})
    assert_all_say(ends, r"process 1 differs from process 0 in its data: pairs and their finger")


@pytest.mark.slow
def test_a_photo_that_one_process_lacks(run, tiny_pairs, tmp_path):
    images = Path(shutil.copytree(tiny_pairs / "images", tmp_path / "images"))
    (images / "005.png").unlink()
    changes = {"data.max_bad_images": 0.1}  # one host alone would go on without it
    ends = run(changes, differing={1: {"data.images": str(images)}})
    assert_all_say(ends, r"process 1 differs .* set of missing images: count: 1 .*'005\.png'")


@pytest.mark.slow
def test_a_photo_that_one_process_cannot_read(run):
    """Found out inside the input, while the other process waits for the update."""
    ends = run({"data.cache_features": False}, events={1: {"images_that_break": "020.png"}})
    assert_all_say(ends, r"1 images could not be read, more than the 0 that .*020\.png: cannot be")
    assert "error: process 1: 1 images" in ends[0].output


@pytest.fixture(scope="module")
def waited(forked: Nursery, short_run, tmp_path_factory) -> list[list[Ended]]:
    """Ends of two runs at once, as they do little but wait: for a photo, and for a heartbeat."""
    hang = {"data.cache_features": False, "runtime.timeout": 20.0}
    plans = [(hang, {1: {"images_that_hang": "020.png"}}), ({}, {1: {"killed_at_step": 3}})]
    folders = [tmp_path_factory.mktemp("waited") for _ in plans]

    def start(plan, folder) -> list[Ended]:
        changes, events = plan
        settings = short_run | CHANGES | changes
        return forked.run(settings, folder / "run", processes=2, devices=1, events=events)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(start, plans, folders))


@pytest.mark.slow
def test_a_photo_on_a_disk_that_does_not_answer(waited):
    ends, _ = waited
    assert_all_say(ends, r"process 1: waited longer than 20 s .* for the input of step \d")


@pytest.mark.slow
def test_a_full_disk_under_the_cache(run):
    ends = run(events={0: {"disk_full_at_cache": True}})
    assert_all_say(ends, r"cannot write to .*File too large")
    assert "error: process 0: cannot write" in ends[1].output


@pytest.mark.slow
def test_a_full_disk_under_one_process_part_of_a_checkpoint(run, tmp_path):
    ends = run(events={1: {"disk_full_at_step": 2}})
    # Threads of orbax print tracebacks of their own there, in the middle of lines.
    assert ends[1].status == 1 and "error: cannot write a checkpoint to" in ends[1].output
    assert_all_say(ends, r"process 1: cannot write a checkpoint to .*File too large", fallen=1)
    assert checkpoint_steps(tmp_path / "run") == []


@pytest.mark.slow
def test_a_process_that_is_killed(waited):
    _, ends = waited
    assert ends[1].status == -9
    assert_all_say(ends, r"process 1: no sign of life for \d+ s: killed, crashed, or", fallen=1)


@pytest.mark.slow
def test_the_main_process_is_killed(run):
    """The board is gone with it: JAX itself ends the others, and says why."""
    ends = run(events={0: {"killed_at_step": 3}})
    assert ends[0].status == -9 and ends[1].status not in (0, None)
    assert re.search(r"leader task was preempted/died|process 0: ", ends[1].output)
    assert ends[1].seconds - ends[0].seconds < SOON


@pytest.mark.slow
def test_a_process_that_never_starts(run):
    (end,) = run({"runtime.timeout": 2.0}, started=[0])
    assert_all_say([end], r"not all processes came to localhost:\d+ within 2 s .*was every process")


@pytest.fixture(scope="module")
def stopped(forked, short_run, tmp_path_factory):
    """Two processes of a long run, of which one alone received SIGTERM; workdir and ends."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    settings = short_run | CHANGES | {"train.total": "100000 steps", "checkpoint.every": "0 steps"}
    events = {1: {"sigterm_at_step": 5}}
    return workdir, forked.run(settings, workdir, processes=2, devices=1, events=events)


@pytest.mark.slow
def test_sigterm_on_one_host_stops_all_at_one_step(stopped):
    workdir, ends = stopped
    assert [end.status for end in ends] == [143, 143], "\n\n".join(e.output for e in ends)
    steps = {re.search(r"stopped by SIGTERM after step (\d+); to", e.output)[1] for e in ends}
    assert len(steps) == 1
    (step,) = checkpoint_steps(workdir)
    assert {str(step)} == steps and step >= 5
    assert max(read_metrics(workdir)) == step
    assert "process 1 received SIGTERM: all stop" in ends[0].output
