"""Progress on a terminal and in plain lines, and the log file."""

import io
import logging
import os
import subprocess
import sys
import threading

import pytest
from etils import epath
from rich.console import Console

from negclip_jax.common import storage
from negclip_jax.runtime import console

TIMING = {
    "pairs_per_second": 1234.5,
    "data_wait_share": 0.125,
    "seconds_per_step": 0.5,
    "eta_seconds": 3725.0,
}
STATUS = "loss 1.2346  1,234 pairs/s  data wait 12%  ETA 1:02:05"


@pytest.fixture
def screen(monkeypatch):
    """Function that gives the console a stream of its own, a terminal or not."""

    def make(*, terminal: bool) -> io.StringIO:
        stream = io.StringIO()
        fake = Console(file=stream, force_terminal=terminal, width=120, highlight=False)
        monkeypatch.setattr(console, "_stderr", fake)
        return stream

    return make


@pytest.fixture
def log(monkeypatch):
    """The root logger as launch.py sets it up; put back afterwards."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    console.set_up_logging()
    yield root
    root.handlers[:] = before
    root.setLevel(level)


def test_without_a_terminal_there_are_plain_lines_now_and_then(screen, log, tmp_path):
    stream = screen(terminal=False)
    file = console.log_to_file(epath.Path(tmp_path))
    with console.TrainingProgress(start=0, total=40) as progress:
        for step in (10, 20, 30, 40):
            progress.update(step, {"loss": 1.23456}, TIMING)
    file.detach()
    # The first, nothing for ten seconds, and the last; the file has them all.
    shown = stream.getvalue().splitlines()
    assert shown == [f"step {step}/40  {STATUS}" for step in (10, 40)]
    logged = (tmp_path / "train.log").read_text().splitlines()
    assert [line.split(" INFO ")[1] for line in logged] == [
        f"step {step}/40  {STATUS}" for step in (10, 20, 30, 40)
    ]


def test_on_a_terminal_there_is_a_bar(screen, log, tmp_path):
    stream = screen(terminal=True)
    file = console.log_to_file(epath.Path(tmp_path))
    with console.TrainingProgress(start=5, total=40) as progress:
        progress.update(20, {"loss": 1.23456}, TIMING)
    file.detach()
    shown = stream.getvalue()
    assert "training" in shown and "20/40" in shown and STATUS in shown
    assert f"step 20/40  {STATUS}" not in shown
    assert f"step 20/40  {STATUS}" in (tmp_path / "train.log").read_text()


def test_a_plain_bar_says_now_and_then_how_long_it_takes(screen, log, monkeypatch):
    stream, now = screen(terminal=False), [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.Bar("images", 4000) as bar:
        for _ in range(3):
            now[0] += 6
            bar.advance(500)
    lines = ["images: 500 of 4,000, ETA 0:42", "images: 1,500 of 4,000, ETA 0:30"]
    assert stream.getvalue().splitlines() == lines
    with console.Bar("images", None) as bar:
        now[0] += 6
        bar.advance(500)
    assert stream.getvalue().splitlines()[-1] == "images: 500"


def test_the_estimate_of_what_continues_leaves_out_what_was_there(screen, log, monkeypatch):
    stream, now = screen(terminal=False), [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.Bar("images", 2000, done=900) as bar:
        now[0] += 10
        bar.advance(100)
    assert stream.getvalue().splitlines() == ["images: 1,000 of 2,000, ETA 1:40"]


def test_other_processes_show_nothing(screen, log):
    stream = screen(terminal=False)
    with console.TrainingProgress(start=0, total=40, enabled=False) as progress:
        progress.update(40, 1.0, TIMING)
    assert stream.getvalue() == ""


def test_messages_reach_console_and_file_but_libraries_only_warn(screen, log, tmp_path):
    stream = screen(terminal=False)
    file = console.log_to_file(epath.Path(tmp_path))
    logging.info("80 pairs [of] images")  # brackets are no markup
    logging.getLogger("orbax").info("chatter")
    logging.getLogger("httpx2").info("HTTP Request: POST ...")  # what huggingface_hub stands on
    logging.getLogger("orbax").warning("trouble")
    file.detach()
    logging.info("after the run")
    assert stream.getvalue().splitlines() == ["80 pairs [of] images", "trouble", "after the run"]
    logged = (tmp_path / "train.log").read_text()
    assert "80 pairs [of] images" in logged and "WARNING trouble" in logged
    assert "chatter" not in logged and "after the run" not in logged


def test_a_log_continues_that_of_the_process_before(log, tmp_path):
    for message in ("first", "second"):
        file = console.log_to_file(epath.Path(tmp_path))
        logging.info(message)
        file.detach()
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [line.split(" INFO ")[1] for line in lines] == ["first", "second"]


def test_what_is_logged_while_the_log_is_written_is_not_lost(log, tmp_path, monkeypatch):
    """The client of a bucket speaks of its requests, from a thread that is being waited for."""
    file = console.log_to_file(epath.Path(tmp_path))
    append = storage.LineFile.append

    def talkative(self, lines, **options):
        if "first" in "".join(lines):
            thread = threading.Thread(target=logging.info, args=("request",))
            thread.start()
            thread.join(timeout=10)
            assert not thread.is_alive(), "the two threads wait for each other"
        append(self, lines, **options)

    monkeypatch.setattr(storage.LineFile, "append", talkative)
    logging.info("first")
    file.detach()
    text = (tmp_path / "train.log").read_text()
    assert text.index("first") < text.index("request")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux' /dev/full")
def test_a_log_file_on_a_full_disk_is_quiet(log, tmp_path, capsys):
    file = console.log_to_file(epath.Path(tmp_path))
    (tmp_path / "train.log").unlink(missing_ok=True)
    (tmp_path / "train.log").symlink_to("/dev/full")
    logging.info("lost")
    file.detach()
    assert "Traceback" not in capsys.readouterr().err


def test_an_error_is_one_sentence(capsys):
    console.fail("no such file")
    assert capsys.readouterr().err == "error: no such file\n"


def test_a_pipe_gets_plain_lines_from_a_notebook_too():
    """Its kernel asks for colour in the environment, and draws no bar."""
    script = "from negclip_jax.runtime import console\n"
    script += "console.set_up_logging(); console.logging.warning('here')\n"
    script += "with console.Bar('images', 2) as bar: bar.advance(1)"
    env = os.environ | {"FORCE_COLOR": "1", "TERM": "xterm-color"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "here\n")
