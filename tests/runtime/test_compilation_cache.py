"""Programs are kept between processes, and one that was cut short is compiled again."""

import subprocess
import sys
import zlib

import pytest
from tiny_runs import ROOT

from negclip_jax.runtime.compilation_cache import _is_whole

COMPILES = """
import sys, logging
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
logging.getLogger("jax").setLevel(logging.WARNING)
import jax
from negclip_jax.runtime import compilation_cache

compilation_cache._MIN_COMPILE_SECONDS = 0
compilation_cache.use(sys.argv[1])
print(jax.jit(lambda x: x + 1)(1.0))
"""


def compile_with(directory) -> str:
    done = subprocess.run(
        [sys.executable, "-c", COMPILES, directory], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_an_entry_that_was_cut_short_is_made_again(tmp_path):
    assert compile_with(tmp_path) == "2.0\n"
    entries = sorted(tmp_path.glob("*-cache"))
    whole = [entry.read_bytes() for entry in entries]
    assert whole
    for entry, content in zip(entries, whole, strict=True):
        entry.write_bytes(content[: len(content) // 2])
    output = compile_with(tmp_path)
    assert output.count("a compiled program that was cut short") == len(entries)
    assert "Warning" not in output, "JAX met none of them"
    assert all(entry.read_bytes() for entry in entries)
    assert sorted(tmp_path.glob("*-cache")) == entries


def test_only_what_is_known_to_be_cut_short_is_removed():
    assert not _is_whole(b"") and not _is_whole(zlib.compress(b"program")[:-1])
    assert _is_whole(zlib.compress(b"program")) and _is_whole(b"of another kind")
