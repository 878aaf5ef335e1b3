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
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import harness
from bench.harness import Side
from negclip_jax.common import extras
from negclip_jax.common.errors import InputError
from negclip_jax.common.provenance import cores

ARCHITECTURES = ("vit_b_32", "vit_b_16", "vit_l_14", "vit_l_14_336", "tiny")


def measure(args: argparse.Namespace, scratch: Path) -> harness.Measured:
    """Runs both sides in turns, as many as asked for or as the budget has room for."""
    began, longest = time.monotonic(), 0.0
    if not args.no_reference:
        extras.require("torch", extra="torch", why="the PyTorch side of this benchmark")
    settings = _material(args, scratch)
    reference = (
        "bench.published_recipe:Reference",
        settings["model.checkpoint"],
        settings["data.images"],
        args.reference_workers,
        cores(),
    )
    # On a GPU JAX would take most of the memory at once, and the other side needs some too.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(Side("bench.ours:Ours", settings, str(scratch / "run")))
        theirs = None if args.no_reference else stack.enter_context(Side(*reference))
        lora = None
        if args.lora_rank:
            adapted = settings | {"optim.lora_rank": args.lora_rank}
            lora = stack.enter_context(Side("bench.ours:Ours", adapted, str(scratch / "lora")))
            lora("fill_cache")
        pairs, rounds = args.steps * args.batch_size, []
        for n in range(args.repetitions):  # one turn of each side, on the same steps
            turn_began = time.monotonic()
            if rounds and turn_began + longest - began > args.budget:
                print(
                    f"{n} of {args.repetitions} rounds: another one of up to {longest:.0f} s would "
                    f"not fit into --budget={args.budget:g} s",
                    file=sys.stderr,
                )
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
    result = summary(args, rounds) | {
        "arch": args.arch,
        "batch_size": args.batch_size,
        "dtype": args.dtype,
        "device": device,
        "rounds": rounds,
    }
    rounds_of = f"median (range) of {len(rounds)} rounds"
    title = f"{args.arch}, batch {args.batch_size}, {args.dtype}, {device}; {rounds_of}"
    return result, title, [table(result), *([lora_table(result)] if args.lora_rank else [])]


