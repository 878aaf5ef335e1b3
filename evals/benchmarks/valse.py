"""VALSE existence: "there are no people" or "there are people"? A caption or its foil.

Source: Parcalabescu et al., "VALSE" (ACL 2022, arXiv 2112.07566), github.com/Heidelberg-NLP/VALSE,
`data/existence.json` (MIT). Photos: Visual7W, ai.stanford.edu/~yukez/visual7w. The ten other pieces
are `evals.benchmarks.valse_pieces`.

File: an object from item id to `image_file`, `caption`, `foil`, `mturk` and more.

Protocol: pairwise accuracy `acc_r`, the share of items with score(caption) > score(foil); a tie is
wrong (`lxmert_valse_eval.py`; the repository has no script for CLIP, for which no other of its
metrics is defined). VALSE's scripts count only valid items (`mturk.caption >= 2` of 3 annotators:
505 of 534 existence items); NegationCLIP's published values are multiples of 1/534 and so count
all. Both are reported: `accuracy` is over all items, `accuracy_valid` over the valid ones. One
item's caption and foil are equal ("There are 4."): never right officially, half right strictly.
"""

from pathlib import Path

from evals.benchmark import Benchmark, Problem, Published
from evals.choices import ACCURACY, Choice, Number, choice_problem
from evals.controls import POLARITY_CONTROLS
from evals.images import DataRoots, ImageRef
from evals.reading import Fields, read_json

PAPER = "Park et al. 2025 (arXiv 2501.10913)"
DOWNLOAD = "github.com/Heidelberg-NLP/VALSE (data/*.json)"


def load(roots: DataRoots) -> Problem:
    """Reads `existence.json`, all 534 items. Raises InputError."""
    file = roots.find(*file_names("existence"), download=DOWNLOAD)
    valid = Number("accuracy_valid", is_valid)
    return choice_problem(
        roots,
        file,
        read_piece(file, "existence"),
        rule="greater",
        numbers=(*ACCURACY, valid),
        controls=POLARITY_CONTROLS,
    )


def file_names(piece: str) -> tuple[str, ...]:
    """Where the file of a piece may be."""
    return f"valse/{piece}.json", f"VALSE/data/{piece}.json", f"valse_{piece}.json", f"{piece}.json"


def is_valid(item: Choice) -> bool:
    """Whether at least two of three annotators found the caption, not the foil, to be true."""
    return item.groups["valid"] == "yes"


def read_piece(file: Path, piece: str) -> list[Choice]:
    """The items of one piece. Raises InputError."""
    fields = Fields(file)
    items = []
    for key, record in read_json(file, dict).items():
        image = ImageRef(fields.text(record, "image_file", key))
        texts = fields.text(record, "caption", key), fields.text(record, "foil", key)
        votes = record.get("mturk") if isinstance(record, dict) else None
        valid = fields.number(votes if isinstance(votes, dict) else {}, "caption", f"{key}.mturk")
        groups = {"piece": piece, "valid": "yes" if valid >= 2 else "no"}
        items.append(Choice(f"{piece}:{key}", (image,), texts, 0, groups))
    fields.done()
    return items


COMMON = {
    "source": "Parcalabescu et al., ACL 2022, github.com/Heidelberg-NLP/VALSE",
    "licence": "MIT; photos: Visual7W, COCO (Flickr licences), SWiG",
    "download": DOWNLOAD,
    "task": "Is the caption closer to the photo than its foil?",
}
BENCHMARK = Benchmark(
    name="valse",
    title="VALSE existence",
    load=load,
    published=(
        Published("CLIP ViT-B/32", "accuracy", 379 / 534, PAPER),
        Published("CLIP-bnl ViT-B/32", "accuracy", 410 / 534, PAPER),
        Published("CoN-CLIP ViT-B/32", "accuracy", 383 / 534, PAPER),
        Published("NegationCLIP ViT-B/32", "accuracy", 428 / 534, PAPER),
        Published("CLIP ViT-L/14", "accuracy", 357 / 534, PAPER),
        Published("NegationCLIP ViT-L/14", "accuracy", 425 / 534, PAPER),
    ),
    **COMMON,
)
