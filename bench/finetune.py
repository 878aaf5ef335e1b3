"""Fine-tuning, ours against the published recipe in PyTorch: pairs a second, losses, memory.

    python -m bench.finetune --arch=vit_b_32 --batch-size=256 --json=runs/bench/finetune.json

Both sides start from the same random weights and train on the same batches of the same photos and
captions, in turns, each in a process of its own. Our first epoch fills the feature cache and later
ones read it; the published recipe does in every epoch what it does in the first. Figures are
medians of the rounds, with their range. `--lora-rank=4` also measures ours with adapters of that
rank, in turns with the others. `--budget` bounds all of it: however fast a device is, photos are
made, both libraries start and compile, and PyTorch decodes every photo in every round.
"""

import argparse
import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench import harness
from bench.harness import Side, flag
from negclip_jax.common.errors import InputError
from negclip_jax.common.provenance import cores

# The other side's process imports this file too: JAX would count as memory of PyTorch's.
ARCHITECTURES = ("vit_b_32", "vit_b_16", "vit_l_14", "vit_l_14_336", "tiny")


@flag("--arch", choices=ARCHITECTURES, default="vit_b_32", help="sizes of the model")
@flag("--batch-size", type=int, default=256, help="pairs a step (default 256)")
@flag("--steps", type=int, default=1, help="steps that stand for an epoch (default 1)")
@flag("--repetitions", type=int, default=5, help="turns of each side (default 5)")
@flag("--budget", type=float, default=540, help="seconds, after which no turn begins (540)")
@flag("--dtype", choices=("float32", "bfloat16"), default="float32", help="compute type of ours")
@flag("--pairs", type=Path, help="pairs file; default: made captions of NegBench's lengths")
@flag("--images", type=Path, help="its photos; default: made photos of COCO's size")
@flag("--tokenizer", type=Path, help="directory with CLIP's vocabulary, for real captions")
@flag("--captions-per-photo", type=int, default=5, help="pairs of a photo in an epoch (COCO: 5)")
@flag("--reference-workers", type=int, default=0, help="processes of PyTorch's DataLoader")
@flag("--lora-rank", type=int, help="measure ours with LoRA adapters of this rank as well")
@flag("--no-reference", action="store_true", help="measure ours alone, e.g. on an accelerator")
def measure(args: argparse.Namespace, scratch: Path) -> harness.Measured:
    """Runs both sides in turns, as many as asked for or as the budget has room for."""
    began, longest = time.monotonic(), 0.0
    if not args.no_reference:
        harness.require_torch()
    # On a GPU JAX would take most of the memory at once, and the other side needs some too.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    settings = _material(args, scratch)
    with contextlib.ExitStack() as stack:

        def side(make: str, *of: Any) -> Side:
            return stack.enter_context(Side(make, *of))

        ours, theirs, lora = side("bench.ours:Ours", settings, str(scratch / "run")), None, None
        if not args.no_reference:
            places = settings["model.checkpoint"], settings["data.images"]
            sizes = args.reference_workers, cores()
            theirs = side("bench.published_recipe:Reference", *places, *sizes)
        if args.lora_rank:
            adapted = settings | {"optim.lora_rank": args.lora_rank}
            lora = side("bench.ours:Ours", adapted, str(scratch / "lora"))
            lora("fill_cache")
        pairs, rounds = args.steps * args.batch_size, []
        for n in range(args.repetitions):  # one turn of each side, on the same steps
            turn_began = time.monotonic()
            if rounds and turn_began + longest - began > args.budget:
                why = f"another one of up to {longest:.0f} s would not fit into"
                told = f"{n} of {args.repetitions} rounds: {why} --budget={args.budget:g} s"
                print(told, file=sys.stderr)
                break
            steps = (n * args.steps, (n + 1) * args.steps)
            cache, before = ours("fill_cache"), ours("matmul_rate")
            turn = {"ours": ours("epoch", *steps), "cache": cache, "flops": ours("flops", *steps)}
            turn["matmul_rate"] = {"ours": max(before, ours("matmul_rate"))}
            if lora is not None:
                turn["lora"] = lora("epoch", *steps)
            rate = pairs / turn["ours"]["seconds"]
            said = f"round {n + 1} of {args.repetitions}: ours {rate:.2f}"
            if theirs is not None:
                turn["matmul_rate"]["reference"] = theirs("matmul_rate")
                turn["reference"] = theirs("epoch", ours("batches", *steps))
                said += f", published recipe {pairs / turn['reference']['seconds']:.2f}"
            print(f"{said} pairs/s", file=sys.stderr, flush=True)
            rounds.append(turn)
            longest = max(longest, time.monotonic() - turn_began)
        device = ours("device")
    result = summary(args, rounds) | {"device": device, "rounds": rounds}
    result |= {"arch": args.arch, "batch_size": args.batch_size, "dtype": args.dtype}
    rounds_of = f"median (range) of {len(rounds)} rounds"
    title = f"{args.arch}, batch {args.batch_size}, {args.dtype}, {device}; {rounds_of}"
    return result, title, [table(result), *([lora_table(result)] if args.lora_rank else [])]


