"""Metric files: one line a step, cut back at a restart, and the optional destinations."""

import json
import struct
import sys
import types

import pytest
from etils import epath
from tensorboardX.proto import event_pb2

from negclip_jax.common.errors import InputError
from negclip_jax.runtime.writers import (
    JsonlWriter,
    TensorBoardWriter,
    WandbWriter,
    Writers,
    is_evaluated,
)


@pytest.fixture
def path(tmp_path):
    return epath.Path(tmp_path) / "metrics.jsonl"


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_steps(path, start: int, stop: int, *, resume_step: int, **kwargs) -> None:
    writer = JsonlWriter(path, resume_step=resume_step, **kwargs)
    for step in range(start, stop + 1):
        writer.write(step, {"loss": 1 / step, "val/loss": float(step)})
    writer.close()


def test_several_writes_to_a_step_are_one_line(path):
    writer = JsonlWriter(path, resume_step=0)
    writer.write(1, {"loss": 0.5})
    writer.write(2, {"loss": 0.25})
    writer.write(2, {"val/loss": 3.0})
    writer.flush()
    assert lines(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "val/loss": 3.0}]
    writer.write(3, {"loss": 0.1})
    writer.close()
    assert len(lines(path)) == 3


def test_numbers_come_back_exactly(path):
    write_steps(path, 1, 50, resume_step=0)
    assert [line["loss"] for line in lines(path)] == [1 / step for step in range(1, 51)]


def test_a_digit_that_changed_after_the_save_is_noticed(path, caplog):
    writer = JsonlWriter(path, resume_step=0)
    for step in range(1, 6):
        writer.write(step, {"loss": 0.25 * step})
    writer.flush()
    saved = writer.checksum
    writer.write(6, {"loss": 0.5})
    writer.close()
    for checksum in (saved, None):  # None: of a checkpoint of an earlier version
        assert JsonlWriter(path, resume_step=5, checksum=checksum).checksum == saved
    assert not caplog.text
    text = path.read_text()
    for old, new in (("0.75", "0.74"), ("1.25", "1.26")):
        path.write_text(text.replace(old, new))
        caplog.clear()
        JsonlWriter(path, resume_step=5, checksum=saved)
        assert f"{path} was changed since step 5 was saved" in caplog.text


def test_an_evaluation_that_was_made_up_for_is_no_change(path, caplog):
    writer = JsonlWriter(path, resume_step=0)
    writer.write(1, {"loss": 0.5})
    writer.close()
    saved = writer.checksum
    again = JsonlWriter(path, resume_step=1, checksum=saved)
    again.write(1, {"val/loss": 2.0})
    again.close()  # and killed before the step is saved again
    assert again.checksum != saved
    for checksum in (saved, again.checksum):
        JsonlWriter(path, resume_step=1, checksum=checksum)
        assert not caplog.text


def test_a_restart_drops_the_steps_that_it_will_do_again(path):
    write_steps(path, 1, 9, resume_step=0)
    whole = path.read_bytes()
    write_steps(path, 6, 9, resume_step=5)
    assert path.read_bytes() == whole
    JsonlWriter(path, resume_step=3)
    assert [line["step"] for line in lines(path)] == [1, 2, 3]


def test_a_line_cut_short_is_dropped(path):
    write_steps(path, 1, 5, resume_step=0)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    write_steps(path, 5, 5, resume_step=5)
    assert path.read_bytes() == whole


def test_a_damaged_line_is_lost_alone_and_named(path, caplog):
    path.write_bytes(
        b'{"step": 1, "loss": 1.0}\n{"step": 2, "l\xffss": 2\n{"step": 3, "loss": 3.0}\n'
    )
    JsonlWriter(path, resume_step=3).close()
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps == [1, 3] and "line 2 is damaged and lost" in caplog.text


@pytest.mark.parametrize(("left", "last"), [(0, 0), (3, 3)])
def test_lines_that_are_gone_are_named(path, left, last, caplog):
    write_steps(path, 1, 9, resume_step=0)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:left]))
    if not left:
        path.unlink()
    write_steps(path, 7, 9, resume_step=6)
    assert f"{path} lacks its lines after step {last}: those up to step 6, where" in caplog.text
    caplog.clear()
    write_steps(path, 10, 12, resume_step=9)
    assert not caplog.records


