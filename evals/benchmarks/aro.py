"""ARO: attribution, relation and word order, where a bag of words cannot tell.

Source: Yuksekgonul et al., "When and why vision-language models behave like bags-of-words" (ICLR
2023, arXiv 2210.01936), github.com/mertyg/vision-language-models-are-bows (MIT; photos: Visual
Genome CC BY 4.0, COCO, Flickr30k). Files and Visual Genome photos: its Google Drive.

Files: `visual_genome_relation.json` and `visual_genome_attribution.json`, lists of `image_path`,
`bbox_x`, `bbox_y`, `bbox_w`, `bbox_h`, `true_caption`, `false_caption`, and `relation_name` or
`attributes` (two). The order tests exist only as code that shuffles words with spaCy at load time,
so that its items depend on versions; their file is the list that the official class builds, written
once: `json.dump(COCO_Order(split="test").test_cases, open("coco_order.json", "w"))`, and
`flickr30k_order.json` likewise: `image` and five `caption_options`, the original first.

Protocol (`aro_datasets.py`): the photo is cut to the box; argmax over [false, true], so that a tie
is wrong; `accuracy_macro` is the mean over relations, or over attribute pairs with at least 25
items. Order: argmax over five with the original first, so that a tie is right.
"""

from evals.benchmark import Problem
from evals.choices import ACCURACY, AccuracySpec, Choice, choice_problem
from evals.images import DataRoots, ImageRef
from evals.reading import Fields, read_json

BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")


def load_genome(
    roots: DataRoots, *, file: str, download: str, group: str, at_least: int = 1
) -> Problem:
    """Reads a Visual Genome file. Raises InputError for bad records or boxes."""
    path = roots.find(file, download=download)
    fields = Fields(path)
    items = []
    for i, record in enumerate(read_json(path, list)):
        where = f"item {i}"
        box = fields.box([fields.number(record, key, where) for key in BOX], where)
        image = ImageRef(fields.text(record, "image_path", where), box)
        texts = tuple(fields.text(record, key, where) for key in ("false_caption", "true_caption"))
        if group == "relation":
            value = fields.text(record, "relation_name", where)
        else:
            value = "_".join(fields.texts(record, "attributes", where))
        items.append(Choice(str(i), (image,), texts, 1, {group: value}))
    fields.done()
    boxes = [(item.images[0], f"item {item.id}") for item in items]
    notes = fields.check_boxes(roots, boxes, tolerated=0.01)
    fields.done()
    macro = AccuracySpec("accuracy_macro", macro=group, at_least=at_least, headline=True)
    shown = {"numbers": (macro, AccuracySpec("accuracy")), "breakdowns": {group: f"by {group}"}}
    return choice_problem(roots, path, items, rule="argmax", **shown, notes=notes)


def load_order(roots: DataRoots, *, file: str, download: str) -> Problem:
    """Reads a file of caption options. Raises InputError."""
    path = roots.find(file, download=download)
    fields = Fields(path)
    items = []
    for i, record in enumerate(read_json(path, list)):
        image = ImageRef(fields.text(record, "image", f"item {i}"))
        texts = tuple(fields.texts(record, "caption_options", f"item {i}"))
        if len(texts) == 1:
            fields.note('"caption_options" holds one caption', f"item {i}")
        items.append(Choice(str(i), (image,), texts))
    fields.done()
    return choice_problem(roots, path, items, rule="argmax", numbers=ACCURACY)
