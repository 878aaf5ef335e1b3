"""Sentences for people: no stranger's text in them moves the cursor or turns the line around."""

import pickle

import pytest

from negclip_jax.common.errors import InputError, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a cat\tand\na dog", "a cat\tand\na dog"),
        ("caf\u00e9 \u732b \U0001f408 \u00a0\u3000", "caf\u00e9 \u732b \U0001f408 \u00a0\u3000"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("\x9b31m \x7f \0 \r", r"\x9b31m \x7f \x00 \r"),
        ("gpj.\u202etac \u2066x\u2069 \u200e", r"gpj.\u202etac \u2066x\u2069 \u200e"),
        ("\ud800 \u2028 \ufeff \U000e0041", r"\ud800 \u2028 \ufeff \U000e0041"),
    ],
)
def test_controls_are_written_out(text, shown):
    assert printable(text) == shown
    assert printable(shown) == shown
    assert str(InputError(text)) == shown


@pytest.mark.parametrize("filling", ["x", "\x1b", "\U000e0041"])
def test_a_message_is_never_megabytes_long(filling):
    said = str(InputError("head" + filling * 10**6 + "tail"))
    assert len(said) <= 8000 and said.startswith("head") and said.endswith("tail")
    assert " characters ...] " in said
    assert str(InputError(said)) == said == printable(said)
    long = "a table\n" * 10_000
    assert printable(long) == long  # what a command prints is as long as it is


def test_errors_survive_the_way_between_processes():
    again = pickle.loads(pickle.dumps(InputError("a\x1b.jpg is missing")))
    assert type(again) is InputError and str(again) == r"a\x1b.jpg is missing"
