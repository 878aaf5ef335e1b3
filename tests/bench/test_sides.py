"""Two processes that take turns."""

import pytest

from bench.sides import Side, peak_memory


def test_calls_keep_their_state_in_the_other_process():
    with Side("fractions:Fraction", 1, 3) as side:
        assert side("limit_denominator", 2) == pytest.approx(0.5)


def test_an_exception_comes_back_with_its_traceback():
    with Side("fractions:Fraction", 1, 3) as side, pytest.raises(RuntimeError, match="no_such"):
        side("no_such")


def test_an_exception_while_starting_is_raised_too():
    with pytest.raises(RuntimeError, match="ZeroDivisionError"), Side("fractions:Fraction", 1, 0):
        pass


def test_a_process_that_ends_is_noticed():
    with Side("os:popen", "true") as side:
        side._process.kill()
        with pytest.raises(RuntimeError, match=r"-9.*memory"):
            side("read")


def test_peak_memory_grows_with_what_is_allocated():
    before = peak_memory()
    block = b"x" * max(2**26, before)
    assert peak_memory() > before
    del block
