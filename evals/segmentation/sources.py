"""Where phrases with masks come from: PhraseCut, RefCOCO, NegRefCOCOg, COCO's category names.

PhraseCut (Wu et al., CVPR 2020, ChenyunWu/PhraseCutDataset): `refer_SPLIT.json`, a list of
`task_id`, `image_id`, `phrase` and `Polygons` (for each instance a list of polygons of points x,
y); `image_data_split3000.json` gives sizes; photos are Visual Genome's `IMAGE_ID.jpg`. CLIPSeg's
evaluation uses split test without 17 photos whose size is not the annotated one.

RefCOCO, RefCOCO+, RefCOCOg (lichengunc/refer): `refs(SPLITTER).p` with `instances.json` beside it;
each record has `ann_id`, `image_id`, `split` and `sentences`, each of which is one phrase.

NegRefCOCOg (Park et al., ICCV 2025): see `evals.benchmarks.negrefcocog`. The file has boxes only,
each being the photo cut where the other object begins, so the object is found again in COCO's
instances: the one pair of equal category for which the two boxes come out so. NegationCLIP reports
such a number on a subset of RefCOCOg that was not published.

Category names: every category that a photo shows, the mask being all of it, crowds included.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.benchmarks import negrefcocog as boxes
from evals.images import DataRoots, FileMissing
from evals.reading import Fields, read_json
from evals.segmentation.phrases import Phrase, PhraseSet, Source, is_negated, phrase_set
from evals.segmentation.refs import read_refs

_INSTANCES = ("instances", "instances_train2014", "instances_train2017")
_INSTANCES += ("instances_val2014", "instances_val2017")
# Photos whose size is not the annotated one: timojl/clipseg, datasets/phrasecut.py.
_WRONG_SIZE = {150417, 285665, 498246, 61564, 285743, 498269, 498010, 150516, 150344, 286093}
_WRONG_SIZE |= {61530, 150333, 286065, 285814, 498187, 285761, 498042}
_TOLERANCE = 1.0  # pixels, between the edges of a box in two files

Box = tuple[float, float, float, float]


class Instances:
    """Objects of files in COCO's instances layout.

    Attributes:
      photos: by id: file name and (height, width).
      categories: names by id.
      objects: annotations by id.
      of_photo: annotations by photo's id.
    """

    def __init__(self, files: Sequence[Path]):
        """Reads the files. Raises InputError for all that is wrong in one of them."""
        self.photos: dict[int, tuple[str, tuple[int, int]]] = {}
        self.categories: dict[int, str] = {}
        self.objects: dict[int, dict] = {}
        self.of_photo: dict[int, list[dict]] = defaultdict(list)
        for file in files:
            self._read(read_json(file, dict), Fields(file))

    def _read(self, content: dict, fields: Fields) -> None:
        for i, row in enumerate(fields.sequence(content, "categories", "the file")):
            where = f"categories[{i}]"
            self.categories[fields.number(row, "id", where)] = fields.text(row, "name", where)
        for i, row in enumerate(fields.sequence(content, "images", "the file")):
            where = f"images[{i}]"
            size = tuple(fields.number(row, side, where) for side in ("height", "width"))
            name = fields.text(row, "file_name", where)
            self.photos[fields.number(row, "id", where)] = name, size
        for i, row in enumerate(fields.sequence(content, "annotations", "the file")):
            where = f"annotations[{i}]"
            image, category, identity = (
                fields.number(row, key, where) for key in ("image_id", "category_id", "id")
            )
            for value, known, what in (
                (image, self.photos, "image_id is not among the images"),
                (category, self.categories, "category_id is not among the categories"),
            ):
                if value not in known:
                    fields.note(what, where)
            if identity in self.objects:
                continue  # COCO's 2014 and 2017 files hold the same objects
            if isinstance(row, dict) and isinstance(row.get("segmentation"), list | dict):
                box = fields.box(row.get("bbox"), where)
                row = row | {"image_id": image, "category_id": category, "bbox": box}
                self.objects[identity] = row
                self.of_photo[image].append(row)
            else:
                fields.note('"segmentation" is missing', where)
        fields.done()
        self.photos = {k: (name, (int(h), int(w))) for k, (name, (h, w)) in self.photos.items()}


def phrasecut(roots: DataRoots, split: str | None) -> list[PhraseSet]:
    """PhraseCut's split, "test" by default."""
    name = f"refer_{split or 'test'}.json"
    file = roots.find(name, download="github.com/ChenyunWu/PhraseCutDataset")
    fields, sizes, phrases = Fields(file), _phrasecut_sizes(roots), []
    records = read_json(file, list)
    for i, row in enumerate(records):
        where = f"record {i}"
        image = fields.number(row, "image_id", where)
        text = fields.text(row, "phrase", where)
        instances = fields.sequence(row, "Polygons", where)
        if not all(isinstance(polygons, list) for polygons in instances):
            fields.note('"Polygons" is not a list of lists', where)
            continue
        polygons = [polygon for instance in instances for polygon in instance]
        item = str(row.get("task_id", i)) if isinstance(row, dict) else str(i)
        if image == image and image not in _WRONG_SIZE:  # a number at all
            size = sizes.get(int(image))
            phrases.append(Phrase(item, f"{int(image)}.jpg", text, (polygons,), size))
        fields.unique(item, where)
    fields.done()
    dropped = len(records) - len(phrases)
    found = phrase_set(
        roots,
        phrases,
        name="phrasecut",
        title="PhraseCut",
        source="Wu et al., CVPR 2020, github.com/ChenyunWu/PhraseCutDataset",
        file=str(file),
        notes=[f"{dropped} phrases on the 17 photos of wrong size are left out, as published."],
    )
    return [found]


