"""VALSE: a caption or its foil? `valse` is the existence piece, `valse_pieces` the ten others.

Source: Parcalabescu et al., "VALSE" (ACL 2022, arXiv 2112.07566), github.com/Heidelberg-NLP/VALSE,
`data/*.json` (MIT). Photos: Visual7W (existence, counting), COCO (plurals, relations, foil-it,
coreference), SWiG (actions); see the repository's README for each.

File: an object from item id to `image_file`, `caption`, `foil`, `mturk` and more.

Protocol: pairwise accuracy `acc_r`, the share of items with score(caption) > score(foil); a tie is
wrong (`lxmert_valse_eval.py`; the repository has no script for CLIP, for which no other of its
metrics is defined). VALSE's scripts count only valid items (`mturk.caption >= 2` of 3 annotators:
505 of 534 existence items); NegationCLIP's published values are multiples of 1/534 and so count
all. Both are reported: `accuracy` is over all items, `accuracy_valid` over the valid ones.
"""

from collections.abc import Sequence

from evals.benchmark import Benchmark, ImageRef, Problem, Published
from evals.choices import ACCURACY, Choice, Number, choice_problem
from evals.controls import POLARITY_CONTROLS
from evals.images import DataRoots
from evals.reading import Fields, read_json
from negclip_jax.errors import InputError

PAPER = "Park et al. 2025 (arXiv 2501.10913)"
DOWNLOAD = "github.com/Heidelberg-NLP/VALSE (data/*.json)"
PIECES = (
    "plurals",
    "relations",
    "foil-it",
    "coreference-standard",
    "coreference-hard",
    "counting-small-quant",
    "counting-hard",
    "counting-adversarial",
    "action-replacement",
    "actant-swap",
)


def load_existence(roots: DataRoots) -> Problem:
    """Reads `existence.json`, all 534 items. Raises InputError."""
    file = roots.find(*_names("existence"), download=DOWNLOAD)
    valid = Number("accuracy_valid", _is_valid)
    return choice_problem(
        roots,
        file,
        _read(file, "existence"),
        rule="greater",
        numbers=(*ACCURACY, valid),
        controls=POLARITY_CONTROLS,
    )


def load_pieces(roots: DataRoots) -> Problem:
    """Reads those of the ten other files that are there; raises InputError where none is."""
    items: list[Choice] = []
    files, absent = [], []
    for piece in PIECES:
        try:
            files.append(roots.find(*_names(piece), download=DOWNLOAD))
        except InputError:
            absent.append(piece)
            continue
        items += _read(files[-1], piece)
    if not items:
        raise InputError(f"no file of VALSE ({', '.join(PIECES)}) is there: get it from {DOWNLOAD}")
    notes = [f"Pieces whose file is not there: {', '.join(absent)}."] if absent else []
    numbers: list[Number] = []
    if not absent:
        numbers.append(Number("accuracy_mean_of_pieces", macro="piece", headline=True))
    for piece in PIECES:
        numbers += _numbers(piece)
    return choice_problem(
        roots,
        files[0].parent,
        items,
        rule="greater",
        numbers=numbers,
        breakdowns={"piece": "by piece"},
        notes=notes,
    )


def _names(piece: str) -> tuple[str, ...]:
    return f"valse/{piece}.json", f"VALSE/data/{piece}.json", f"valse_{piece}.json", f"{piece}.json"


def _numbers(piece: str) -> list[Number]:
    def within(item: Choice) -> bool:
        return item.groups["piece"] == piece

    return [
        Number(piece, within, headline=True),
        Number(f"{piece}_valid", lambda item: within(item) and _is_valid(item)),
    ]


def _is_valid(item: Choice) -> bool:
    return item.groups["valid"] == "yes"


def _read(file, piece: str) -> Sequence[Choice]:
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


_COMMON = {
    "source": "Parcalabescu et al., ACL 2022, github.com/Heidelberg-NLP/VALSE",
    "licence": "MIT; photos: Visual7W, COCO (Flickr licences), SWiG",
    "download": DOWNLOAD,
    "task": "Is the caption closer to the photo than its foil?",
}
BENCHMARK = Benchmark(
    name="valse",
    title="VALSE existence",
    load=load_existence,
    published=(
        Published("CLIP ViT-B/32", "accuracy", 379 / 534, PAPER),
        Published("CLIP-bnl ViT-B/32", "accuracy", 410 / 534, PAPER),
        Published("CoN-CLIP ViT-B/32", "accuracy", 383 / 534, PAPER),
        Published("NegationCLIP ViT-B/32", "accuracy", 428 / 534, PAPER),
        Published("CLIP ViT-L/14", "accuracy", 357 / 534, PAPER),
        Published("NegationCLIP ViT-L/14", "accuracy", 425 / 534, PAPER),
    ),
    **_COMMON,
)
OTHER_PIECES = Benchmark(
    name="valse_pieces", title="VALSE, other pieces", load=load_pieces, **_COMMON
)
