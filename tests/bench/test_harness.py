"""What the benchmarks share: two processes that take turns, tables, the yardstick."""

import numpy as np
import pytest

from bench import harness
from bench.harness import Side, matmul_rate, peak_memory


def test_calls_keep_their_state_in_the_other_process():
    with Side("fractions:Fraction", 1, 3) as side:
        assert side("limit_denominator", 2) == pytest.approx(0.5)
        assert side("denominator") == 3  # what is no method is copied


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


@pytest.mark.slow
def test_peak_memory_grows_with_what_is_allocated():
    before = peak_memory()
    block = b"x" * max(2**26, before)
    assert peak_memory() > before
    del block


def test_the_matmul_rate_is_of_the_best_product():
    calls = []
    rate = matmul_rate(lambda a, b: calls.append(a.shape), np.asarray)
    assert len(calls) == 6 and calls[0] == (2048, 2048)
    assert rate > 1e12  # nothing was multiplied, which takes no time


def test_tables_align_their_columns():
    text = harness.markdown(["a", "long header"], [["1", "2"], ["wide cell", "3"]])
    assert len({len(line) for line in text.splitlines()}) == 1
    assert text.splitlines()[1].startswith("| ---")


def test_the_machine_is_described_in_a_line():
    line = harness.describe(harness.machine())
    assert "\n" not in line and "Python 3" in line and "jax" in line


def test_results_that_cannot_be_written_are_said_before_anything_is_measured(tmp_path):
    (tmp_path / "file").write_text("")
    main = harness.command("bench.x", "doc", None)
    with pytest.raises(SystemExit, match=r"bench\.x: cannot write .*file/x\.json: "):
        main([f"--json={tmp_path}/file/x.json"])
