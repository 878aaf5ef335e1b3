"""NegRefCOCOg: which of two boxes does a negated referring expression mean?

Source: Park et al., "Know 'No' Better" (ICCV 2025, arXiv 2501.10913),
github.com/parkquasar/NegationCLIP, `NegRefCOCOg/NegRefCOCOg.json` (MIT; from RefCOCOg and COCO,
CC BY 4.0). Photos: COCO train2014, images.cocodataset.org/zips/train2014.zip.

File: a list of 440 objects `image`, `phrase`, `ref_bbox` and `bbox_list` (two boxes x, y, w, h; not
tight: they are enlarged, and often hold a part of the other object).

Protocol (`negrefcocog_eval.py`): each box is cropped, `crop((x, y, x + w, y + h))`, and scored by
its cosine with the phrase; right if the first box of the highest score equals `ref_bbox`. That box
always stands first in the file, so a tie counts as right: the strict number does not look. In 7
phrases the "negation" is a number ("batter no . 10"); their cue is reported as none.

What a gain is made of: the smaller box alone reaches 57.3 %, as much as CLIP. The controls show
such rules as rows of their own, and `accuracy_area_balanced` is the mean of the accuracies on items
whose right box is the smaller and on those where it is the larger one: a preference for small
crops alone reaches 50 % there.
"""

from evals.benchmark import Problem
from evals.choices import ACCURACY, BOX_CONTROLS, AccuracySpec, Choice, choice_problem
from evals.images import DataRoots, ImageRef
from evals.reading import Fields, read_items, read_json

SMALLER, LARGER, EQUAL = "smaller", "larger", "equal"


def load(roots: DataRoots, *, download: str) -> Problem:
    """Reads `NegRefCOCOg.json`; raises InputError for bad records and boxes outside their photo."""
    file = roots.find("NegRefCOCOg.json", download=download)
    items = read_items(file, enumerate(read_json(file, list)), item)
    fields = Fields(file)
    fields.check_boxes(roots, [(ref, f"item {i.id}") for i in items for ref in i.images])
    fields.done()
    unequal = {"size": {SMALLER, LARGER}}
    balanced = AccuracySpec("accuracy_area_balanced", unequal, macro="size")
    shown = {"numbers": (*ACCURACY, balanced), "controls": BOX_CONTROLS}
    shown["breakdowns"] = {"size": "by whether the right box is the smaller one"}
    return choice_problem(roots, file, items, rule="argmax", **shown)


def item(fields: Fields, index: str, record: dict) -> Choice:
    """An item of the file, with all of its boxes."""
    where = f"item {index}"
    image, phrase = fields.text(record, "image", where), fields.text(record, "phrase", where)
    boxes = [fields.box(box, where) for box in fields.sequence(record, "bbox_list", where)]
    right = fields.box(record.get("ref_bbox"), where) if isinstance(record, dict) else None
    if boxes.count(right) != 1 or len(boxes) < 2:
        fields.note('"ref_bbox" is not exactly one of two or more in "bbox_list"', where)
        boxes, right = [right, right], right
    answer = boxes.index(right)
    areas = [w * h for _, _, w, h in boxes]
    others = areas[:answer] + areas[answer + 1 :]
    size = (
        SMALLER if areas[answer] < min(others) else LARGER if areas[answer] > max(others) else EQUAL
    )
    images = tuple(ImageRef(image, box) for box in boxes)
    return Choice(index, images, (phrase,), answer, {"size": size})
