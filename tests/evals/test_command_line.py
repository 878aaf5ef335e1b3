"""How commands end, and what they check before they begin."""

import argparse
import os
import signal
import subprocess
import sys

import pytest

from evals import command_line
from negclip_jax.common.errors import InputError


@pytest.fixture(autouse=True)
def root_logger_left_alone(monkeypatch):
    monkeypatch.setattr("negclip_jax.runtime.console.set_up_logging", lambda: None)


def execute(run) -> int:
    parser = command_line.parser("evals", None)
    command_line.add_shared(parser, "--out", "--seed")
    stopped = "stopped; continue in {out}"
    return command_line.execute(parser, run, ["--out=runs/x"], stopped=stopped)


def test_status_of_the_work():
    assert execute(lambda args: None) == 0
    assert execute(lambda args: 3 + args.seed) == 3


@pytest.mark.parametrize("error", [InputError("a.json: no pairs"), OSError("a.json: disk full")])
def test_a_user_error_is_one_line_and_status_1(error, capsys):
    def run(args):
        raise error

    assert execute(run) == 1
    assert str(error) in capsys.readouterr().err


def test_ctrl_c_says_how_to_continue(capsys):
    def run(args):
        raise KeyboardInterrupt

    assert execute(run) == 130
    assert capsys.readouterr().err == "stopped; continue in runs/x\n"


def test_other_errors_are_not_hidden():
    def run(args):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        execute(run)


def test_lists_hold_each_name_once():
    assert command_line.comma_separated("a, b,,a ") == ["a", "b"]


def test_the_place_of_results_is_tried_first(tmp_path):
    command_line.require_writable(tmp_path / "new" / "out")
    assert list((tmp_path / "new" / "out").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write to --out=.*file: File exists"):
        command_line.require_writable(tmp_path / "file")


def test_embeddings_lie_beside_the_results_unless_told_otherwise(tmp_path):
    args = argparse.Namespace(cache=None, out=tmp_path)
    assert command_line.embedding_cache(args) == tmp_path / "embeddings"
    args.cache = tmp_path / "shared"
    assert command_line.embedding_cache(args) == tmp_path / "shared"


@pytest.mark.parametrize("flags", [["--out=a", "--out=b"], ["--out", "a", "--seed=1", "--out=b"]])
def test_a_flag_that_names_something_is_refused_with_two_names(flags, capsys):
    parser = command_line.parser("evals", None)
    command_line.add_shared(parser, "--out", "--seed", "--data")
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args([*flags, "--data=x"])
    assert "argument --out: given twice, a and b: give one of them" in capsys.readouterr().err
    args = parser.parse_args(["--out=a", "--out=a", "--data=x", "--data=y", "--seed=1", "--seed=2"])
    assert [str(found) for found in (args.out, *args.data, args.seed)] == ["a", "x", "y", "2"]


def test_too_little_memory_is_one_line_that_says_what_to_give(capsys):
    def run(args):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9465793024 bytes.\nmore")

    parser = command_line.parser("evals", None)
    assert command_line.execute(parser, run, [], needs_less=command_line.LESS_MEMORY) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "too little memory" in error and "--dtype=bfloat16" in error


COMMANDS = ["evals", "evals.search", "evals.segmentation", "evals.text_to_image"]
COMMANDS += ["evals.catalogue", "evals.frames"]


@pytest.mark.parametrize("module", COMMANDS)
def test_help_needs_no_model_and_no_time_and_may_be_cut_off(module):
    code = (
        f"import runpy, sys; sys.argv = ['x', '--help']\n"
        f"try:\n    runpy.run_module({module!r}, run_name='__main__')\n"
        "finally:\n    assert not {'jax', 'torch', 'transformers'} & set(sys.modules)"
    )
    closed, writer = os.pipe()
    os.close(closed)
    began = os.times().children_user
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.returncode == 0 and not shown.stderr and "usage: python -m" in shown.stdout
    assert os.times().children_user - began < 2  # seconds of processor time
    cut = subprocess.run(
        [sys.executable, "-m", module, "--help"], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert cut.returncode in (0, 128 + signal.SIGPIPE) and not cut.stderr


def test_output_that_nothing_reads_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "evals.catalogue"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
