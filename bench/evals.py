"""What an evaluation costs beyond encoding: the whole command against encoding alone.

    python -m bench.evals --data=data --tokenizer=openai-clip --json=runs/bench/evals.json

Encoding alone means: load a random model, compile, encode each distinct image and text of all
benchmarks whose files are there, once, with nothing kept. The command does the same and finds the
files, keeps embeddings, scores, resamples, and writes results, predictions and the report.
"""

import argparse
import contextlib
import io
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from bench import harness, material
from bench.harness import flag
from evals import models, reading, runner
from evals.__main__ import main as evaluate
from evals.images import DataRoots
from negclip_jax.common.errors import InputError
from negclip_jax.embeddings.encoder import Encoder


def whole_command(checkpoint: Path, data: Sequence[Path], out: Path) -> float:
    """Seconds of `python -m evals` in this process, whose compiled programs it does not share."""
    jax.clear_caches()
    flags = [*(f"--data={folder}" for folder in data), f"--out={out}", "--allow-subset"]
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        status = evaluate([f"--model={checkpoint}", *flags])
    seconds = time.perf_counter() - start
    if status:
        raise InputError(f"the evaluation failed with status {status}")
    return seconds


@flag("--data", action="append", type=Path, required=True, help="as for evals")
@flag("--tokenizer", type=Path, required=True, help="of vocab.json and merges.txt")
@flag("--arch", choices=material.ARCHITECTURES, default="vit_b_32", help="sizes of the model")
def measure(args: argparse.Namespace, scratch: Path) -> harness.Measured:
    """Encoding alone, the command, and the command again with all embeddings kept."""
    checkpoint, out, roots = scratch / "checkpoint", scratch / "out", DataRoots(tuple(args.data))
    loaded = runner.load_problems([reading.AVAILABLE], roots, allow_subset=True)
    material.random_checkpoint(checkpoint, args.arch, tokenizer=args.tokenizer)
    images = [ref for _, problem in loaded.values() for ref in problem.images]
    texts = [text for _, problem in loaded.values() for text in problem.texts]
    start = time.perf_counter()
    model = models.load(str(checkpoint))
    encoder = Encoder(model, images, texts, roots, cache=scratch / "digests", in_memory={})
    encoder.features(images, texts)
    alone = time.perf_counter() - start
    command, again = (whole_command(checkpoint, args.data, out) for _ in range(2))
    counts = {"images": encoder.images.distinct, "texts": encoder.texts.distinct}
    ratio, encoding = command / alone, {"seconds": alone, **counts, "benchmarks": len(loaded)}
    result = {"arch": args.arch, "encoding": encoding, "command_seconds": command, "ratio": ratio}
    result["again_seconds"] = again
    what = f"{counts['images']:,} images, {counts['texts']:,} texts"
    rows = [
        [f"encoding alone ({what})", f"{alone:.1f} s", ""],
        [f"python -m evals, {len(loaded)} benchmarks", f"{command:.1f} s", f"{ratio:.2f} x"],
        ["the same command again", f"{again:.1f} s", ""],
    ]
    return result, args.arch, [(["evaluation", "seconds", "ratio"], rows)]


main = harness.command("bench.evals", __doc__, measure)

if __name__ == "__main__":
    main()
