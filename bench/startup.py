"""What passes before the first step: `--help`, and compiling.

    python -m bench.startup --json=runs/bench/startup.json

Compile time is that of a text tower's loss and gradient at several depths: blocks run under
`lax.scan`, so it is flat.
"""

import argparse
import dataclasses
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bench import harness, material
from negclip_jax.models import clip

DEPTHS = (4, 12, 24)
_LAUNCH = Path(__file__).resolve().parent.parent / "launch.py"


def compile_seconds(architecture: str, layers: int) -> float:
    """Seconds to compile loss and gradient of a text tower of this width and depth."""
    config = material.ARCHITECTURES[architecture]
    text = dataclasses.replace(config.text, layers=layers)
    graphdef, params = clip.abstract(dataclasses.replace(config, text=text))

    def loss(params: dict, ids: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, params).encode_text(ids).sum()

    lowered = jax.jit(jax.grad(loss)).lower(params, jax.ShapeDtypeStruct((8, 77), jnp.int32))
    start = time.perf_counter()
    lowered.compile()
    return time.perf_counter() - start


def measure(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Compile times once each; `--help` is the median of three."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        command = [sys.executable, str(_LAUNCH), "--help"]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        seconds.append(time.perf_counter() - start)
    return {
        "arch": args.arch,
        "help_seconds": float(np.median(seconds)),
        "compile_seconds_by_layers": {n: compile_seconds(args.arch, n) for n in DEPTHS},
    }


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    depths = result["compile_seconds_by_layers"]
    compiling = ", ".join(f"{seconds:.1f}" for seconds in depths.values())
    rows = [
        ["launch.py --help", f"{result['help_seconds']:.2f} s"],
        [f"compile a text tower of {', '.join(map(str, depths))} blocks", f"{compiling} s"],
    ]
    return harness.titled(result["arch"], result, ["start-up", "seconds"], rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser("bench.startup", __doc__)
    add = parser.add_argument
    add("--arch", choices=material.ARCHITECTURES, default="vit_b_32", help="sizes of the model")
    harness.run(parser, measure, table, argv)


if __name__ == "__main__":
    main()
