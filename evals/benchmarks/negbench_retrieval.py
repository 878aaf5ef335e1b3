"""NegBench retrieval: photos or videos for plain captions, and for captions that also negate.

Source: Alhamoud et al., "Vision-Language Models Do Not Understand Negation" (CVPR 2025, arXiv
2501.09425), github.com/m1k2zoo/negbench (MIT); the CSV files are on its Google Drive. Photos: COCO
val2017; frames of MSR-VTT (`evals.frames` extracts them).

File: a row a photo, with `filepath` and `captions`, a Python list written as text (read without
eval). The negated COCO file has the rows of the plain one, its captions rewritten so that they also
say what is not there. MSR-VTT has one caption a video (`captions` holds it as text).

Protocol (`evaluation/retrieval.py`): cosine of all captions with all photos; recall@k over all
captions, text to image (R@5, and R-Neg@5 on the negated file). The same photos and the same
positions, so the difference of the two is what the negation costs. Many photos suit a negated
caption besides its own; only its own counts.
"""

from evals.benchmark import Problem
from evals.frames import frames_of
from evals.images import DataRoots, ImageRef
from evals.reading import Fields, read_csv, read_items
from evals.retrieval import Captioned, retrieval_problem


def load(roots: DataRoots, *, file: str, download: str, video: bool = False) -> Problem:
    """Reads the CSV file. Raises InputError."""
    path = roots.find(file, download=download)
    rows = enumerate(read_csv(path, ("filepath", "image_id", "captions")))
    records = read_items(path, rows, _record, video=video)
    views = frames_of if video else None
    return retrieval_problem(roots, path, records, headlines=("t2i_recall@5",), views=views)


def _record(fields: Fields, index: str, row: dict[str, str], *, video: bool) -> Captioned:
    where = f"row {index}"
    image = ImageRef(fields.text(row, "filepath", where))
    if video and not str(row["captions"]).startswith("["):
        captions = [fields.caption(row, "captions", where)]
    else:
        captions = fields.texts(row, "captions", where)
    name = fields.unique(fields.text(row, "image_id", where), where)
    return Captioned(name, image, tuple(captions))