def summary(args: argparse.Namespace, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of `figures` over the rounds.

    `range` has the least and the largest of those that are pairs a second or ratios.
    """
    each = [figures(args, turn) for turn in rounds]
    values = {name: [found[name] for found in each] for name in each[0]}
    with_range = [name for name in values if "ratio" in name or "pairs_per_second" in name]
    result = {name: float(np.median(x)) for name, x in values.items()}
    result["range"] = {name: [min(values[name]), max(values[name])] for name in with_range}
    result["rounds_measured"] = len(rounds)
    sides = [side for side in ("ours", "reference", "lora") if side in rounds[0]]
    gib = {side: max(turn[side]["memory"] for turn in rounds) / 2**30 for side in sides}
    result["peak_memory_gib"] = gib["ours"]
    if "lora" in gib:
        for side in ("lora", "ours"):
            result[f"{side}_peak_memory_gib"] = gib[side]
            result[f"{side}_trained_millions"] = rounds[0][side]["trained"] / 1e6
    if "reference" in gib:
        result["reference_peak_memory_gib"] = gib["reference"]
        ours, theirs = (np.array([r[s]["losses"] for r in rounds]) for s in ("ours", "reference"))
        result["loss_max_rel_diff"] = float(np.max(np.abs(ours / theirs - 1)))
    return result


def figures(args: argparse.Namespace, turn: dict[str, Any]) -> dict[str, float]:
    """Of one round; ratios are taken within it, where the machine was the same."""
    pairs, ours = args.steps * args.batch_size, turn["ours"]
    cache, work, matmul = turn["cache"], turn["flops"], turn["matmul_rate"]
    # A photo has several captions: an epoch of these pairs sees its share of the cached ones.
    share = pairs / args.captions_per_photo / cache["images"]
    first_epoch = ours["seconds"] + cache["seconds"] * share
    # FLOP/s as a share of what a side's library reaches in large matrix products.
    rate = work["model"] / ours["seconds"]
    found = {
        "pairs_per_second_later_epochs": pairs / ours["seconds"],
        "pairs_per_second_first_epoch": pairs / first_epoch,
        "flops_share_of_matmul": rate / matmul["ours"],
        "flops_share_of_matmul_read_only": work["read"] / ours["seconds"] / matmul["ours"],
        "text_tokens_computed_per_real": work["computed"] / work["tokens"],
        "matmul_gflops": matmul["ours"] / 1e9,
        "data_wait_share": ours["waited"] / ours["seconds"],
    }
    if (lora := turn.get("lora")) is not None:
        found["lora_step_ratio"] = lora["seconds"] / ours["seconds"]
    if (theirs := turn.get("reference")) is not None:
        found |= {
            "ratio_later_epochs": theirs["seconds"] / ours["seconds"],
            "ratio_first_epoch": theirs["seconds"] / first_epoch,
            "reference_pairs_per_second": pairs / theirs["seconds"],
            "reference_matmul_gflops": matmul["reference"] / 1e9,
            "reference_data_wait_share": theirs["waited"] / theirs["seconds"],
        }
        if args.dtype == "float32":  # the published recipe's type, in which its matmul is measured
            found["flops_share_of_reference_matmul"] = rate / matmul["reference"]
    return found


def table(result: dict[str, Any]) -> harness.Table:
    """The rows of a result; what was not measured leaves its cell empty."""

    def cell(key: str, form: str, unit: str = "") -> str:
        """The median; with the range of more than one round."""
        if key not in result:
            return ""
        shown, limits = f"{result[key]:{form}}{unit}", result["range"].get(key)
        if limits is None or result["rounds_measured"] == 1:
            return shown
        return f"{shown} ({limits[0]:{form}} to {limits[1]:{form}})"

    def row(name: str, form: str, ours: str, reference: str = "", ratio: str = "") -> list[str]:
        return [name, cell(ours, form), cell(reference, form), cell(ratio, ".2f", " x")]

    later, first = "pairs_per_second_later_epochs", "pairs_per_second_first_epoch"
    their = "reference_pairs_per_second"
    share = ("flops_share_of_matmul", "flops_share_of_reference_matmul")
    rows = [
        row("pairs/s, later epochs", ".1f", later, their, "ratio_later_epochs"),
        row("pairs/s, first epoch", ".1f", first, their, "ratio_first_epoch"),
        row("waiting for data", ".1%", "data_wait_share", "reference_data_wait_share"),
        row("peak memory, GiB", ".1f", "peak_memory_gib", "reference_peak_memory_gib"),
        row("large matmul, GFLOP/s", ".0f", "matmul_gflops", "reference_matmul_gflops"),
        row("our FLOP/s on real tokens / matmul", ".0%", *share),
        row("tokens computed / real", ".2f", "text_tokens_computed_per_real"),
        ["largest difference of a loss", "", "", cell("loss_max_rel_diff", ".1e")],
    ]
    return ["fine-tuning", "ours", "published recipe, PyTorch", "ratio"], rows


def lora_table(result: dict[str, Any]) -> harness.Table:
    """Ours with adapters beside ours, which trains the parameters themselves."""
    least, most = result["range"]["lora_step_ratio"]
    rows = [["time of a step", "1", f"{result['lora_step_ratio']:.2f} ({least:.2f} to {most:.2f})"]]
    named = {
        "trained parameters, millions": "trained_millions",
        "peak memory, GiB": "peak_memory_gib",
    }
    for name, key in named.items():
        rows.append([name, *(f"{result[f'{side}_{key}']:.2f}" for side in ("ours", "lora"))])
    return ["fine-tuning", "all of the text tower", "adapters"], rows


def _material(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Writes what is not given; returns the settings of our run."""
    from bench import material

    harness.require_positive(args, "steps", "repetitions", "batch_size", "captions_per_photo")
    needed = args.steps * args.batch_size
    if (args.pairs is None) != (args.images is None):
        raise InputError("--pairs and --images belong together: give both or none")
    pairs, images = args.pairs, args.images
    if pairs is None:
        photos = -(-needed // args.captions_per_photo)
        pairs, images = material.write_pairs(scratch / "data", needed, photos)
    checkpoint = scratch / "checkpoint"
    material.random_checkpoint(checkpoint, args.arch, tokenizer=args.tokenizer)
    return {
        "model.checkpoint": str(checkpoint),
        "model.dtype": args.dtype,
        "data.pairs": str(pairs),
        "data.images": str(images),
        "data.validation_fraction": 0.0,
        "train.batch_size": args.batch_size,
        "train.total": f"{args.steps * args.repetitions} steps",
        "eval.every": "0 steps",
        "checkpoint.every": "0 steps",
    }


main = harness.command("bench.finetune", __doc__, measure)

if __name__ == "__main__":
    main()
