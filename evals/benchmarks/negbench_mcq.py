"""NegBench multiple choice: which of four captions with and without negation is true?

Source: Alhamoud et al., "Vision-Language Models Do Not Understand Negation" (CVPR 2025, arXiv
2501.09425), github.com/m1k2zoo/negbench (MIT); the CSV files are on its Google Drive. Photos: COCO
val2017, VOC2007 test, frames of MSR-VTT (`evals.frames` extracts them).

File: `image_path, correct_answer, caption_0 ... caption_3, correct_answer_template`, the last being
positive ("A and B"), negative ("not N") or hybrid ("A but not N").

Protocol (`evaluation/mcq.py`, since 2025-03 with normalised embeddings; earlier values do not
compare): argmax of four cosines; accuracy over all questions and by template (a paper's "average"
may be `accuracy` or `accuracy_mean_of_templates`). The right answer is option 0 in all files but
MSR-VTT's templated one, where the official script fails; here any index is read, and the strict
number does not look at positions.

The text-only control reads the four captions and no photo: it shows that the wrong options give
the right one away to whatever compares them.
"""

from evals.benchmark import Problem
from evals.choices import ACCURACY, AccuracySpec, Choice, by_group, choice_problem, contradictions
from evals.frames import frames_of
from evals.images import DataRoots, ImageRef
from evals.reading import Fields, read_csv, read_items

TYPES = ("positive", "negative", "hybrid")
MEAN = AccuracySpec("accuracy_mean_of_templates", macro="template")
CAPTIONS = tuple(f"caption_{i}" for i in range(4))
COLUMNS = ("image_path", "correct_answer", *CAPTIONS, "correct_answer_template")


def load(roots: DataRoots, *, file: str, download: str, video: bool = False) -> Problem:
    """Reads the CSV file; videos are the mean of their frames. Raises InputError."""
    path = roots.find(file, download=download)
    items = read_items(path, enumerate(read_csv(path, COLUMNS)), _item)
    shown = {"numbers": (*ACCURACY, *by_group("template", TYPES), MEAN)}
    shown["breakdowns"] = {"template": "by the form of the right answer"}
    shown["controls"] = {"text-only solver": contradictions}
    views = frames_of if video else None
    return choice_problem(roots, path, items, rule="argmax", views=views, **shown)


def _item(fields: Fields, index: str, row: dict[str, str]) -> Choice:
    where = f"row {index}"
    image = ImageRef(fields.text(row, "image_path", where))
    texts = tuple(fields.caption(row, name, where) for name in CAPTIONS)
    answer = fields.option(row, "correct_answer", where, [str(i) for i in range(4)])
    template = fields.option(row, "correct_answer_template", where, TYPES)
    return Choice(index, (image,), texts, int(answer or 0), {"template": template})
