"""`python -m bench`: runs the measurements and collects what they print."""

import subprocess
import types

import pytest

from bench import __main__ as bench


def test_every_measurement_is_run_and_reported(tmp_path, monkeypatch, capsys):
    commands = []

    def run(command, **_):
        commands.append(command[2])
        return types.SimpleNamespace(returncode=0, stdout=f"table of {command[2]}\n")

    monkeypatch.setattr(subprocess, "run", run)
    bench.main([f"--out={tmp_path}"])
    assert commands == [f"bench.{name}" for name in bench.COMMANDS]
    report = (tmp_path / "report.md").read_text()
    assert all(f"table of {command}" in report for command in commands)
    assert "$ python -m bench.finetune --arch=vit_b_32" in capsys.readouterr().out


def test_a_measurement_that_fails_is_named(tmp_path, monkeypatch):
    failed = types.SimpleNamespace(returncode=3, stdout="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SystemExit, match=r"bench\.loader.*exit code 3"):
        bench.main([f"--out={tmp_path}", "--only", "loader"])
