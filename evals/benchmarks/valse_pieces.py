"""VALSE, the ten pieces besides existence: a caption or its foil?

Source, licence and protocol as `evals.benchmarks.valse`. Photos: COCO val2017 (plurals,
relations), COCO val2014 (foil-it), COCO train2014 and VisDial (coreference), Visual7W (counting),
SWiG (actions); the repository's README says where each is.

Each piece has its pairwise accuracy over all items (its name) and over the valid ones
(`NAME_valid`); `accuracy_mean_of_pieces` is their mean, given only where all ten files are there.
"""

from evals.benchmark import Benchmark, Problem
from evals.benchmarks.valse import COMMON, DOWNLOAD, file_names, is_valid, read_piece
from evals.choices import Choice, Number, choice_problem
from evals.images import DataRoots
from evals.reading import find_parts

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
    """Reads those of the ten files that are there. Raises InputError."""
    names = {piece: file_names(piece) for piece in PIECES}
    files, notes = find_parts(roots, names, DOWNLOAD)
    items = [item for piece, file in files.items() for item in read_piece(file, piece)]
    mean = Number("accuracy_mean_of_pieces", macro="piece", headline=True)
    return choice_problem(
        roots,
        next(iter(files.values())).parent,
        items,
        rule="greater",
        numbers=[*([] if notes else [mean]), *(n for piece in files for n in _numbers(piece))],
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


BENCHMARK = Benchmark(
    name="valse_pieces", title="VALSE, other pieces", load=load, retention=True, **COMMON
)
