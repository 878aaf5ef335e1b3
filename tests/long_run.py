"""A long training run that watches its own process: `long_run.py CHANGES.json WORKDIR`.

The configuration is `make_config` of conftest.py with the changes of a JSON file. Numbers of the
process are metrics of the run; what remains after a run, one that fails and one that Ctrl-C stops
is printed as JSON.
"""

import gc
import json
import os
import pathlib
import signal
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

_MEMORY_PAGES = 1  # of /proc/self/statm: resident


def watch(context):
    """An evaluator whose numbers are those of this process."""

    def numbers(params) -> dict[str, float]:
        now = remains()
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[_MEMORY_PAGES])
        memory = float(pages * os.sysconf("SC_PAGE_SIZE"))
        objects = float(len(gc.get_objects()) + gc.get_freeze_count())
        return now | {"bytes": memory, "objects": objects, "cpu": time.process_time()}

    return numbers


def remains() -> dict[str, int]:
    """Open files, threads and processes."""
    from tiny_runs import processes_of_session

    gc.collect()  # what waits for Python's collector is no leak
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "processes": len(processes_of_session(os.getsid(0))),
    }


def fail(context):
    """An evaluator that fails in the middle of a run."""
    calls = iter(range(100))

    def evaluate(params) -> dict:
        return {} if next(calls) < 2 else 1 / 0

    return evaluate


def stop(context):
    """An evaluator during which a person presses Ctrl-C."""
    calls = iter(range(100))

    def evaluate(params) -> dict:
        if next(calls) == 2:
            os.killpg(0, signal.SIGINT)
        return {}

    return evaluate


def main(changes_file: str, workdir: str) -> None:
    # Here, because worker processes import this file too.
    import conftest  # for the compilation cache and the logging
    import jax
    from traced_once import of_equal_settings

    from configs import common
    from negclip_jax.common.signals import Interrupted
    from negclip_jax.runtime import sharding
    from negclip_jax.training import setup
    from negclip_jax.training.loop import train

    assert conftest.ROOT
    setup.make_train_step = of_equal_settings(setup.make_train_step)
    gc.collect()
    gc.freeze()  # what was imported stays: no evaluation searches it for garbage
    make_mesh = sharding.make_mesh
    sharding.make_mesh = lambda **axes: make_mesh(**axes, devices=jax.devices()[:1])
    changes = json.loads(pathlib.Path(changes_file).read_text())
    short = changes | {"train.total": "40 steps", "eval.every": "10 steps"}

    def run(name: str, settings: dict, evaluators: dict) -> dict[str, int]:
        config = common.base()
        config.update_from_flattened_dict(settings)
        ended = "whole"
        try:
            train(config, f"{workdir}/{name}", evaluators)
        except (ZeroDivisionError, Interrupted) as error:
            ended = type(error).__name__
        return remains() | {"ended": ended}

    print(
        json.dumps(
            {
                "long": run("long", changes, {"process": watch}),
                "failed": run("failed", short, {"fail": fail}),
                "stopped": run("stopped", short, {"stop": stop}),
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