def _phrasecut_sizes(roots: DataRoots) -> dict[int, tuple[int, int]]:
    try:
        file = roots.find("image_data_split3000.json", "image_data_split.json", download="")
    except FileMissing:
        return {}  # the photos' own
    fields = Fields(file)
    sizes = {
        fields.number(row, "image_id", f"record {i}"): (
            fields.number(row, "height", f"record {i}"),
            fields.number(row, "width", f"record {i}"),
        )
        for i, row in enumerate(read_json(file, list))
    }
    fields.done()
    return {int(k): (int(h), int(w)) for k, (h, w) in sizes.items()}


def refcoco(roots: DataRoots, split: str | None) -> list[PhraseSet]:
    """Every `refs(SPLITTER)` file that is there: split "val" by default, the only one of all."""
    names = [f"refs({who}).{end}" for who in ("unc", "google", "umd") for end in ("p", "json")]
    files = roots.find_all(*names, "refs.p", "refs.json")
    if not files:
        roots.find("refs(unc).p", "refs(umd).p", download="github.com/lichengunc/refer")
    return [_refcoco(roots, file, split or "val") for file in files]


def _refcoco(roots: DataRoots, file: Path, split: str) -> PhraseSet:
    instances, fields, phrases = _instances_beside(roots, file), Fields(file), []
    for i, row in enumerate(read_refs(file)):
        where = f"record {i}"
        if fields.text(row, "split", where) != split:
            continue
        annotation = instances.objects.get(fields.number(row, "ann_id", where))
        if annotation is None:
            fields.note("ann_id is not in instances.json", where)
            continue
        image, size = instances.photos[annotation["image_id"]]
        for j, sentence in enumerate(fields.sequence(row, "sentences", where)):
            text = fields.text(sentence, "sent", f"{where}, sentence {j}")
            shape = (annotation["segmentation"],)
            phrases.append(Phrase(f"{row.get('ref_id', i)}/{j}", image, text, shape, size))
    fields.done()
    name = f"{file.parent.name} {file.stem.removeprefix('refs').strip('()')}".strip()
    return phrase_set(
        roots,
        phrases,
        name=name.replace(" ", "_"),
        title=f"{name}, {split}",
        source="Yu et al., ECCV 2016, github.com/lichengunc/refer",
        file=str(file),
    )


def _instances_beside(roots: DataRoots, file: Path) -> Instances:
    """RefCOCO's own instances.json, whose annotation ids its records name."""
    beside = file.with_name("instances.json")
    return Instances([beside] if beside.is_file() else _instance_files(roots))


def _instance_files(roots: DataRoots) -> list[Path]:
    names = [f"{name}.json" for name in _INSTANCES]
    files = roots.find_all(*names)
    if not files:
        roots.find(*names, download="cocodataset.org (annotations)")
    return files


