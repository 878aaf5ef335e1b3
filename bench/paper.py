"""The whole published fine-tuning, from nothing to the export, as a user runs it.

    python -m bench.paper --arch=vit_b_32 --scale=0.01 --json=runs/bench/paper.json

82,783 photos and 229,000 pairs (COCO's train2014 and NegationCLIP's captions), of which a fifth is
held out, 15 epochs of batches of 512, validation and a checkpoint after each, and the export.
Photos and captions are made, of COCO's and NegBench's sizes, and weights are random: speed depends
on neither. `launch.py` runs in a process of its own with a clock on its parts. `--scale` takes a
share of photos and pairs; a column then says what the parts would take at full size: those that
grow with the data multiplied, the others as they are (of the start-up the checks of pairs grow,
which are seconds). The published recipe in PyTorch is measured on a slice and extrapolated.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import harness, material
from bench.harness import flag, size_of
from configs import negationclip
from negclip_jax.common.errors import InputError
from negclip_jax.common.provenance import cores

PHOTOS, PAIRS, BATCH, EPOCHS, HELD_OUT = 82_783, 229_000, 512, 15, 0.2
_FULL_STEPS = int(PAIRS * (1 - HELD_OUT)) // BATCH * EPOCHS
_ROOT = Path(__file__).resolve().parent.parent
# Folders of a run that grow with the data.
_OF_DATA = ("features", "examples")


def timed(command: Sequence[str]) -> float:
    """Seconds of a command from the root of the clone; RuntimeError with what it said."""
    began = time.perf_counter()
    path = f"{_ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [sys.executable, *command],
        cwd=_ROOT,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} failed: {done.stderr.strip()[-600:]}")
    return time.perf_counter() - began


@flag("--arch", choices=material.ARCHITECTURES, default="vit_b_32", help="sizes of the model")
@flag("--scale", type=float, default=1.0, help="share of photos and pairs (default 1)")
@flag("--batch-size", type=int, default=BATCH, help=f"pairs a step (published: {BATCH})")
@flag("--epochs", type=int, default=EPOCHS, help=f"published: {EPOCHS}")
@flag("--reference-pairs", type=int, default=256, help="PyTorch's slice (default 256)")
@flag("--reference-workers", type=int, default=0, help="processes of PyTorch's DataLoader")
@flag("--no-reference", action="store_true", help="measure ours alone")
def measure(args: argparse.Namespace, scratch: Path) -> harness.Measured:
    """Trains and exports; then the slice of the other side."""
    if not 0 < args.scale <= 1:
        raise InputError(f"--scale={args.scale} is not between 0 and 1")
    if not args.no_reference:
        harness.require_torch()
    load, photos, pairs = os.getloadavg()[0], *(round(n * args.scale) for n in (PHOTOS, PAIRS))
    files, images = material.write_pairs(scratch, pairs, photos)
    checkpoint, run, out = scratch / "checkpoint", scratch / "run", scratch / "export"
    material.random_checkpoint(checkpoint, args.arch)
    variant = args.arch if args.arch in negationclip.VARIANTS else "vit_b_32"
    settings = {
        "model.checkpoint": checkpoint,
        "data.pairs": files,
        "data.images": images,
        "train.batch_size": args.batch_size,
        "train.total": f"{args.epochs} epochs",
    }
    flags = [f"--config=configs/negationclip.py:{variant}", f"--workdir={run}"]
    flags += [f"--config.{key}={value}" for key, value in settings.items()]
    spans = scratch / "spans.json"
    total = timed(["-m", "bench.timed_launch", str(spans), *flags])
    measured = json.loads(spans.read_text())
    seconds = measured["seconds"]
    export = ["--workdir", str(run), "--layout=huggingface", "--out", str(out)]
    exporting = timed(["-m", "negclip_jax.interop.export", *export])

    parts = {name: seconds[name] for name in ("compilation", "feature cache", "epochs")}
    parts["validation"] = seconds["validation"]
    parts["saving"] = seconds["saving"] + seconds["saving (waiting)"]
    parts = {"start-up": total - sum(parts.values()), **parts, "export": exporting}
    lines = (run / "metrics.jsonl").read_text().splitlines()
    result = {
        "arch": args.arch,
        "device": measured["device"],
        "load": load,
        "scale": args.scale,
        "photos": photos,
        "pairs": pairs,
        "batch_size": args.batch_size,
        "epochs": args.epochs,
        "steps": json.loads(lines[-1])["step"],
        "evaluations": measured["calls"]["validation"],
        "saves": measured["calls"]["saving"],
        "seconds": parts,
        "photos_per_second": photos / seconds["feature cache"],
        "decode_share": seconds["decoding"] / seconds["feature cache"] / cores(),
        "bytes": {"photos": size_of(images), **_sizes(run), "export": size_of(out)},
        "reference": None if args.no_reference else _reference(args, scratch),
    }
    title = (
        f"{args.arch}, {photos:,} photos, {pairs:,} pairs, {args.epochs} epochs of batches of "
        f"{args.batch_size} ({result['steps']} steps), {result['device']}, load {load:.1f}"
    )
    return result, title, tables(result)


def _reference(args: argparse.Namespace, scratch: Path) -> dict[str, float]:
    """Seconds of one step of the published recipe, the second of two."""
    sizes = (str(scratch / "checkpoint"), str(scratch / "images"), args.reference_workers, cores())
    lines = (scratch / "pairs.jsonl").read_text().splitlines()[: args.reference_pairs]
    batch = [(pair["image"], pair["negated"]) for pair in map(json.loads, lines)]
    with harness.Side("bench.published_recipe:Reference", *sizes) as side:
        side("epoch", [batch[:8]])  # what the first step alone takes
        return {"pairs": len(batch), "seconds": side("epoch", [batch])["seconds"]}


def factors(result: dict[str, Any]) -> dict[str, float]:
    """What each part is multiplied by at full size; those that are not here stay as they are."""
    held_out = result["pairs"] * HELD_OUT * result["evaluations"]
    return {
        "feature cache": PHOTOS / result["photos"],
        "epochs": _FULL_STEPS * BATCH / (result["steps"] * result["batch_size"]),
        "validation": PAIRS * HELD_OUT * (EPOCHS + 1) / held_out,
        "saving": EPOCHS / result["saves"],
    }


def tables(result: dict[str, Any]) -> list[harness.Table]:
    """Seconds and megabytes of the parts, as measured and, of less than all, at full size."""
    seconds, times, sizes = result["seconds"], factors(result), result["bytes"]
    full = {name: value * times.get(name, 1.0) for name, value in seconds.items()}
    is_whole = all(abs(x - 1) < 1e-3 for x in times.values())
    notes = {
        "feature cache": f"{result['photos_per_second']:,.1f} photos/s, decoding takes "
        f"{result['decode_share']:.0%} of the cores",
        "epochs": f"{result['steps'] * result['batch_size'] / seconds['epochs']:,.1f} pairs/s",
        "validation": f"{result['evaluations']} times",
        "saving": f"{result['saves']} checkpoints, mostly beside the steps",
    }
    header = ["part", "seconds", "at full size, extrapolated", ""]
    rows = [
        [name, f"{value:,.1f}", f"{full[name]:,.0f}", notes.get(name, "")]
        for name, value in seconds.items()
    ]
    ours = sum(full.values())
    rows.append(["total", f"{sum(seconds.values()):,.1f}", f"{ours:,.0f}", ""])
    if (slice_ := result["reference"]) is not None:
        pairs, took = slice_["pairs"], slice_["seconds"]
        theirs = took / pairs * _FULL_STEPS * BATCH
        note = f"a slice of {pairs} pairs, {pairs / took:,.1f} pairs/s; steps alone, {{}} x"
        note = note.format(f"{theirs / ours:.1f}")
        rows.append(["published recipe, PyTorch", f"{took:,.1f}", f"{theirs:,.0f}", note])
    grows = {name: PHOTOS / result["photos"] for name in ("photos", *_OF_DATA)}
    disk = [
        [name, f"{n / 1e6:,.1f}", f"{n * grows.get(name, 1) / 1e6:,.0f}"]
        for name, n in sizes.items()
    ]
    of_disk = ["on disk", "MB", "at full size, extrapolated"]
    if is_whole:  # nothing to extrapolate, but for the other side
        rows = [[a, b, c if a.startswith("published") else "", d] for a, b, c, d in rows]
        disk = [row[:2] for row in disk]
    return [(header, rows), (of_disk[: len(disk[0])], disk)]


def _sizes(run: Path) -> dict[str, int]:
    """Bytes of each folder of a run, and of its files."""
    found = {path.name: size_of(path) for path in sorted(run.iterdir()) if path.is_dir()}
    return found | {"logs": sum(p.stat().st_size for p in run.iterdir() if p.is_file())}


main = harness.command("bench.paper", __doc__, measure)

if __name__ == "__main__":
    main()
