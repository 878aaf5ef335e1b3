"""Plain values come back; classes, tensors and memory bombs do not."""

import io
import pickle

import pytest
from hostile import child
from hostile.evil import Evil

from negclip_jax.common import plain_pickle

PLAIN = {"a": [1, 2.5, None, True], "b": ("x", {3}), "c": {"caf\u00e9": b"bytes"}}


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values(protocol):
    if protocol in (2, 4):
        assert plain_pickle.load(io.BytesIO(pickle.dumps(PLAIN, 4))) == PLAIN
    simple = {key: PLAIN["a"] for key in "ab"}
    assert plain_pickle.load(io.BytesIO(pickle.dumps(simple, protocol))) == simple


def test_strings_of_python_2():
    assert plain_pickle.load(io.BytesIO(b"S'caf\\xe9'\n."), encoding="latin-1") == "caf\u00e9"


@pytest.mark.parametrize("content", [Evil("x"), Evil, open, {"a": [ValueError()]}])
def test_classes_and_functions_are_refused(content, tmp_path):
    content = Evil(tmp_path / "ran") if isinstance(content, Evil) else content
    with pytest.raises(pickle.UnpicklingError, match="it asks for"):
        plain_pickle.load(io.BytesIO(pickle.dumps(content)))
    assert not (tmp_path / "ran").exists()


def test_a_number_in_a_pickle_takes_no_memory():
    """LONG_BINPUT to place 2**30: the unpickler in C would fill 16 GiB."""
    setup = "import io; from negclip_jax.common import plain_pickle"
    code = r"result = plain_pickle.load(io.BytesIO(b'\x80\x02Nr\xff\xff\xff\x3f.'))"
    result, before, after = child.measured(setup, code)
    assert result is None and after - before < 10
