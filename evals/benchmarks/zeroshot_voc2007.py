"""VOC2007 zero-shot: the class of each annotated object, cut out of its photo.

Source: Everingham et al., "The PASCAL Visual Object Classes Challenge 2007" (photos: Flickr
licences; host.robots.ox.ac.uk/pascal/VOC/voc2007); class names and the one template are OpenAI's
(`evals/prompts`, MIT). Files: `VOCdevkit/VOC2007` with `ImageSets/Main/test.txt`, `Annotations` and
`JPEGImages`, or a data set prepared with tensorflow-datasets (`voc/2007`, split test).

Protocol (CLIP_benchmark, its `voc2007`): every object of the test split, difficult ones included,
cropped to its box `(xmin, ymin, xmax, ymax)`; top-1 and top-5 over 20 classes. OpenAI gives one
template for VOC2007 (`top1_single`); `top1_imagenet_templates` is the ensemble of ImageNet's 80.
CLIP's own number is another task, the mean average precision of whole photos.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from evals.benchmark import Benchmark, Problem
from evals.classification import Labelled, classification_problem
from evals.images import DataRoots, ImageRef
from evals.labelled import prepared, read_prompts
from evals.reading import Fields
from negclip_jax.common.decoding import opened
from negclip_jax.common.errors import InputError
from negclip_jax.common.records import Box
from negclip_jax.common.strict_json import read_text
from negclip_jax.data.records import unsafe_name

DOWNLOAD = "host.robots.ox.ac.uk/pascal/VOC/voc2007"
TFDS = "voc/2007"
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def load(roots: DataRoots) -> Problem:
    """Reads the test split. Raises InputError."""
    prompts = read_prompts("voc2007")
    folder = roots.folder("VOC2007/ImageSets/Main")
    if folder is not None:
        where: Path = folder.parents[1]
        items = _from_folder(where, prompts.classes)
    else:
        where = Path(f"tfds:{TFDS}/test")
        rows = prepared(roots, ("VOCdevkit/VOC2007",), f"{TFDS}/test", DOWNLOAD)
        items = _from_tfds(rows, prompts.classes)
    sets = {
        "single": prompts.templates,
        "imagenet_templates": read_prompts("imagenet").templates,
    }
    return classification_problem(roots, where, items, prompts.classes, sets)


def _from_folder(folder: Path, classes: Sequence[str]) -> list[Labelled]:
    items = []
    for name in read_text(folder / "ImageSets" / "Main" / "test.txt").split():
        if unsafe_name(name):
            raise InputError(f"{folder}: test.txt names {name!r}, which {unsafe_name(name)}")
        file = folder / "Annotations" / f"{name}.xml"
        fields = Fields(file)
        for i, thing in enumerate(_objects(fields)):
            kind = fields.option({"name": thing.findtext("name")}, "name", f"object {i}", classes)
            box = _box(fields, thing.find("bndbox"), f"object {i}")
            ref = ImageRef(f"VOC2007/JPEGImages/{name}.jpg", box)
            items.append(Labelled(f"{name}#{i}", ref, classes.index(kind) if kind else 0))
        fields.done()
    return items


def _objects(fields: Fields) -> list[ElementTree.Element]:
    text = read_text(fields.path)
    if "<!" in text.replace("<!--", ""):  # a DTD, whose entities can unpack to anything
        fields.note("not plain XML", "it declares a document type")
        return []
    try:
        return ElementTree.fromstring(text).findall("object")
    except ElementTree.ParseError as error:
        fields.note("not valid XML", str(error))
        return []


def _box(fields: Fields, corners: ElementTree.Element | None, where: str) -> Box:
    found = {name: corners.findtext(name) if corners is not None else None for name in CORNERS}
    x, y, right, bottom = (fields.number(found, name, where) for name in CORNERS)
    return fields.box((x, y, right - x, bottom - y), where)


def _from_tfds(rows: Sequence[dict], classes: Sequence[str]) -> list[Labelled]:
    names = rows.dataset_info.features["objects"]["label"].names
    items = []
    for i, row in enumerate(rows):
        with opened(row["image"], f"tfds:{TFDS}/test#{i}") as image:  # boxes are shares of its size
            width, height = image.size
        boxes, labels = row["objects"]["bbox"], row["objects"]["label"]
        for j, (box, label) in enumerate(zip(boxes, labels, strict=True)):
            top, left, bottom, right = (float(v) for v in box)
            # Back to the whole pixels of the annotation: shares are kept in float32.
            x, y, right, bottom = (
                round(v) for v in (left * width, top * height, right * width, bottom * height)
            )
            ref = ImageRef(f"tfds:{TFDS}/test#{i}", (x, y, right - x, bottom - y))
            items.append(Labelled(f"{i}#{j}", ref, classes.index(names[int(label)])))
    return items


BENCHMARK = Benchmark(
    name="voc2007",
    title="VOC2007 zero-shot (objects)",
    source="Everingham et al. 2007; Radford et al., ICML 2021 (prompts)",
    licence="photos: Flickr licences; prompts MIT",
    download=DOWNLOAD,
    load=load,
    retention=True,
    task="Which class is the object that was cut out of the photo?",
)
