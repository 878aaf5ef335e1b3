"""What passes before the first step: `--help`, loading weights, compiling.

    python -m bench.startup --json=runs/bench/startup.json

Loading is compared with transformers', as time and as memory beyond the file's own size. Compile
time is that of the training step at several depths: blocks run under `lax.scan`, so it is flat.
"""

import argparse
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import harness
from bench.harness import Side
from negclip_jax.common import extras

DEPTHS = (4, 12, 24)
_ROOT = Path(__file__).resolve().parent.parent


class OurStart:
    """Weights from disk to device, and programs."""

    def load(self, checkpoint: str) -> dict[str, float]:
        """Seconds, and bytes of memory above what the process had before."""
        import jax

        from negclip_jax.pretrained import CLIP

        before, start = harness.peak_memory(), time.perf_counter()
        jax.block_until_ready(CLIP.from_pretrained(checkpoint).params)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "memory": harness.peak_memory() - before}

    def compile(self, layers: int) -> float:
        """Seconds to compile loss and gradient of a text tower of this depth."""
        import jax
        import jax.numpy as jnp
        from flax import nnx

        from negclip_jax.models import clip

        text = dataclasses.replace(clip.TextConfig(), layers=layers)
        graphdef, params = clip.abstract(dataclasses.replace(clip.CLIPConfig(), text=text))

        def loss(params: dict, ids: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, params).encode_text(ids).sum()

        ids = jax.ShapeDtypeStruct((8, 77), jnp.int32)
        lowered = jax.jit(jax.grad(loss)).lower(params, ids)
        start = time.perf_counter()
        lowered.compile()
        return time.perf_counter() - start


class TheirStart:
    """transformers' way."""

    def load(self, checkpoint: str) -> dict[str, float]:
        """As `OurStart.load`."""
        import torch
        from transformers import CLIPModel

        before, start = harness.peak_memory(), time.perf_counter()
        model = CLIPModel.from_pretrained(checkpoint)
        with torch.no_grad():
            sum(parameter.sum() for parameter in model.parameters())  # pages of a memory map
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "memory": harness.peak_memory() - before}


def measure(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Each figure once, but `--help`, which is the median of three."""
    from bench import material

    extras.require("torch", extra="torch", why="the PyTorch side of this benchmark")
    checkpoint = scratch / "checkpoint"
    material.random_checkpoint(checkpoint, args.arch)
    size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    with Side("bench.startup:TheirStart") as theirs:
        other = theirs("load", str(checkpoint))
    with Side("bench.startup:OurStart") as ours:
        mine = ours("load", str(checkpoint))
        compiled = {layers: ours("compile", layers) for layers in DEPTHS}
    return {
        "arch": args.arch,
        "help_seconds": float(np.median([_help_seconds() for _ in range(3)])),
        "file_bytes": size,
        "load": mine,
        "reference_load": other,
        "compile_seconds_by_layers": compiled,
    }


def _help_seconds() -> float:
    start = time.perf_counter()
    command = [sys.executable, str(_ROOT / "launch.py"), "--help"]
    subprocess.run(command, stdout=subprocess.DEVNULL, env=os.environ, check=False)
    return time.perf_counter() - start


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    header = ["start-up", "ours", "transformers"]
    file = result["file_bytes"]

    def loading(load: dict[str, float]) -> str:
        return f"{load['seconds']:.1f} s, {load['memory'] / file:.1f} x the file's size"

    depths = result["compile_seconds_by_layers"]
    rows = [
        ["launch.py --help", f"{result['help_seconds']:.2f} s", ""],
        [
            f"load {file / 2**20:.0f} MiB of weights",
            loading(result["load"]),
            loading(result["reference_load"]),
        ],
        [
            f"compile a text tower of {', '.join(map(str, depths))} blocks",
            ", ".join(f"{seconds:.1f}" for seconds in depths.values()) + " s",
            "",
        ],
    ]
    return harness.titled(result["arch"], result, header, rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser("bench.startup", __doc__)
    add = parser.add_argument
    add("--arch", default="vit_b_32", help="sizes of the model (default vit_b_32)")
    harness.run(parser, measure, table, argv)


if __name__ == "__main__":
    main()
