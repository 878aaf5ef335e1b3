"""The board on JAX's real coordinator: values, folders, and what comes too late."""

import threading
import time

import pytest
from boards import connected

from negclip_jax.runtime.coordinator import Late, Unreachable


@pytest.fixture(scope="module")
def boards():
    with connected(3) as three:
        yield three


def test_values_are_seen_by_all(boards):
    assert boards[1].get("value/a") is None
    boards[0].put("value/a", {"x": [1, None]})
    assert boards[1].get("value/a") == {"x": [1, None]}
    boards[2].put("value/a", 2.5)
    assert boards[0].get("value/a") == 2.5


def test_the_first_writer_wins(boards):
    assert boards[2].put_first("race", "two") is True
    assert boards[1].put_first("race", "one") is False
    assert boards[1].get("race") == "two"


def test_a_folder_is_read_at_once(boards):
    assert boards[0].folder("beat") == {}
    for i, board in enumerate(boards):
        board.put(f"beat/{i}", 10 * i)
    boards[0].put("beats", "not in it")
    assert boards[1].folder("beat") == {"0": 0, "1": 10, "2": 20}


def test_waiting_ends_with_the_value_or_in_time(boards):
    threading.Timer(0.2, lambda: boards[0].put("soon", "here")).start()
    assert boards[1].wait_for("soon", 10.0) == "here"
    started = time.monotonic()
    with pytest.raises(Late) as late:
        boards[1].wait_for("never", 0.3)
    assert late.value.processes == [] and time.monotonic() - started < 5


def test_a_barrier_names_those_that_did_not_come(boards):
    found: list = []

    def come(board):
        try:
            board.barrier("meeting", 1.0)
        except Late as late:
            found.append(late.processes)

    threads = [threading.Thread(target=come, args=(board,)) for board in (boards[0], boards[2])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == [[1], [1]]


def test_a_coordinator_that_fails_is_unreachable(boards):
    class Broken:
        def key_value_set(self, *arguments):
            import jax

            raise jax.errors.JaxRuntimeError("UNAVAILABLE: Socket closed\nand more")

    board = type(boards[0])(Broken())
    with pytest.raises(Unreachable, match=r"^UNAVAILABLE: Socket closed$"):
        board.put("a", 1)
