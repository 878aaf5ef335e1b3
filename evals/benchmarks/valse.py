"""VALSE: "there are no people" or "there are people"? A caption or its foil, in eleven pieces.

Source: Parcalabescu et al., "VALSE" (ACL 2022, arXiv 2112.07566), github.com/Heidelberg-NLP/VALSE,
`data/*.json` (MIT). Photos: Visual7W, ai.stanford.edu/~yukez/visual7w (existence, counting), COCO
val2017 (plurals, relations), COCO val2014 (foil-it), COCO train2014 and VisDial (coreference), SWiG
(actions); the repository's README says where each is.

File: an object from item id to `image_file`, `caption`, `foil`, `mturk` and more.

Protocol: pairwise accuracy `acc_r`, the share of items with score(caption) > score(foil); a tie is
wrong (`lxmert_valse_eval.py`; the repository has no script for CLIP, for which no other of its
metrics is defined). VALSE's scripts count only valid items (`mturk.caption >= 2` of 3 annotators:
505 of 534 existence items); NegationCLIP's published values are multiples of 1/534 and so count
all. Both are reported: `accuracy` is over all items, `accuracy_valid` over the valid ones. One
item's caption and foil are equal ("There are 4."): never right officially, half right strictly.

`valse` is existence, the piece about negation. `valse_pieces` are the ten others: each has its
accuracy over all items (its name) and over the valid ones (`NAME_valid`);
`accuracy_mean_of_pieces` is their mean, given only where all ten files are there.
"""

from evals.benchmark import Problem
from evals.choices import ACCURACY, POLARITY_CONTROLS, AccuracySpec, Choice, choice_problem
from evals.images import DataRoots, ImageRef
from evals.reading import Fields, read_items, read_json, read_parts

# At least two of three annotators found the caption, not the foil, to be true.
VALID = {"valid": {"yes"}}
PIECES = ("plurals", "relations", "foil-it", "coreference-standard", "coreference-hard")
PIECES += ("counting-small-quant", "counting-hard", "counting-adversarial")
PIECES += ("action-replacement", "actant-swap")


def load(roots: DataRoots, *, download: str) -> Problem:
    """Reads `existence.json`, all 534 items. Raises InputError."""
    file = roots.find(*_file_names("existence"), download=download)
    items = read_items(file, read_json(file, dict).items(), _item, piece="existence")
    numbers = (*ACCURACY, AccuracySpec("accuracy_valid", VALID))
    return choice_problem(
        roots, file, items, rule="greater", numbers=numbers, controls=POLARITY_CONTROLS
    )


def load_pieces(roots: DataRoots, *, download: str) -> Problem:
    """Reads those of the ten files that are there. Raises InputError."""
    names = {piece: _file_names(piece) for piece in PIECES}
    folder, items, notes = read_parts(
        roots, names, download, "piece", lambda file: read_json(file, dict).items(), _item
    )
    mean = AccuracySpec("accuracy_mean_of_pieces", macro="piece", headline=True)
    each = (
        AccuracySpec(piece + suffix, {"piece": {piece}} | valid, headline=not valid)
        for piece in PIECES
        for suffix, valid in (("", {}), ("_valid", VALID))
    )
    shown = {"numbers": (*([] if notes else [mean]), *each), "breakdowns": {"piece": "by piece"}}
    return choice_problem(roots, folder, items, rule="greater", notes=notes, **shown)


def _file_names(piece: str) -> tuple[str, ...]:
    """Where the file of a piece may be."""
    return f"valse/{piece}.json", f"VALSE/data/{piece}.json", f"valse_{piece}.json", f"{piece}.json"


def _item(fields: Fields, key: str, record: dict, *, piece: str) -> Choice:
    image = ImageRef(fields.text(record, "image_file", key))
    texts = fields.text(record, "caption", key), fields.text(record, "foil", key)
    votes = record.get("mturk") if isinstance(record, dict) else None
    valid = fields.number(votes if isinstance(votes, dict) else {}, "caption", f"{key}.mturk")
    groups = {"piece": piece, "valid": "yes" if valid >= 2 else "no"}
    return Choice(f"{piece}:{key}", (image,), texts, 0, groups)
