"""SugarCrepe: a caption or a fluent, wrong variant of it, in seven categories.

Source: Hsieh et al., "SugarCrepe" (NeurIPS 2023, arXiv 2306.14610),
github.com/RAIVNLab/sugar-crepe, `data/*.json` (MIT). Photos: COCO
val2017, images.cocodataset.org/zips/val2017.zip.

File, one a category: an object from an index to `filename`, `caption`, `negative_caption`.

Protocol (`main_eval.py`): the share of items with score(caption) > score(negative caption), so that
a tie is wrong, for each category. The repository computes no overall number; `accuracy_mean` is the
mean over the seven categories, as papers report it, given only where all files are there.
"""

from evals.benchmark import Problem
from evals.choices import AccuracySpec, Choice, by_group, choice_problem
from evals.images import DataRoots, ImageRef
from evals.reading import Fields, read_json, read_parts

CATEGORIES = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel")
CATEGORIES += ("swap_att", "swap_obj")


def load(roots: DataRoots, *, download: str) -> Problem:
    """Reads those of the seven files that are there. Raises InputError."""
    names = {c: (f"{c}.json", f"sugarcrepe_{c}.json") for c in CATEGORIES}
    folder, items, notes = read_parts(
        roots, names, download, "category", lambda file: read_json(file, dict).items(), _item
    )
    mean = AccuracySpec("accuracy_mean", macro="category", headline=True)
    each = by_group("category", CATEGORIES, headline=bool(notes))
    shown = {"numbers": each if notes else (mean, *each), "breakdowns": {"category": "by category"}}
    return choice_problem(roots, folder, items, rule="greater", notes=notes, **shown)


def _item(fields: Fields, key: str, record: dict, *, category: str) -> Choice:
    image = ImageRef(fields.text(record, "filename", key))
    texts = tuple(fields.text(record, name, key) for name in ("caption", "negative_caption"))
    return Choice(f"{category}:{key}", (image,), texts, 0, {"category": category})
