"""One of two processes that evaluate together; what `test_many_hosts` starts.

    python host.py INDEX PORT CHECKPOINT DATA OUT

Runs the command twice and writes what each run encoded to `OUT/INDEX.json`.
"""

import json
import sys
from pathlib import Path

import jax
import tiny_benchmark

from evals import __main__ as command_line
from evals import registry
from negclip_jax.embeddings import encoder
from negclip_jax.runtime import multihost


def main(index: str, port: str, checkpoint: str, data: str, out: str) -> None:
    every = (tiny_benchmark.BENCHMARK, tiny_benchmark.BROKEN, tiny_benchmark.KEPT)
    registry.BENCHMARKS = {each.name: lambda each=each: each for each in every}
    encoder.IMAGES_PER_DEVICE = encoder.TEXTS_PER_DEVICE = 2  # batches of eight
    encoded = []
    original = encoder.Tower.encode_next

    def counted(tower: encoder.Tower) -> None:
        encoded[-1].append(tower.inputs.name)
        original(tower)

    encoder.Tower.encode_next = counted
    hosts = [f"--distributed=localhost:{port}", f"--process-id={index}", "--num-processes=2"]
    flags = [f"--model=m={checkpoint}", f"--data={data}", f"--out={out}/{index}"]
    statuses = []
    for _ in range(2):
        encoded.append([])
        statuses.append(command_line.main([*flags, *hosts]))
        multihost.join = lambda *_, **__: None  # a process joins once
    found = {"statuses": statuses, "encoded": encoded, "processes": jax.process_count()}
    Path(out, f"{index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
