"""The store on JAX's real coordinator: values, folders, and what comes too late."""

import sys
import threading
import time

import jax
import pytest
from coordinators import connected
from jax.experimental import multihost_utils

from negclip_jax.common.errors import InputError
from negclip_jax.runtime.coordinator import CoordinatorStore, Late, Unreachable


@pytest.fixture(scope="module")
def stores():
    with connected(3) as three:
        yield three


def test_values_are_seen_by_all(stores):
    assert stores[1].get("value/a") is None
    stores[0].put("value/a", {"x": [1, None]})
    assert stores[1].get("value/a") == {"x": [1, None]}
    stores[2].put("value/a", 2.5)
    assert stores[0].get("value/a") == 2.5


def test_the_first_writer_wins(stores):
    assert stores[2].put_first("race", "two") is True
    assert stores[1].put_first("race", "one") is False
    assert stores[1].get("race") == "two"


def test_a_folder_is_read_at_once(stores):
    assert stores[0].folder("heartbeat") == {}
    for i, store in enumerate(stores):
        store.put(f"heartbeat/{i}", 10 * i)
    stores[0].put("beats", "not in it")
    assert stores[1].folder("heartbeat") == {"0": 0, "1": 10, "2": 20}


def test_waiting_ends_with_the_value_or_in_time(stores):
    threading.Timer(0.2, lambda: stores[0].put("soon", "here")).start()
    assert stores[1].wait_for("soon", 10.0) == "here"
    started = time.monotonic()
    with pytest.raises(Late) as late:
        stores[1].wait_for("never", 0.3)
    assert late.value.processes == [] and time.monotonic() - started < 5


def test_a_barrier_names_those_that_did_not_come(stores):
    found: list = []

    def come(store):
        try:
            store.barrier("meeting", 1.0)
        except Late as late:
            found.append(late.processes)

    threads = [threading.Thread(target=come, args=(store,)) for store in (stores[0], stores[2])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == [[1], [1]]


def test_a_coordinator_that_fails_is_unreachable(stores):
    class Broken:
        def key_value_set(self, *arguments):
            import jax

            raise jax.errors.JaxRuntimeError("UNAVAILABLE: Socket closed\nand more")

    store = type(stores[0])(Broken())
    with pytest.raises(Unreachable, match=r"^UNAVAILABLE: Socket closed$"):
        store.put("a", 1)


def test_jax_has_no_public_store_yet():
    """When this fails, `CoordinatorStore` can do without `jax._src`."""
    public = {name for name in dir(jax.distributed) if not name.startswith("_")}
    assert public <= {"initialize", "is_initialized", "shutdown"}
    assert not [name for name in dir(multihost_utils) if "key_value" in name]


def test_a_jax_that_has_moved_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax._src.distributed", None)
    with pytest.raises(InputError, match=r"JAX [\d.]+ has moved .*: install jax 0\.8 to"):
        CoordinatorStore()
