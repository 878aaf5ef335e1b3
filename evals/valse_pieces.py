"""VALSE, the ten pieces besides existence: a caption or its foil?

Source, licence and protocol as `evals.valse`. Photos: COCO val2017 (plurals, relations), COCO
val2014 (foil-it), COCO train2014 and VisDial (coreference), Visual7W (counting), SWiG (actions);
the repository's README says where each is.

Each piece has its pairwise accuracy over all items (its name) and over the valid ones
(`NAME_valid`); `accuracy_mean_of_pieces` is their mean, given only where all ten files are there.
"""

from evals.benchmark import Benchmark, Problem
from evals.choices import Choice, Number, choice_problem
from evals.images import DataRoots, FileMissing
from evals.valse import COMMON, DOWNLOAD, file_names, is_valid, read_piece

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


def load(roots: DataRoots) -> Problem:
    """Reads those of the ten other files that are there; raises InputError where none is."""
    items: list[Choice] = []
    files, absent = [], []
    for piece in PIECES:
        try:
            files.append(roots.find(*file_names(piece), download=DOWNLOAD))
        except FileMissing:
            absent.append(piece)
            continue
        items += read_piece(files[-1], piece)
    if not items:
        raise FileMissing(
            f"none of VALSE's files ({', '.join(PIECES)}) is below "
            f"{', '.join(map(str, roots.data))}: get it from {DOWNLOAD}"
        )
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


def _numbers(piece: str) -> list[Number]:
    def within(item: Choice) -> bool:
        return item.groups["piece"] == piece

    return [
        Number(piece, within, headline=True),
        Number(f"{piece}_valid", lambda item: within(item) and is_valid(item)),
    ]


BENCHMARK = Benchmark(name="valse_pieces", title="VALSE, other pieces", load=load, **COMMON)
