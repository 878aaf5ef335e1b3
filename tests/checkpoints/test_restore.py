"""Frozen parameters on a disk that fails; what comes back is in test_manifest.py."""

import errno
import json
import os

import jax.numpy as jnp
import pytest
from etils import epath

from negclip_jax.checkpoints.restore import save_frozen
from negclip_jax.common import storage
from negclip_jax.common.errors import InputError


def test_what_an_earlier_attempt_left_is_replaced(tmp_path):
    save_frozen(epath.Path(tmp_path), {"a": jnp.zeros(3), "b": jnp.zeros(2)})
    save_frozen(epath.Path(tmp_path), {"a": jnp.ones(3)})
    assert json.loads((tmp_path / "frozen" / "manifest.json").read_text())["files"]
    save_frozen(epath.Path(tmp_path), {})
    assert not (tmp_path / "frozen").exists()


def test_a_disk_that_takes_no_list(tmp_path, monkeypatch):
    def refuse(file, content):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(file))

    monkeypatch.setattr(storage, "write_whole", refuse)
    with pytest.raises(InputError, match=r"cannot write .*/frozen: OSError: .*Read-only file sys"):
        save_frozen(epath.Path(tmp_path), {"a": jnp.zeros(3)})
