"""Two processes never work in one run's directory."""

import os
import subprocess
import sys

import pytest

from negclip_jax.common.errors import InputError
from negclip_jax.common.run_lock import locked

HOLD = (
    "import sys; from pathlib import Path; from negclip_jax.common.run_lock import locked\n"
    "with locked(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
)


def test_the_holder_is_named_and_a_killed_one_holds_nothing(tmp_path):
    run = tmp_path / "new" / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    with (
        pytest.raises(InputError, match=rf"run is in use by process {holder.pid} on .*; wait"),
        locked(run),
    ):
        pass
    holder.kill()
    holder.communicate()
    with locked(run):
        assert str(os.getpid()) in (run / "lock").read_text()
        (run / "lock").write_text("{")
        with pytest.raises(InputError, match="in use by another process"), locked(run):
            pass
    with locked(run):
        pass


def test_a_directory_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    said = r"cannot be written to \(Not a directory\); give another --out"
    with pytest.raises(InputError, match=said), locked(tmp_path / "file" / "run"):
        pass