def test_a_run_without_checkpoint_starts_over(path):
    writer = JsonlWriter(path, resume_step=0)
    writer.write(0, {"val/loss": 1.0})
    writer.close()
    JsonlWriter(path, resume_step=0)
    assert path.read_text() == ""


def test_an_evaluation_at_the_former_end_is_dropped(path):
    write_steps(path, 1, 4, resume_step=0)
    JsonlWriter(path, resume_step=4, evaluated=False)
    assert lines(path)[2:] == [
        {"step": 3, "loss": 1 / 3, "val/loss": 3.0},
        {"step": 4, "loss": 0.25},
    ]


def test_an_evaluation_that_a_stopped_run_left_out_completes_its_line(path):
    writer = JsonlWriter(path, resume_step=0)
    for step in (1, 2):
        writer.write(step, {"loss": 1 / step})
    writer.close()
    assert not is_evaluated(path, 2) and not is_evaluated(path, 9)
    writer = JsonlWriter(path, resume_step=2)
    writer.write(2, {"val/loss": 0.25})
    assert is_evaluated(path, 2), "at once: a killed run must not evaluate again"
    writer.write(3, {"loss": 1 / 3})
    writer.close()
    assert lines(path) == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.5, "val/loss": 0.25},
        {"step": 3, "loss": 1 / 3},
    ]


def events(directory) -> list[event_pb2.Event]:
    found = []
    for file in sorted(directory.iterdir()):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("Q", data[:8])
            found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def test_tensorboard_events(tmp_path):
    directory = epath.Path(tmp_path) / "deep" / "tensorboard"
    writer = TensorBoardWriter(directory, resume_step=12)
    writer.write(13, {"loss": 0.5, "val/loss": 0.25})
    writer.close()
    version, start, scalars = events(directory)
    assert version.file_version == "brain.Event:2"
    # TensorBoard hides what an earlier process wrote from this step on.
    assert (start.step, start.session_log.status) == (13, event_pb2.SessionLog.START)
    assert scalars.step == 13 and scalars.wall_time > 1e9
    values = {value.tag: value.simple_value for value in scalars.summary.value}
    assert values == {"loss": 0.5, "val/loss": 0.25}


def test_wandb_that_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    message = r"log\.wandb is set, but wandb is not installed: pip install -e '\.\[wandb\]'"
    with pytest.raises(InputError, match=message):
        WandbWriter("project", epath.Path(tmp_path), {})


def test_wandb_continues_under_the_same_id(monkeypatch, tmp_path):
    started, logged = [], []
    run = types.SimpleNamespace(
        log=lambda metrics, step: logged.append((step, metrics)), finish=lambda: None
    )
    fake = types.SimpleNamespace(init=lambda **kwargs: started.append(kwargs) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    writer = WandbWriter("negation", epath.Path(tmp_path) / "b32", {"seed": 0})
    writer.write(3, {"loss": 1.0})
    writer.close()
    assert logged == [(3, {"loss": 1.0})]
    (arguments,) = started
    assert arguments["id"] == "b32" and arguments["resume"] == "allow"
    assert (arguments["project"], arguments["config"]) == ("negation", {"seed": 0})


class Recorder:
    def __init__(self, error: type | None = None):
        self.calls: list[str] = []
        self._error = error

    def write(self, step, metrics):
        self.calls.append("write")

    def flush(self, *, durable=True):
        self.calls.append("flush")

    def close(self):
        self.calls.append("close")
        if self._error:
            raise self._error


def test_all_destinations_get_everything_and_are_all_closed():
    first, second, of_timing = Recorder(OSError), Recorder(), Recorder()
    writers = Writers([first, second], [of_timing, second])
    writers.write(1, {})
    writers.flush()
    writers.close()
    assert first.calls == second.calls == ["write", "flush", "close"]
    assert of_timing.calls == ["flush", "close"]
