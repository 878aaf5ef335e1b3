"""POPE as statements: "There is a dog in the image." or "There is no dog in the image."?

Source: Li et al., "Evaluating Object Hallucination" (EMNLP 2023, arXiv 2305.10355),
github.com/AoiDragon/POPE, `output/coco/coco_pope_{random,popular,adversarial}.json` (MIT). Photos:
COCO val2014, images.cocodataset.org/zips/val2014.zip.

File: JSON lines `question_id`, `image`, `text` ("Is there a X in the image?"), `label` (yes, no);
3,000 each on 500 photos, half of them yes.

Protocol: POPE asks a model that answers; a dual encoder is given both answers as statements and
chooses the one of the higher cosine (a tie is wrong). `accuracy` is over all, also by file (how the
absent object was drawn) and by answer: `accuracy_yes` is POPE's recall, `accuracy_no` the share of
absent objects that are denied. A liking for the word "no" raises one and lowers the other.
"""

import re
from pathlib import Path

from evals.benchmark import Problem
from evals.choices import ACCURACY, POLARITY_CONTROLS, Choice, by_group, choice_problem
from evals.images import DataRoots, ImageRef
from evals.reading import Fields, read_json_lines, read_parts

SETTINGS = ("random", "popular", "adversarial")
_QUESTION = re.compile(r"Is there (an?) (.+) in the (?:image|imange)\?")  # some copies misspell it


def load(roots: DataRoots, *, download: str) -> Problem:
    """Reads those of the three files that are there. Raises InputError."""
    names = {s: (f"coco_pope_{s}.json", f"pope_{s}.jsonl") for s in SETTINGS}

    def records(file: Path) -> list[tuple[str, dict]]:
        return [(f"record {i}", row) for i, row in enumerate(read_json_lines(file), 1)]

    folder, items, notes = read_parts(roots, names, download, "setting", records, _item)
    parts = (*by_group("setting", SETTINGS), *by_group("label", ("yes", "no")))
    shown = {"numbers": (*ACCURACY, *parts), "notes": notes, "controls": POLARITY_CONTROLS}
    titles = {"setting": "by how absent objects were drawn", "label": "by the answer"}
    return choice_problem(roots, folder, items, rule="greater", breakdowns=titles, **shown)


def _item(fields: Fields, where: str, record: dict, *, setting: str) -> Choice:
    image = ImageRef(fields.text(record, "image", where))
    text = fields.text(record, "text", where)
    label = fields.option(record, "label", where, ("yes", "no"))
    number = fields.number(record, "question_id", where)
    name = fields.unique(f"{number:g}", where)
    question = _QUESTION.fullmatch(text)
    if text and question is None:
        fields.note('"text" is not "Is there a X in the image?"', where)
    article, thing = (question[1], question[2]) if question else ("", "")
    texts = (f"There is {article} {thing} in the image.", f"There is no {thing} in the image.")
    groups = {"setting": setting, "label": label}
    return Choice(f"{setting}:{name}", (image,), texts, int(label == "no"), groups)
