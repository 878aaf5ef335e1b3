"""Messages about arguments are printable."""

import pytest

from negclip_jax.common.arguments import Parser, split_name


def test_an_unknown_argument_is_quoted_without_control_characters(capsys):
    with pytest.raises(SystemExit, match="2"):
        Parser(prog="x").parse_args(["\x1b[31mred\u202e"])
    error = capsys.readouterr().err
    assert r"unrecognized arguments: \x1b[31mred\u202e" in error and "\x1b" not in error


def test_a_renamed_flag_works_with_a_warning(capsys):
    parser = Parser(prog="x")
    parser.renamed = {"--old": "--new"}
    parser.add_argument("--new", required=True)
    parser.add_argument("rest", nargs="*")
    for words in (["--old=a=b", "c"], ["--old", "a=b", "c"]):
        args = parser.parse_args(words)
        assert (args.new, args.rest) == ("a=b", ["c"])
        told = "warning: --old is now --new; the old flag works until the next release\n"
        assert capsys.readouterr().err == told
    assert parser.parse_args(["--new=--old", "c"]).new == "--old"
    assert not capsys.readouterr().err and "--old" not in parser.format_help()


def test_flags_of_which_one_is_needed_are_named_with_what_is_missing(capsys):
    parser = Parser(prog="x")
    parser.add_argument("--out", required=True)
    parser.add_argument("--a")
    parser.add_argument("--b")
    parser.add_argument("texts", nargs="*")
    parser.needed = (("--a", "--b"), ("TEXT", "--a"))
    for words, told in (
        ([], "--out, --a or --b, TEXT or --a"),
        (["--b=1", "x"], "--out"),
        (["--a.c=1"], "--out"),
    ):
        with pytest.raises(SystemExit):
            parser.parse_args(words) if words != ["--a.c=1"] else parser.parse_known_args(words)
        assert capsys.readouterr().err.endswith(f"required: {told}\n")
    assert parser.parse_args(["--out=x"]).out == "x"  # the command says what it needs


def test_help_begins_with_what_it_does():
    parser = Parser("x", "What it does.\n\n    x --flag=1\n")
    parser.add_argument("--flag")
    shown = parser.format_help()
    assert shown.startswith("What it does.\n\n    x --flag=1\n\nusage: x [-h] [--flag FLAG]")
    assert shown == parser.format_help() and shown.count("What it does") == 1


def test_names_of_models():
    assert split_name("a=runs/b@last+ema") == ("a", "runs/b@last+ema")
    assert split_name("runs/b=c/d/") == ("d", "runs/b=c/d/")
