"""Zero-shot classification on ImageNet, CIFAR-10, CIFAR-100 and VOC2007's objects.

Source: Radford et al., "Learning Transferable Visual Models" (ICML 2021, arXiv 2103.00020). Class
names and templates are OpenAI's (`evals/prompts`, MIT). Photos, whichever is there first: a folder
of class folders, or a data set prepared with tensorflow-datasets (read without TensorFlow).

- ImageNet (Russakovsky et al., 2015; research only, image-net.org): `imagenet/val/n01440764/*.JPEG`
  or tfds `imagenet2012/validation`. Classes are synsets, since names repeat ("missile").
- CIFAR-10, CIFAR-100 (Krizhevsky, 2009; www.cs.toronto.edu/~kriz/cifar.html): `cifar10/test/cat/*`
  or tfds `cifar10/test`; the same for `cifar100`, fine labels.
- VOC2007 (Everingham et al.; photos: Flickr licences; host.robots.ox.ac.uk/pascal/VOC/voc2007):
  `VOCdevkit/VOC2007` with `ImageSets/Main/test.txt`, `Annotations` and `JPEGImages`, or tfds
  `voc/2007`, split test.

Protocol (CLIP's notebook, CLIP_benchmark): top-1 and top-5 by cosine with the class embedding.
`top1_single` uses the one prompt "a photo of a {}.", `top1_ensemble` all of OpenAI's templates (80
for ImageNet, 18 for CIFAR). Their ImageNet values differ by about a point, and papers often do not
say which they used: NegationCLIP's 62.02 for CLIP fits a single prompt.

VOC2007 (CLIP_benchmark, its `voc2007`): every object of the test split, difficult ones included,
cropped to its box `(xmin, ymin, xmax, ymax)`, over 20 classes. OpenAI gives one template for it
(`top1_single`); `top1_imagenet_templates` is the ensemble of ImageNet's 80. CLIP's own number is
another task, the mean average precision of whole photos.
"""

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from evals.benchmark import Problem
from evals.images import DataRoots, FileMissing, ImageRef, tfds_rows
from evals.reading import Fields
from evals.retrieval import Labelled, classification_problem
from negclip_jax.common.decoding import opened
from negclip_jax.common.errors import InputError
from negclip_jax.common.photos import PHOTO_SUFFIXES
from negclip_jax.common.strict_json import read_text
from negclip_jax.data.records import unsafe_name

PROMPTS = Path(__file__).parents[1] / "prompts"
SINGLE = "a photo of a {}."
VOC_TFDS = "voc/2007"
CORNERS = ("xmin", "ymin", "xmax", "ymax")


class Prompts(NamedTuple):
    """Class names and templates of OpenAI's prompts; `keys` name the classes' folders."""

    classes: list[str]
    keys: list[str]
    templates: list[str]


def read_prompts(name: str) -> Prompts:
    """The prompts of one data set, which come with this package (MIT, openai/CLIP)."""
    content = json.loads((PROMPTS / f"{name}.json").read_text(encoding="utf-8"))
    classes = content["classes"]
    return Prompts(classes, content.get("keys", classes), content["templates"])


def load(
    roots: DataRoots, *, prompts: str, folders: Sequence[str], tfds: str, download: str
) -> Problem:
    """Reads the photos of one data set. Raises InputError."""
    known = read_prompts(prompts)
    where, items = find_labelled(roots, folders, tfds, known.keys, download)
    sets = {"single": [SINGLE], "ensemble": known.templates}
    return classification_problem(roots, where, items, known.classes, sets)


def load_voc2007(roots: DataRoots, *, download: str) -> Problem:
    """Reads the test split. Raises InputError."""
    prompts = read_prompts("voc2007")
    folder = roots.folder("VOC2007/ImageSets/Main")
    if folder is not None:
        where: Path = folder.parents[1]
        items = _voc_from_folder(where, prompts.classes)
    else:
        where = Path(f"tfds:{VOC_TFDS}/test")
        rows = prepared(roots, ("VOCdevkit/VOC2007",), f"{VOC_TFDS}/test", download)
        items = _voc_from_tfds(rows, prompts.classes)
    sets = {"single": prompts.templates, "imagenet_templates": read_prompts("imagenet").templates}
    return classification_problem(roots, where, items, prompts.classes, sets)


