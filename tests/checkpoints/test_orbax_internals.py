"""What is relied on of orbax beyond its interface: each holds, and is still needed."""

import gc
import inspect
import logging
import threading
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint
import pytest
import tensorstore
from orbax.checkpoint._src.checkpointers import async_checkpointer
from orbax.checkpoint._src.serialization import jax_array_handlers, tensorstore_utils

from negclip_jax.checkpoints import orbax_internals
from negclip_jax.runtime import multihost


@pytest.fixture
def told(monkeypatch) -> list:
    found: list = []
    monkeypatch.setattr(multihost, "is_single_process", lambda: False)
    monkeypatch.setattr(multihost, "end_all", lambda *arguments: found.append(arguments))
    return found


def log_in_thread(name: str, error: Exception | None) -> None:
    """As orbax does: through absl's logger, with the exception."""
    logger = logging.getLogger("absl")
    info = (type(error), error, None) if error is not None else None
    thread = threading.Thread(target=lambda: logger.error("failed", exc_info=info), name=name)
    thread.start()
    thread.join()


def test_a_failed_save_is_told_with_what_the_system_said(told):
    outer = ValueError("orbax wrapped it")
    outer.__cause__ = OSError(27, "File too large")
    with orbax_internals.end_on_failed_save("runs/x"):
        log_in_thread("async_save", outer)
    ((reason, error),) = told
    assert error is outer
    assert reason.startswith("cannot write a checkpoint to runs/x: OSError: [Errno 27] File too l")


def test_other_errors_and_other_threads_are_left_alone(told):
    with orbax_internals.end_on_failed_save("runs/x"):
        log_in_thread("async_save", None)
        log_in_thread("somebody", OSError("another matter"))
    log_in_thread("async_save", OSError("after the run"))
    assert told == []


def test_one_process_hears_of_it_from_orbax(told, monkeypatch):
    monkeypatch.setattr(multihost, "is_single_process", lambda: True)
    with orbax_internals.end_on_failed_save("runs/x"):
        log_in_thread("async_save", OSError("disk"))
    assert told == []


def test_orbax_still_logs_so():
    """The name of the thread and the exception are all that is relied on."""
    source = inspect.getsource(async_checkpointer._AsyncManager)
    assert f"name='{orbax_internals.SAVING_THREAD}'" in source
    assert "logging.error(msg, exc_info=True)" in source


def test_orbax_still_names_its_threads_and_files_so():
    folder = Path(orbax.checkpoint.__file__).parent
    source = "".join(path.read_text() for path in sorted(folder.rglob("*.py")))
    threads, files = orbax_internals.WRITING_THREADS, orbax_internals.COMMIT_FILES
    for name in (*threads, *files, orbax_internals.TMP_SUFFIX):
        assert name in source, f"{name} is gone: what relied on it?"


def test_orbax_still_asks_tensorstore_how_much_it_wrote():
    """When this fails, `disable_throughput_log` can go."""
    calls = inspect.getsource(jax_array_handlers).count("ts_utils.get_tensorstore_raw_bytes(")
    assert calls and hasattr(tensorstore_utils, "get_tensorstore_raw_bytes")


def test_tensorstore_still_keeps_what_it_answers(tmp_path):
    """When this fails, `disable_throughput_log` can go."""
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(tmp_path)}}
    array = tensorstore.open(spec, dtype=tensorstore.float32, shape=[4], create=True).result()
    array.write(np.ones(4, np.float32)).result()  # so that there is something to answer

    def lists() -> int:
        gc.collect()
        return sum(type(x) is list for x in gc.get_objects())

    before = lists()
    for _ in range(50):
        tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/")
    assert lists() - before >= 50


def test_orbax_is_kept_from_asking(monkeypatch):
    ask = tensorstore_utils.get_tensorstore_raw_bytes
    monkeypatch.setattr(tensorstore_utils, "get_tensorstore_raw_bytes", ask)
    orbax_internals.disable_throughput_log()
    assert tensorstore_utils.get_tensorstore_raw_bytes() == 0
    monkeypatch.delattr(tensorstore_utils, "get_tensorstore_raw_bytes")
    orbax_internals.disable_throughput_log()  # of an orbax without it


def test_threads_of_a_failed_save_are_awaited():
    done = threading.Event()
    name = f"{orbax_internals.WRITING_THREADS[0]}_0"
    thread = threading.Thread(target=lambda: done.wait(10) and time.sleep(0.1), name=name)
    thread.start()
    done.set()
    orbax_internals.join_writing_threads()
    assert not thread.is_alive()


def test_the_directory_of_a_save(tmp_path):
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "3").mkdir()
    found = [orbax_internals.directory_of_save(tmp_path, step).name for step in (2, 3)]
    assert found == ["2.orbax-checkpoint-tmp", "3"]


@pytest.fixture
def programs(tmp_path):
    """Function of an array that eight devices hold to the number of programs that slice it."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def saved(array: np.ndarray) -> int:
        with jax.log_compiles(), orbax.checkpoint.StandardCheckpointer() as checkpointer:
            tree = {"x": jax.device_put(array, everywhere)}
            found: list = []
            handler = logging.Handler()
            handler.emit = lambda record: found.append(record.getMessage())
            logging.getLogger("jax").addHandler(handler)
            try:
                checkpointer.save(tmp_path / str(array.shape), tree)
                checkpointer.wait_until_finished()
            finally:
                logging.getLogger("jax").removeHandler(handler)
        restored = orbax.checkpoint.StandardCheckpointer().restore(tmp_path / str(array.shape))
        np.testing.assert_array_equal(restored["x"], array)
        return sum("Compiling jit(slice)" in message for message in found)

    return saved


def test_small_arrays_are_written_by_one_device_and_large_ones_by_all(programs, monkeypatch):
    handler = orbax.checkpoint.type_handlers.get_type_handler(jax.Array)
    monkeypatch.setattr(handler, "_min_slice_bytes_for_replica_parallel", None)
    assert programs(np.arange(8 * 5.0)) == 8, "orbax does so itself now"
    orbax_internals.write_small_arrays_whole()
    assert programs(np.arange(8 * 6.0)) == 0
    assert programs(np.zeros((8, 2**18), np.float32)) == 8
