"""Messages about arguments are printable."""

import pytest

from negclip_jax.common.arguments import Parser


def test_an_unknown_argument_is_quoted_without_control_characters(capsys):
    with pytest.raises(SystemExit, match="2"):
        Parser(prog="x").parse_args(["\x1b[31mred\u202e"])
    error = capsys.readouterr().err
    assert r"unrecognized arguments: \x1b[31mred\u202e" in error and "\x1b" not in error
