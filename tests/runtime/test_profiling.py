"""Traces of training steps: which steps, where they lie, and that tools can read them."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest
from etils import epath
from fake_bucket import bucket, served
from tiny_runs import EVALUATORS

from negclip_jax.common.errors import InputError
from negclip_jax.runtime.profiling import Profile, parse_steps
from negclip_jax.training.loop import train

__all__ = ["bucket", "served"]  # fixtures
FOLDER = "profile/plugins/profile/steps_{}"


@pytest.mark.parametrize(
    ("text", "steps"),
    [(None, []), ("", []), ("7", [7]), ("11-13", [11, 12, 13]), (" 2 - 3 ", [2, 3])],
)
def test_steps_are_a_number_or_a_range(text, steps):
    assert list(parse_steps(text)) == steps


@pytest.mark.parametrize("text", ["0", "0-3", "5-4", "a", "3-", "3,4", "1e2", "-3"])
def test_other_words_are_refused(text):
    with pytest.raises(InputError, match=r"log\.profile_steps: cannot read .* as in '11-13'"):
        parse_steps(text)


def take(profile: Profile, steps: range) -> None:
    double = jax.jit(lambda x: x * 2)
    x = jnp.ones(3)
    for step in steps:
        profile.begin(step, x)
        x = double(x)
        profile.end(step, x)


def traced(file: epath.Path) -> list[str]:
    """Steps that a trace names, in the file for Perfetto."""
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    return [event["args"]["step_num"] for event in events if event.get("name") == "train"]


def test_a_run_that_goes_on_traces_what_is_left(tmp_path, caplog):
    caplog.set_level("INFO")
    take(Profile(range(4, 7), epath.Path(tmp_path), start=4, total=9), range(5, 10))
    folder = tmp_path / FOLDER.format("5-6")
    assert traced(folder / "process_0.perfetto_trace.json.gz") == ["5", "6"]
    assert "traced steps 5 to 6: tensorboard --logdir=" in caplog.text
    take(Profile(range(4, 7), epath.Path(tmp_path), start=6, total=9), range(7, 10))
    assert "log.profile_steps lies before step 7: nothing is traced" in caplog.text
    assert len(list((tmp_path / "profile/plugins/profile").iterdir())) == 1


def test_a_run_that_stops_in_between_keeps_what_it_traced(tmp_path):
    profile = Profile(range(2, 9), epath.Path(tmp_path), start=0, total=9)
    take(profile, range(1, 4))
    profile.close()
    file = tmp_path / FOLDER.format("2-3") / "process_0.perfetto_trace.json.gz"
    assert traced(file) == ["2", "3"]


def test_steps_that_the_run_does_not_have_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"profile_steps=8-10 ends after the run, which has 9"):
        Profile(range(8, 11), epath.Path(tmp_path), start=0, total=9)


def test_it_may_lie_in_a_bucket(served, bucket):
    take(Profile(range(1, 2), epath.Path("gs://tiny/run"), start=0, total=1), range(1, 2))
    names = {name.rpartition("/")[2] for name in bucket.names("gs://tiny/run/profile")}
    assert names == {"process_0.perfetto_trace.json.gz", "process_0.xplane.pb"}


@pytest.mark.slow
def test_a_traced_run_is_the_same_run(finished_run, make_config, tmp_path, one_device):
    """Its trace names steps, the program and our waiting for input; TensorBoard reads its file."""
    config = make_config(finished_run.changes | {"log.profile_steps": "7-9"})
    train(config, str(tmp_path), EVALUATORS)
    ours, theirs = (w / "metrics.jsonl" for w in (tmp_path, finished_run.workdir))
    assert ours.read_bytes() == theirs.read_bytes()
    folder = tmp_path / FOLDER.format("7-9")
    assert traced(folder / "process_0.perfetto_trace.json.gz") == ["7", "8", "9"]
    data = jax.profiler.ProfileData.from_file(str(folder / "process_0.xplane.pb"))
    lines = [line for plane in data.planes for line in plane.lines]
    names = {event.name for line in lines for event in line.events}
    assert {"train", "wait for data", "PjitFunction(jit(train_step))"} <= names
