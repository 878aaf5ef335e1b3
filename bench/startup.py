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
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bench import harness, material
from bench.harness import flag
from negclip_jax.models import clip

DEPTHS = (4, 12, 24)
_LAUNCH = Path(__file__).resolve().parent.parent / "launch.py"


@flag("--arch", choices=material.ARCHITECTURES, default="vit_b_32", help="sizes of the model")
def measure(args: argparse.Namespace, scratch: Path) -> harness.Measured:
    """Compile times once each; `--help` is the median of three."""

    def print_help() -> None:
        command = [sys.executable, str(_LAUNCH), "--help"]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=False)

    seconds = harness.seconds_of({"help": print_help}, 3)["help"]
    found, compiling = float(np.median(seconds)), {}
    config = material.ARCHITECTURES[args.arch]
    for layers in DEPTHS:
        text = dataclasses.replace(config.text, layers=layers)
        graphdef, params = clip.abstract(dataclasses.replace(config, text=text))

        def loss(params: dict, ids: jax.Array, graphdef: nnx.GraphDef = graphdef) -> jax.Array:
            return nnx.merge(graphdef, params).encode_text(ids).sum()

        lowered = jax.jit(jax.grad(loss)).lower(params, jax.ShapeDtypeStruct((8, 77), jnp.int32))
        start = time.perf_counter()
        lowered.compile()
        compiling[layers] = time.perf_counter() - start
    name = f"compile a text tower of {', '.join(map(str, DEPTHS))} blocks"
    shown = ", ".join(f"{seconds:.1f}" for seconds in compiling.values())
    rows = [["launch.py --help", f"{found:.2f} s"], [name, f"{shown} s"]]
    result = {"help_seconds": found, "compile_seconds_by_layers": compiling}
    return {"arch": args.arch} | result, args.arch, [(["start-up", "seconds"], rows)]


main = harness.command("bench.startup", __doc__, measure)

if __name__ == "__main__":
    main()
