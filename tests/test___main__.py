"""The list of commands: all of them, on one screen."""

import importlib
import importlib.util

import pytest
from tiny_runs import ROOT

from negclip_jax import __main__ as commands

LISTED = {command: told for group in commands.COMMANDS.values() for command, told in group.items()}


def test_every_package_that_runs_is_listed():
    runs = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for name in ("data_gen", "evals", "bench", "quickstart")
        for path in (ROOT / name).rglob("__main__.py")
    }
    modules = {command.split()[2] for command in LISTED if command.startswith("python -m ")}
    alone = {f"negclip_jax.interop.{name}" for name in ("export", "image_features")}
    assert runs | alone | {"evals.catalogue"} == modules
    assert all(importlib.util.find_spec(module) for module in modules)


def test_subcommands_are_those_of_data_gen(capsys):
    cli = importlib.import_module("data_gen.cli")
    for command in LISTED:
        if command.startswith("python -m data_gen "):
            with pytest.raises(SystemExit):
                cli.main([command.split()[3], "--help"])
            assert "usage: " in capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["--help"]])
def test_it_fits_a_screen(argv, capsys):
    try:
        assert commands.main(argv) == 0
    except SystemExit as end:
        assert end.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 40 and max(map(len, lines)) <= 80
    assert all(any(line.strip().startswith(command) for line in lines) for command in LISTED)