def find_labelled(
    roots: DataRoots, folders: Sequence[str], tfds: str, keys: Sequence[str], download: str
) -> tuple[Path, list[Labelled]]:
    """The photos of the first of `folders` that is there, else of the tfds data set.

    `tfds` is "NAME/SPLIT"; `keys` are names of the classes' folders or tfds labels in the order of
    the classes, where "aquarium_fish" and "aquarium fish" are the same. Returns where they came
    from and the photos. Raises InputError where neither is there or a class has another name.
    """

    def plain(name: str) -> str:
        return name.lower().replace("_", " ").strip()

    labels = {plain(key): label for label, key in enumerate(keys)}
    folder = next((found for name in folders if (found := roots.folder(name))), None)
    if folder is None:
        rows = prepared(roots, folders, tfds, download)
        if "label" not in rows.dataset_info.features:
            raise InputError(f"tfds:{tfds} has no labels: use the data set as it is published.")
        names = [plain(name) for name in rows.dataset_info.features["label"].names]
        if set(names) != set(labels):
            different = ", ".join(sorted(set(names) ^ set(labels))[:3])
            raise InputError(f"tfds:{tfds} has other classes than the prompts ({different}, ...).")
        found = [labels[names[int(row["label"])]] for row in rows]
        items = [Labelled(str(i), ImageRef(f"tfds:{tfds}#{i}"), n) for i, n in enumerate(found)]
        return Path(f"tfds:{tfds}"), items
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    unknown = [path.name for path in inside if plain(path.name) not in labels]
    absent = set(labels) - {plain(path.name) for path in inside}
    if unknown or absent:
        wrong = [f"{len(unknown)} unknown ({', '.join(unknown[:3])})"] * bool(unknown)
        wrong += [f"{len(absent)} without folder ({', '.join(sorted(absent)[:3])})"] * bool(absent)
        raise InputError(
            f"{folder} must hold one folder for each of {len(keys)} classes, such as "
            f"{keys[0]}: {'; '.join(wrong)}."
        )
    items = []
    for path in inside:
        for file in sorted(path.iterdir()):
            if file.suffix.lower() in PHOTO_SUFFIXES:
                name = f"{path.name}/{file.name}"
                ref = ImageRef(f"{folder.name}/{name}")
                items.append(Labelled(name, ref, labels[plain(path.name)]))
    if not items:
        raise InputError(f"{folder} holds no images.")
    return folder, items


def prepared(roots: DataRoots, folders: Sequence[str], tfds: str, download: str) -> Sequence[dict]:
    """The rows of a prepared tfds data set, as `folders` are not there. FileMissing names both."""
    dataset, _, split = tfds.rpartition("/")
    try:
        return tfds_rows(dataset, split, roots.data)
    except InputError as error:
        raise FileMissing(
            f"none of the folders {', '.join(folders)} is below {', '.join(map(str, roots.data))} "
            f"({download}), and as a prepared data set: {error}"
        ) from None


def _voc_from_folder(folder: Path, classes: Sequence[str]) -> list[Labelled]:
    items = []
    for name in read_text(folder / "ImageSets" / "Main" / "test.txt").split():
        if unsafe_name(name):
            raise InputError(f"{folder}: test.txt names {name!r}, which {unsafe_name(name)}")
        file = folder / "Annotations" / f"{name}.xml"
        fields, things = Fields(file), []
        text = read_text(file)
        if "<!" in text.replace("<!--", ""):  # a DTD, whose entities can unpack to anything
            fields.note("not plain XML", "it declares a document type")
        else:
            try:
                things = ElementTree.fromstring(text).findall("object")
            except ElementTree.ParseError as error:
                fields.note("not valid XML", str(error))
        for i, thing in enumerate(things):
            kind = fields.option({"name": thing.findtext("name")}, "name", f"object {i}", classes)
            corners = thing.find("bndbox")
            found = {c: corners.findtext(c) if corners is not None else None for c in CORNERS}
            x, y, right, bottom = (fields.number(found, c, f"object {i}") for c in CORNERS)
            box = fields.box((x, y, right - x, bottom - y), f"object {i}")
            ref = ImageRef(f"VOC2007/JPEGImages/{name}.jpg", box)
            items.append(Labelled(f"{name}#{i}", ref, classes.index(kind) if kind else 0))
        fields.done()
    return items


def _voc_from_tfds(rows: Sequence[dict], classes: Sequence[str]) -> list[Labelled]:
    names = rows.dataset_info.features["objects"]["label"].names
    items = []
    for i, row in enumerate(rows):
        name = f"tfds:{VOC_TFDS}/test#{i}"
        with opened(row["image"], name) as image:  # boxes are shares of its size
            width, height = image.size
        boxes, labels = row["objects"]["bbox"], row["objects"]["label"]
        for j, (box, label) in enumerate(zip(boxes, labels, strict=True)):
            top, left, bottom, right = (float(v) for v in box)
            # Back to the whole pixels of the annotation: shares are kept in float32.
            x, y, right, bottom = (
                round(v) for v in (left * width, top * height, right * width, bottom * height)
            )
            ref = ImageRef(name, (x, y, right - x, bottom - y))
            items.append(Labelled(f"{i}#{j}", ref, classes.index(names[int(label)])))
    return items