def categories(roots: DataRoots, split: str | None) -> list[PhraseSet]:
    """A phrase for every category in every photo of `instances.json`; there are no splits."""
    del split
    file = _instance_files(roots)[0]
    instances, phrases = Instances([file]), []
    for image, annotations in instances.of_photo.items():
        name, size = instances.photos[image]
        shapes: dict[str, list[Any]] = defaultdict(list)
        for annotation in annotations:
            category = instances.categories[annotation["category_id"]]
            shapes[category].append(annotation["segmentation"])
        phrases += [
            Phrase(f"{int(image)}/{text}", name, text, tuple(segmentations), size)
            for text, segmentations in shapes.items()
        ]
    found = phrase_set(
        roots,
        phrases,
        name="categories",
        title="Category names",
        source="Lin et al., ECCV 2014, cocodataset.org",
        file=str(file),
        notes=["The phrase is the category's name, the mask all that is annotated of it."],
    )
    return [found]


def negrefcocog(roots: DataRoots, split: str | None) -> list[PhraseSet]:
    """NegRefCOCOg's phrases whose object is found in COCO's instances; there are no splits."""
    del split
    file = roots.find("NegRefCOCOg.json", download=boxes.DOWNLOAD)
    instances, fields, phrases = Instances(_instance_files(roots)), Fields(file), []
    by_digits = {_coco_number(name): i for i, (name, _) in instances.photos.items()}
    records, absent, unclear, negated = read_json(file, list), [], 0, 0
    for i, row in enumerate(records):
        where = f"item {i}"
        image, text = fields.text(row, "image", where), fields.text(row, "phrase", where)
        negated += is_negated(text)
        pair = [fields.box(box, where) for box in fields.sequence(row, "bbox_list", where)]
        right = fields.box(row.get("ref_bbox") if isinstance(row, dict) else None, where)
        photo = by_digits.get(_coco_number(image))
        if photo is None:
            absent.append(image)
            continue
        name, size = instances.photos[photo]
        meant = _meant(instances.of_photo[photo], right, [b for b in pair if b != right], size)
        if meant is None:
            unclear += 1
        else:
            phrases.append(Phrase(str(i), name, text, (meant["segmentation"],), size))
    fields.done()
    notes = [
        f"Of {len(records)} phrases {len(absent)} are on photos that the instance files lack, and "
        f"{unclear} mean an object that cannot be told from the boxes: these are not scored."
    ]
    found = phrase_set(
        roots,
        phrases,
        name="negrefcocog",
        title="NegRefCOCOg",
        source="Park et al., ICCV 2025, github.com/parkquasar/NegationCLIP; masks from COCO",
        file=str(file),
        notes=notes,
        total=len(records),
        total_negated=negated,
    )
    missing = [*found.missing, *dict.fromkeys(absent)]
    return [dataclasses.replace(found, missing=missing)]


def _coco_number(name: str) -> str:
    """What the names of a photo in COCO 2014 and 2017 have in common."""
    return Path(name).stem[-12:]


def _meant(
    annotations: Sequence[Mapping[str, Any]],
    right: Box,
    others: Sequence[Box],
    size: tuple[int, int],
) -> Mapping[str, Any] | None:
    """The object that `right` was made of, if just one fits."""
    found = [
        one
        for one in annotations
        for two in annotations
        if one is not two
        and one["category_id"] == two["category_id"]
        and len(others) == 1
        and _cut(one["bbox"], two["bbox"], right, size)
        and _cut(two["bbox"], one["bbox"], others[0], size)
    ]
    return found[0] if len(found) == 1 else None


def _cut(one: Box, two: Box, box: Box, size: tuple[int, int]) -> bool:
    """Whether `box` holds `one` and each of its edges is the photo's or an edge of `two`."""
    (left, top, right, bottom), (a, b, c, d) = _edges(box), _edges(one)
    t = _TOLERANCE
    if not (left - t <= a and top - t <= b and c <= right + t and d <= bottom + t):
        return False
    height, width = size
    x0, y0, x1, y1 = _edges(two)
    wanted = ((left, 0, x1), (top, 0, y1), (right, width, x0), (bottom, height, y0))
    return all(min(abs(edge - border), abs(edge - cut)) <= t for edge, border, cut in wanted)


def _edges(box: Sequence[float]) -> tuple[float, float, float, float]:
    x, y, width, height = box
    return x, y, x + width, y + height


SOURCES: dict[str, Source] = {
    "phrasecut": phrasecut,
    "refcoco": refcoco,
    "negrefcocog": negrefcocog,
    "categories": categories,
}
