"""Cells of one column begin, or end, at one place."""

from negclip_jax.common.tables import aligned

LINES = [["", "a", "longer"], ["first", "10.0"], ["x", "7.5", "n"]]


def test_columns_are_as_wide_as_their_widest_cell():
    assert aligned(LINES) == "       a     longer\nfirst  10.0\nx      7.5   n"


def test_numbers_end_at_one_place():
    assert aligned(LINES, right=True) == "          a  longer\nfirst  10.0\nx       7.5       n"


def test_no_lines():
    assert aligned([]) == ""


def test_a_cell_stays_in_its_line():
    assert aligned([["a\nb", "\x1b[2J"], ["c", "d"]]) == "a\\nb  \\x1b[2J\nc     d"
