"""A training process that kills itself: `killed_run.py CHANGES.json WORKDIR EVALUATIONS`.

The configuration is `make_config` of conftest.py with the changes of a JSON file. The process
sends itself SIGKILL at its n-th evaluation, most likely with a checkpoint half written. A nursery
starts it, with the devices and the flags of conftest.py: the same program, bit for bit.
"""

import json
import os
import pathlib
import signal
import sys

import jax
from tiny_runs import EVALUATORS

from configs import common
from negclip_jax.runtime import sharding
from negclip_jax.training.loop import train


def main(changes: str, workdir: str, evaluations: str) -> None:
    make_mesh = sharding.make_mesh
    sharding.make_mesh = lambda **axes: make_mesh(**axes, devices=jax.devices()[:1])
    config = common.base()
    config.update_from_flattened_dict(json.loads(pathlib.Path(changes).read_text()))
    calls = iter(range(1, 1000))

    def kill(context):
        def evaluate(params) -> dict:
            if next(calls) == int(evaluations):
                os.kill(os.getpid(), signal.SIGKILL)
            return {}

        return evaluate

    train(config, workdir, EVALUATORS | {"kill": kill})


if __name__ == "__main__":
    main(*sys.argv[1:])
