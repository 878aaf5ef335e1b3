"""The command line: what it accepts, how fast it answers, what it says of mistakes."""

import argparse
import subprocess
import sys

import pytest
from tiny_runs import ROOT, processor_seconds_of_children

from evals import __main__ as command_line
from negclip_jax.common.errors import InputError


def parsed(*arguments: str) -> argparse.Namespace:
    return command_line._parser().parse_args(["--data=d", "--out=o", *arguments])


def test_help_is_instant_needs_no_jax_and_lists_the_benchmarks():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['evals', '--help']\n"
        "try:\n    runpy.run_module('evals', run_name='__main__')\n"
        "except SystemExit as stopped:\n    assert not stopped.code\n"
        "assert 'jax' not in sys.modules, 'jax was imported'\n"
    )
    started = processor_seconds_of_children()
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert processor_seconds_of_children() - started < 2
    for word in ("--interpolate", "--allow-subset", "negrefcocog, negbench_mcq", "report.html"):
        assert word in run.stdout


def test_defaults():
    args = parsed()
    assert args.benchmarks == ["available"] and args.model == [] and args.seed == 0
    assert args.alphas == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1])


def test_lists():
    args = parsed("--benchmarks=valse, pope,,valse", "--model=a", "--model=b", "--data=e")
    assert args.benchmarks == ["valse", "pope"] and args.model == ["a", "b"]
    assert [str(path) for path in args.data] == ["d", "e"]


@pytest.mark.parametrize(
    ("text", "alphas"),
    [
        ("0,0.5,1", [0, 0.5, 1]),
        ("0,0.25,...,1", [0, 0.25, 0.5, 0.75, 1]),
        ("0,0.5,0.6,...,0.8", [0, 0.5, 0.6, 0.7, 0.8]),
        ("0", [0]),
    ],
)
def test_alphas(text, alphas):
    assert parsed(f"--alphas={text}").alphas == pytest.approx(alphas)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--alphas=0,x", "'0,x' is no list like 0,0.5,1 or 0,0.1,...,1"),
        ("--alphas=0,...,1", "is no list like"),
        ("--alphas=0,0,...,1", "is no list like"),
        ("--interpolate=a", "'a' is not BASE,TUNED"),
        ("--dtype=float16", "invalid choice: 'float16'"),
    ],
)
def test_malformed_flags(flag, message, capsys):
    with pytest.raises(SystemExit):
        parsed(flag)
    assert message in capsys.readouterr().err


def test_a_user_error_is_one_line_and_status_1(monkeypatch, capsys):
    def refuse(args):
        raise InputError("the message")

    monkeypatch.setattr(command_line, "evaluate", refuse)
    monkeypatch.setattr("negclip_jax.runtime.console.set_up_logging", lambda: None)
    assert command_line.main(["--data=d", "--out=o"]) == 1
    assert capsys.readouterr().err == "error: the message\n"


def test_ctrl_c_says_how_to_continue(monkeypatch, capsys):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "evaluate", interrupt)
    monkeypatch.setattr("negclip_jax.runtime.console.set_up_logging", lambda: None)
    assert command_line.main(["--data=d", "--out=runs/o"]) == 130
    assert "the same command continues in runs/o" in capsys.readouterr().err
