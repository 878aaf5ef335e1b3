import pytest

from evals import entry
from negclip_jax.common.errors import InputError


@pytest.fixture(autouse=True)
def root_logger_left_alone(monkeypatch):
    monkeypatch.setattr("negclip_jax.runtime.console.set_up_logging", lambda: None)


def test_status_of_the_work():
    assert entry.execute(lambda: None, stopped="") == 0
    assert entry.execute(lambda: 3, stopped="") == 3


@pytest.mark.parametrize("error", [InputError("a.json: no pairs"), OSError("a.json: disk full")])
def test_a_mistake_is_a_sentence_and_status_1(error, capsys):
    def work():
        raise error

    assert entry.execute(work, stopped="") == 1
    assert str(error) in capsys.readouterr().err


def test_ctrl_c_says_how_to_continue(capsys):
    def work():
        raise KeyboardInterrupt

    assert entry.execute(work, stopped="stopped; continue in runs/x") == 130
    assert capsys.readouterr().err == "stopped; continue in runs/x\n"


def test_other_errors_are_not_hidden():
    def work():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        entry.execute(work, stopped="")
