"""How commands end, and what they check before they begin."""

import argparse

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
