"""Scores CLIPSeg with its own text tower and with a tuned one in its place.

    python -m evals.segmentation --clipseg=CIDAS/clipseg-rd64-refined --model=tuned=runs/b16 \\
        --data=phrasecut --out=runs/segmentation

The tower has to be that of ViT-B/16, which CLIPSeg was built on; decoder and vision tower stay as
they are. Phrases with masks are read from PhraseCut (refer_test.json), RefCOCO, RefCOCO+ and
RefCOCOg (refs(...).p or .json beside instances.json), NegRefCOCOg with COCO's instances, and the
category names of an instances.json, whichever is below --data, with the photos.
Writes results.json, phrases.jsonl and report.html into --out. The same command started again
continues: no phrase is segmented twice. Needs PyTorch: pip install -e '.[torch]'.
"""

import argparse
import logging
import time
from collections.abc import Sequence

from evals import command_line
from negclip_jax.common.errors import InputError, say

_PHRASES = ("phrasecut", "refcoco", "negrefcocog", "categories")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0, 1 after a user error, 130 after Ctrl-C."""
    stopped = "stopped; the same command continues in {out}"
    less = "Give a smaller --size, or --device=cpu"
    return command_line.execute(_parser(), run, argv, stopped=stopped, needs_less=less)


def run(args: argparse.Namespace) -> None:
    """Segments, measures and reports. Raises InputError."""
    import jax

    from evals import models
    from evals.images import DataRoots, photos_at
    from evals.results import RESULTS, read_earlier, table_text
    from evals.segmentation import page, scoring
    from evals.segmentation.clipseg import CLIPSeg
    from evals.segmentation.sources import NEGATED, SOURCES, load_sets
    from negclip_jax.common import storage
    from negclip_jax.common.progress import human_seconds
    from negclip_jax.runtime.workdir import environment

    started = time.monotonic()
    # The accelerator belongs to CLIPSeg: JAX only reads weights, and would take its memory.
    jax.config.update("jax_platforms", "cpu")
    roots = DataRoots(tuple(args.data), tuple(map(photos_at, args.images)))
    sets = load_sets(args.phrases, SOURCES, roots, split=args.split, allow_subset=args.allow_subset)
    clipseg = CLIPSeg(args.clipseg, size=args.size, device=args.device)
    tuned = models.load_all(args.model, tokenizer=args.tokenizer, activation=args.activation)
    if scoring.OWN in [model.name for model in tuned]:
        raise InputError(
            f"--model={scoring.OWN}=...: this name is that of the base's own text tower"
        )
    warnings = [text for model in tuned if (text := clipseg.check(model))]
    for text in warnings:
        logging.warning(text)
    document = {
        "settings": {"models": scoring.described(args.clipseg, clipseg, tuned), "size": args.size},
        "seed": args.seed,
        "environment": environment("torch", "transformers"),
        "protocol": scoring.protocol(args.size),
        "negated": NEGATED,
        "warnings": warnings,
        "benchmarks": {},
        "curves": {},
    }
    command_line.require_writable(args.out)
    if args.overwrite:
        for name in (RESULTS, scoring.ROWS):
            (args.out / name).unlink(missing_ok=True)
    old = read_earlier(args.out / RESULTS, ("settings",), "remove it, or give --overwrite")
    if old and old["settings"] != document["settings"]:
        raise InputError(
            f"{args.out} holds results of other models or another --size: give another --out, or "
            "--overwrite to replace them"
        )
    if not old:  # whose phrases these are, should this be killed
        storage.write_json(args.out / RESULTS, document)
    tokenizer = clipseg.tokenizer(tuned[0].tokenizer)
    towers = scoring.towers(clipseg, tuned, sets, tokenizer, args.out, document)
    try:
        scoring.score(towers, sets, roots, args.out, allow_subset=args.allow_subset)
    finally:  # what was scored before a photo failed, or Ctrl-C, has its page
        rows = scoring.collect(sets, args.out)
        for found in sets:
            scoring.measure(document, found, list(rows[found.name].values()), args.seed)
        if document["benchmarks"]:
            storage.write_json(args.out / RESULTS, document)
            page.write(args.out, document, sets, rows, towers, roots, size=args.gallery)
    say(table_text(document))
    seconds = human_seconds(time.monotonic() - started)
    logging.info("%s; open %s", seconds, args.out / page.PAGE)


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser("evals.segmentation", __doc__)
    parser.renamed = {"--base": "--clipseg"}
    add = parser.add_argument
    help_ = "CLIPSeg as transformers saves it"
    add("--clipseg", required=True, metavar="DIR_OR_HUB_ID", help=help_)
    help_ = (
        "checkpoint with a tuned text tower: a run, a Hugging Face directory, a .pt, ...; may be"
    )
    options = {"action": "append", "required": True, "metavar": "[NAME=]PATH"}
    add("--model", **options, help=f"{help_} repeated")
    command_line.add_shared(parser, "--data", "--images", "--out")
    help_ = f"of {', '.join(_PHRASES)}; default: all whose files and photos are there"
    options = {"type": command_line.comma_separated, "default": "available", "metavar": "A,B"}
    add("--phrases", **options, help=help_)
    add("--split", help="of PhraseCut (default: test) and RefCOCO (default: val)")
    help_ = "side of photo and mask; default: %(default)s, the published protocol"
    add("--size", type=int, default=352, metavar="PIXELS", help=help_)
    add("--device", default="cpu", help="of PyTorch, such as cuda; default: %(default)s")
    shared = ("--allow-subset", "--overwrite", "--activation", "--tokenizer", "--seed", "--gallery")
    command_line.add_shared(parser, *shared)
    return parser


if __name__ == "__main__":
    command_line.exit_with(main)
