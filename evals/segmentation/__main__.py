"""Scores CLIPSeg with its own text tower and with a tuned one in its place.

    python -m evals.segmentation --base=CIDAS/clipseg-rd64-refined --model=tuned=runs/b16 \\
        --data=PHRASECUT --out=runs/segmentation

The tower has to be that of ViT-B/16, which CLIPSeg was built on; decoder and vision tower stay as
they are. Phrases with masks are read from PhraseCut (refer_test.json), RefCOCO, RefCOCO+ and
RefCOCOg (refs(...).p or .json beside instances.json), NegRefCOCOg with COCO's instances, and the
category names of an instances.json, whichever is below --data, with the photos.
Writes results.json, phrases.jsonl and report.html into --out. The same command started again
continues: no phrase is segmented twice. Needs PyTorch: pip install -e '.[torch]'.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from evals import entry

_PHRASES = ("phrasecut", "refcoco", "negrefcocog", "categories")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0, 1 after a sentence, 130 after Ctrl-C."""
    args = _parser().parse_args(argv)

    def work() -> int | None:
        from evals.segmentation.command import run

        return run(args)

    stopped = f"stopped; the same command continues in {args.out}"
    return entry.execute(work, stopped=stopped)


def _parser() -> argparse.ArgumentParser:
    parser = entry.parser("evals.segmentation", __doc__)
    add = parser.add_argument
    add("--base", required=True, metavar="DIR_OR_HUB_ID", help="CLIPSeg as transformers saves it")
    add(
        "--model",
        action="append",
        required=True,
        metavar="[NAME=]PATH",
        help="checkpoint with a tuned text tower: a run, a Hugging Face directory, a .pt, ...; may "
        "be repeated",
    )
    add(
        "--data",
        action="append",
        required=True,
        type=Path,
        metavar="DIR",
        help="published files and photos, at any depth; may be repeated: the first wins",
    )
    add("--images", action="append", default=[], type=Path, metavar="DIR", help="more photos")
    add("--out", required=True, type=Path, metavar="DIR", help="folder to write into")
    add(
        "--phrases",
        type=lambda text: [name.strip() for name in text.split(",") if name.strip()],
        default="available",
        metavar="A,B",
        help=f"of {', '.join(_PHRASES)}; default: all whose files and photos are there",
    )
    add("--split", help="of PhraseCut (default: test) and RefCOCO (default: val)")
    add("--allow-subset", action="store_true", help="score the phrases whose photos are there")
    add("--overwrite", action="store_true", help="replace results of other models in --out")
    add(
        "--size",
        type=int,
        default=352,
        metavar="PIXELS",
        help="side of photo and mask; default: %(default)s, the published protocol",
    )
    add("--device", default="cpu", help="of PyTorch, such as cuda; default: %(default)s")
    add("--activation", metavar="NAME", help="quick_gelu or gelu, for weights that do not say")
    add("--tokenizer", metavar="DIR", help="vocabulary for a model that has none")
    add("--seed", type=int, default=0, help="of the bootstrap; default: %(default)s")
    add("--gallery", type=int, default=24, metavar="N", help="overlays a set in the report")
    return parser


if __name__ == "__main__":
    entry.run(main)
