"""The command line of text-to-image: what it accepts, how fast it answers, how it ends."""

import subprocess
import sys

import pytest
from tiny_runs import ROOT, processor_seconds_of_children

from evals.text_to_image import __main__ as text_to_image
from negclip_jax.common.errors import InputError

NEEDED = ["--pipeline=b", "--model=m", "--out=runs/o"]


def test_help_is_instant_and_needs_neither_jax_nor_torch():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['text_to_image', '--help']\n"
        "try:\n    runpy.run_module('evals.text_to_image', run_name='__main__')\n"
        "except SystemExit as stopped:\n    assert not stopped.code\n"
        "assert not {'jax', 'torch', 'diffusers'} & set(sys.modules)\n"
    )
    started = processor_seconds_of_children()
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert processor_seconds_of_children() - started < 2
    for word in ("--stand-in", "--images-per-prompt", "OPENAI_API_KEY", "report.html"):
        assert word in run.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--steps=0", "'0' is not a whole number of 1 or more"),
        ("--batch-size=two", "'two' is not a whole number"),
        ("--judge-timeout=-1", "'-1' is not a number of seconds above 0"),
        ("--judge-timeout=soon", "'soon' is not a number of seconds"),
        ("--dtype=int8", "invalid choice: 'int8'"),
        ("--judge=u --stand-in=c", "not allowed with argument"),
    ],
)
def test_malformed_flags(flags, message, capsys):
    with pytest.raises(SystemExit):
        text_to_image.main([*NEEDED, *flags.split()])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (InputError("the message"), 1, "error: the message\n"),
        (OSError(28, "No space left on device"), 1, "error: [Errno 28] No space left on device\n"),
        (KeyboardInterrupt(), 130, "stopped; the same command continues in runs/o\n"),
    ],
)
def test_how_it_ends(raised, status, said, monkeypatch, capsys):
    def run(args):
        raise raised

    monkeypatch.setattr("evals.text_to_image.__main__.run", run)
    monkeypatch.setattr("negclip_jax.runtime.console.set_up_logging", lambda: None)
    assert text_to_image.main(NEEDED) == status
    assert capsys.readouterr().err == said


def test_defaults():
    args = text_to_image._parser().parse_args(NEEDED)
    assert (args.images_per_prompt, args.steps, args.guidance, args.seed) == (8, 50, None, 0)
    assert args.batch_size == 1 and args.judge is None and args.stand_in is None
