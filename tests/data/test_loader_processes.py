"""Worker processes of the loader: as long-lived as the run, and no memory left behind."""

import gc
import os
import subprocess
import sys

import numpy as np
import pytest
from tiny_batches import batches
from tiny_runs import ROOT

WORKERS = """
import os, signal, sys, time
import numpy as np
from absl import flags
from negclip_jax.data.examples import Examples
from negclip_jax.data.images import ImageDirectory, Preprocessor
from negclip_jax.data.loader import PairLoader
from negclip_jax.data.packing import Ragged

def main():
    names = sorted(os.listdir(sys.argv[1]))
    each = np.arange(len(names))
    texts = Ragged(np.ones(8 * len(names), np.int32), np.arange(len(names) + 1) * 8)
    examples = Examples.of_captions(names, each, texts)
    loader = PairLoader(
        examples=examples, images=ImageDirectory(sys.argv[1]),
        preprocess=Preprocessor(32, 32), batch_size=8, workers=2,
    )
    batches = loader.batches(0, 1000)
    next(batches)
    os.killpg(os.getpgid(0), signal.SIGTERM)  # as Slurm does, and Ctrl-C in a terminal
    time.sleep(0.5)
    for _ in range(20):
        next(batches)
    print("workers still load", flush=True)
    if sys.argv[2] == "close":
        batches.close()
    else:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    import signal
    flags.FLAGS.mark_as_parsed()
    signal.signal(signal.SIGTERM, lambda *_: None)
    main()
"""


@pytest.mark.parametrize("end", [pytest.param("close", marks=pytest.mark.slow), "kill"])
def test_worker_processes_live_exactly_as_long_as_the_run(tiny_pairs, tmp_path, end):
    script = tmp_path / "load.py"
    script.write_text(WORKERS)
    process = subprocess.Popen(
        [sys.executable, script, tiny_pairs / "images", end],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    # Returns when every process that inherited the pipes is gone: orphans would keep them open.
    out, err = process.communicate(timeout=60)
    assert out == "workers still load\n", err
    assert process.returncode == (0 if end == "close" else -9)
    assert "Traceback" not in err


@pytest.mark.slow
def test_shared_memory_of_workers_is_given_back(make_loader):
    loaded = batches(make_loader(workers=1), 0, 3)
    assert all(type(x) is np.ndarray for batch in loaded for x in batch.values())
    assert not [x for x in gc.get_objects() if type(x).__name__ == "SharedMemoryArray"]