def summary(args: argparse.Namespace, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds; ratios are taken within a round, where the machine was the same.

    `range` has the least and the largest of the figures that are pairs a second or ratios.
    """
    pairs, ranges = args.steps * args.batch_size, {}

    def median(of: Callable[[dict[str, Any]], float], name: str | None = None) -> float:
        values = [of(r) for r in rounds]
        if name is not None:
            ranges[name] = [min(values), max(values)]
        return float(statistics.median(values))

    def named(**figures: Callable[[dict[str, Any]], float]) -> dict[str, float]:
        return {name: median(of, name) for name, of in figures.items()}

    def share(count: str, side: str) -> float:
        """Our FLOP/s as a share of what a side's library reaches in large matrix products."""
        return median(lambda r: r["flops"][count] / r["ours"]["seconds"] / r["matmul_rate"][side])

    def first_epoch(r: dict[str, Any]) -> float:
        # A photo has several captions: an epoch of these pairs sees its share of the cached ones.
        photos = pairs / args.captions_per_photo
        return r["ours"]["seconds"] + r["cache"]["seconds"] * photos / r["cache"]["images"]

    result: dict[str, Any] = {
        "range": ranges,
        "rounds_measured": len(rounds),
        **named(
            pairs_per_second_later_epochs=lambda r: pairs / r["ours"]["seconds"],
            pairs_per_second_first_epoch=lambda r: pairs / first_epoch(r),
        ),
        "flops_share_of_matmul": share("model", "ours"),
        "flops_share_of_matmul_read_only": share("read", "ours"),
        "text_tokens_computed_per_real": median(
            lambda r: r["flops"]["computed"] / r["flops"]["tokens"]
        ),
    }
    sides = ("ours",) if args.no_reference else ("ours", "reference")
    for side in sides:
        prefix = "" if side == "ours" else "reference_"
        result |= {
            f"{prefix}matmul_gflops": median(lambda r, side=side: r["matmul_rate"][side] / 1e9),
            f"{prefix}data_wait_share": median(
                lambda r, side=side: r[side]["waited"] / r[side]["seconds"]
            ),
            f"{prefix}peak_memory_gib": max(r[side]["memory"] for r in rounds) / 2**30,
        }
    if args.lora_rank:
        result |= named(lora_step_ratio=lambda r: r["lora"]["seconds"] / r["ours"]["seconds"])
        for side in ("lora", "ours"):
            result[f"{side}_peak_memory_gib"] = max(r[side]["memory"] for r in rounds) / 2**30
            result[f"{side}_trained_millions"] = rounds[0][side]["trained"] / 1e6
    if args.no_reference:
        return result
    losses = [np.array([r[side]["losses"] for r in rounds]) for side in sides]
    if args.dtype == "float32":  # the published recipe's type, in which its matmul is measured
        result["flops_share_of_reference_matmul"] = share("model", "reference")
    return result | {
        **named(
            ratio_later_epochs=lambda r: r["reference"]["seconds"] / r["ours"]["seconds"],
            ratio_first_epoch=lambda r: r["reference"]["seconds"] / first_epoch(r),
            reference_pairs_per_second=lambda r: pairs / r["reference"]["seconds"],
        ),
        "loss_max_rel_diff": float(np.max(np.abs(losses[0] / losses[1] - 1))),
    }


def table(result: dict[str, Any]) -> harness.Table:
    """The rows of a result; what was not measured leaves its cell empty."""

    def row(
        name: str, form: str, ours: str = "", reference: str = "", ratio: str = ""
    ) -> list[str]:
        keys = (ours, reference, ratio)
        forms = (form, form, "{:.2f} x" if ours else form)
        cells = [cell(k, f) if k in result else "" for k, f in zip(keys, forms, strict=True)]
        return [name, *cells]

    def cell(key: str, form: str) -> str:
        """The median; with the range of more than one round."""
        shown = form.format(result[key])
        if key not in result["range"] or result["rounds_measured"] == 1:
            return shown
        number = form.removesuffix(" x")
        return f"{shown} ({' to '.join(number.format(x) for x in result['range'][key])})"

    later, first, their = (
        "pairs_per_second_later_epochs",
        "pairs_per_second_first_epoch",
        "reference_pairs_per_second",
    )
    share = ("flops_share_of_matmul", "flops_share_of_reference_matmul")
    rows = [
        row("pairs/s, later epochs", "{:.1f}", later, their, "ratio_later_epochs"),
        row("pairs/s, first epoch", "{:.1f}", first, their, "ratio_first_epoch"),
        row("waiting for data", "{:.1%}", "data_wait_share", "reference_data_wait_share"),
        row("peak memory, GiB", "{:.1f}", "peak_memory_gib", "reference_peak_memory_gib"),
        row("large matmul, GFLOP/s", "{:.0f}", "matmul_gflops", "reference_matmul_gflops"),
        row("our FLOP/s on real tokens / matmul", "{:.0%}", *share),
        row("tokens computed / real", "{:.2f}", "text_tokens_computed_per_real"),
        row("largest difference of a loss", "{:.1e}", ratio="loss_max_rel_diff"),
    ]
    return ["fine-tuning", "ours", "published recipe, PyTorch", "ratio"], rows


def lora_table(result: dict[str, Any]) -> harness.Table:
    """Ours with adapters beside ours, which trains the parameters themselves."""
    least, most = result["range"]["lora_step_ratio"]
    rows = [
        ["time of a step", "1", f"{result['lora_step_ratio']:.2f} ({least:.2f} to {most:.2f})"],
        *(
            [name, *(f"{result[f'{side}_{key}']:{form}}" for side in ("ours", "lora"))]
            for name, key, form in (
                ("trained parameters, millions", "trained_millions", ".2f"),
                ("peak memory, GiB", "peak_memory_gib", ".2f"),
            )
        ),
    ]
    return ["fine-tuning", "all of the text tower", "adapters"], rows


def _material(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Writes what is not given; returns the settings of our run."""
    from bench import material

    needed = args.steps * args.batch_size
    for name in ("steps", "repetitions", "batch_size", "captions_per_photo"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be 1 or more")
    if (args.pairs is None) != (args.images is None):
        raise InputError("--pairs and --images belong together: give both or none")
    pairs, images = args.pairs, args.images
    if pairs is None:
        pairs, images = material.write_pairs(scratch / "data", needed, args.captions_per_photo)
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


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser("bench.finetune", __doc__)
    add = parser.add_argument
    add("--arch", choices=ARCHITECTURES, default="vit_b_32", help="sizes of the model")
    add("--batch-size", type=int, default=256, help="pairs a step (default 256)")
    add("--steps", type=int, default=1, help="steps that stand for an epoch (default 1)")
    add("--repetitions", type=int, default=5, help="turns of each side (default 5)")
    add("--budget", type=float, default=540, help="seconds, after which no turn begins (540)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="compute type of ours")
    add("--pairs", type=Path, help="pairs file; default: made captions of NegBench's lengths")
    add("--images", type=Path, help="its photos; default: made photos of COCO's size")
    add("--tokenizer", type=Path, help="directory with CLIP's vocabulary, for real captions")
    add("--captions-per-photo", type=int, default=5, help="pairs of a photo in an epoch (COCO: 5)")
    add("--reference-workers", type=int, default=0, help="processes of PyTorch's DataLoader")
    add("--lora-rank", type=int, help="measure ours with LoRA adapters of this rank as well")
    add("--no-reference", action="store_true", help="measure ours alone, e.g. on an accelerator")
    harness.run(parser, measure, argv)


if __name__ == "__main__":
    main()
