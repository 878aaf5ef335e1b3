"""Phrases with the masks that they mean: PhraseCut, RefCOCO, NegRefCOCOg, COCO's category names.

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

import contextlib
import dataclasses
import pickle
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evals import registry
from evals.benchmarks.negrefcocog import item as boxes
from evals.cues import find_cue
from evals.images import DataRoots, FileMissing
from evals.reading import AVAILABLE, Fields, load_available, read_items, read_json
from negclip_jax.common import coco, plain_pickle
from negclip_jax.common.errors import InputError
from negclip_jax.common.records import Box

_INSTANCES = ("instances", "instances_train2014", "instances_train2017")
_INSTANCES += ("instances_val2014", "instances_val2017")
# Photos whose size is not the annotated one: timojl/clipseg, datasets/phrasecut.py.
_WRONG_SIZE = {150417, 285665, 498246, 61564, 285743, 498269, 498010, 150516, 150344, 286093}
_WRONG_SIZE |= {61530, 150333, 286065, 285814, 498187, 285761, 498042}
_TOLERANCE = 1.0  # pixels, between the edges of a box in two files
_PUBLISHED = {  # title and source
    "phrasecut": ("PhraseCut", "Wu et al., CVPR 2020, github.com/ChenyunWu/PhraseCutDataset"),
    "categories": ("Category names", "Lin et al., ECCV 2014, cocodataset.org"),
    "negrefcocog": (
        "NegRefCOCOg",
        "Park et al., ICCV 2025, github.com/parkquasar/NegationCLIP; masks from COCO",
    ),
}
_REFER = "Yu et al., ECCV 2016, github.com/lichengunc/refer"


NEGATED = (
    "A phrase counts as negated if evals/cues.py finds a negating word in it: no, not, n't, never, "
    "without, w/o, neither, nor, none, nothing, nobody, no one, lack, devoid, free of, minus, "
    "absence, except, exclude, absent, missing, nowhere; not before a number (no. 12)."
)


@dataclasses.dataclass(frozen=True)
class Phrase:
    """A phrase and its true mask."""

    item: str  # unique id within its set
    image: str  # the photo as the file names it
    text: str  # the phrase
    segmentations: tuple[Any, ...]  # see `masks.mask_of`; the union is the mask
    # Height and width that the segmentations belong to, None for the photo's own.
    size: tuple[int, int] | None = None

    @property
    def negated(self) -> bool:
        """Whether the text negates by the rule of `NEGATED`."""
        return find_cue(self.text) is not None


@dataclasses.dataclass(frozen=True)
class PhraseSet:
    """The phrases of one published file whose photos are there."""

    name: str  # on the command line
    title: str  # in the report
    source: str  # where it is published
    file: str  # that was read
    phrases: Sequence[Phrase]  # those whose photo is there, those of one photo together
    total: int  # phrases of the file and split
    total_negated: int  # how many of them negate
    missing: Sequence[str] = ()  # photos that are not there
    notes: Sequence[str] = ()  # lines for the report

    @property
    def scored(self) -> int:
        """Phrases whose photo is there."""
        return len(self.phrases)


Source = Callable[[DataRoots, str | None], list[PhraseSet]]


def phrase_set(
    roots: DataRoots, name: str, file: Path, phrases: Sequence[Phrase], **described: Any
) -> PhraseSet:
    """A set of the phrases whose photos are there; `described` are its other attributes."""
    published = dict(zip(("title", "source"), _PUBLISHED.get(name, ()), strict=False))
    totals = {"total": len(phrases), "total_negated": sum(p.negated for p in phrases)}
    missing = roots.missing(phrase.image for phrase in phrases)
    gone, by_photo = set(missing), {}
    for phrase in phrases:
        if phrase.image not in gone:
            by_photo.setdefault(phrase.image, []).append(phrase)
    kept = [phrase for group in by_photo.values() for phrase in group]
    described = {"missing": missing, **totals, **published, **described}
    return PhraseSet(name=name, file=str(file), phrases=kept, **described)


def _read_instances(files: Sequence[Path]) -> coco.Instances:
    """The objects of files in COCO's layout together; COCO's 2014 and 2017 files share many.

    Raises InputError for all that is wrong in one of them: here photos need their size and objects
    their box and segmentation.
    """
    images: dict[str, coco.Image] = {}
    objects: dict[str, coco.Instance] = {}
    for file in files:
        fields = Fields(file)
        found = coco.read_instances(file, fields, segmentation=True)
        for i, image in enumerate(found.images.values()):
            if not (image.file_name and image.width > 0 and image.height > 0):
                fields.note("a photo has no file_name, width or height", f"images[{i}]")
        for i, row in enumerate(found.objects):
            where = f"annotations[{i}]" + f" (id {row.id})" * bool(row.id)
            if row.image not in found.images:
                fields.note("image_id is not among the images", where)
            if not isinstance(row.segmentation, list | dict):
                fields.note('"segmentation" is missing', where)
            if row.box is None or not row.id:
                fields.note('"bbox" or "id" is missing', where)
            objects.setdefault(row.id, row)
        fields.done()
        images |= found.images
    return coco.Instances(images, (), list(objects.values()))


def phrasecut(roots: DataRoots, split: str | None) -> list[PhraseSet]:
    """PhraseCut's split, "test" by default."""
    name = f"refer_{split or 'test'}.json"
    file = roots.find(name, download="github.com/ChenyunWu/PhraseCutDataset")
    sizes: dict[int, tuple[int, int]] = {}
    with contextlib.suppress(FileMissing):  # then photos have the size that they have
        beside = roots.find("image_data_split3000.json", "image_data_split.json", download="")
        fields = Fields(beside)
        found = [
            [fields.number(row, key, f"record {i}") for key in ("image_id", "height", "width")]
            for i, row in enumerate(read_json(beside, list))
        ]
        fields.done()
        sizes = {int(image): (int(height), int(width)) for image, height, width in found}
    fields, phrases = Fields(file), []
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
    notes = [f"{dropped} phrases on the 17 photos of wrong size are left out, as published."]
    return [phrase_set(roots, "phrasecut", file, phrases, notes=notes)]


def refcoco(roots: DataRoots, split: str | None) -> list[PhraseSet]:
    """Every `refs(SPLITTER)` file that is there: split "val" by default, the only one of all."""
    names = [f"refs({who}).{end}" for who in ("unc", "google", "umd") for end in ("p", "json")]
    files = roots.find_all(*names, "refs.p", "refs.json")
    if not files:
        roots.find("refs(unc).p", "refs(umd).p", download="github.com/lichengunc/refer")
    split, sets = split or "val", []
    for file in files:
        beside = file.with_name("instances.json")  # its own, whose annotation ids the records name
        instances = _read_instances([beside] if beside.is_file() else _instance_files(roots))
        fields, phrases = Fields(file), []
        objects = {row.id: row for row in instances.objects}
        for i, row in enumerate(read_refs(file)):
            where = f"record {i}"
            if fields.text(row, "split", where) != split:
                continue
            annotation = objects.get(fields.identity(row, "ann_id", where))
            if annotation is None:
                fields.note("ann_id is not in instances.json", where)
                continue
            image, shape = instances.images[annotation.image], (annotation.segmentation,)
            for j, sentence in enumerate(fields.sequence(row, "sentences", where)):
                text = fields.text(sentence, "sent", f"{where}, sentence {j}")
                item = f"{row.get('ref_id', i)}/{j}"
                phrases.append(Phrase(item, image.file_name, text, shape, _size(image)))
        fields.done()
        name = f"{file.parent.name} {file.stem.removeprefix('refs').strip('()')}".strip()
        described = {"title": f"{name}, {split}", "source": _REFER}
        sets.append(phrase_set(roots, name.replace(" ", "_"), file, phrases, **described))
    return sets


def read_refs(path: Path) -> list[Any]:
    """The records of a REFER file, `.p` or the same as `.json`. Raises InputError.

    A pickle is a program, and loading one from the internet may run anything. These hold plain
    lists, dictionaries, strings and numbers, so that every class in them is refused.
    """
    if path.suffix == ".json":
        return read_json(path, list)
    try:
        with path.open("rb") as file:
            # Written by Python 2, whose strings were bytes.
            records = plain_pickle.load(file, encoding="latin-1")
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is refused: {error}, where a file of referring expressions holds plain lists "
            "and dictionaries. Get it again from github.com/lichengunc/refer, or give the records "
            f"as {path.stem}.json"
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a damaged pickle raises nearly every type
        raise InputError(f"{path} is damaged or no pickle ({error}): get it again") from None
    if not isinstance(records, list) or not records:
        raise InputError(f"{path} holds no list of referring expressions")
    return records


def _instance_files(roots: DataRoots) -> list[Path]:
    names = [f"{name}.json" for name in _INSTANCES]
    files = roots.find_all(*names)
    if not files:
        roots.find(*names, download="cocodataset.org (annotations)")
    return files


def categories(roots: DataRoots, split: str | None) -> list[PhraseSet]:
    """A phrase for every category in every photo of `instances.json`; there are no splits."""
    file = _instance_files(roots)[0]
    instances, phrases = _read_instances([file]), []
    shapes: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for row in instances.objects:
        shapes[row.image, row.category].append(row.segmentation)
    for (image_id, category), segmentations in shapes.items():
        image = instances.images[image_id]
        item, shape = f"{image_id}/{category}", tuple(segmentations)
        phrases.append(Phrase(item, image.file_name, category, shape, _size(image)))
    notes = ["The phrase is the category's name, the mask all that is annotated of it."]
    return [phrase_set(roots, "categories", file, phrases, notes=notes)]


def negrefcocog(roots: DataRoots, split: str | None) -> list[PhraseSet]:
    """NegRefCOCOg's phrases whose object is found in COCO's instances; there are no splits."""
    download = registry.get("negrefcocog").download
    file = roots.find("NegRefCOCOg.json", download=download)
    instances, phrases = _read_instances(_instance_files(roots)), []
    by_digits = {_coco_number(image.file_name): i for i, image in instances.images.items()}
    of_photo: dict[str, list[coco.Instance]] = defaultdict(list)
    for one in instances.objects:
        of_photo[one.image].append(one)
    records, absent, unclear = read_items(file, enumerate(read_json(file, list)), boxes), [], 0
    for item in records:
        photo = by_digits.get(_coco_number(item.images[0].path))
        if photo is None:
            absent.append(item.images[0].path)
            continue
        name, size = instances.images[photo].file_name, _size(instances.images[photo])
        right = item.images[item.answer].box
        others = [ref.box for ref in item.images if ref.box != right]
        meant = _meant(of_photo[photo], right, others, size)
        if meant is None:
            unclear += 1
        else:
            phrases.append(Phrase(item.id, name, item.texts[0], (meant.segmentation,), size))
    notes = [
        f"Of {len(records)} phrases {len(absent)} are on photos that the instance files lack, and "
        f"{unclear} mean an object that cannot be told from the boxes: these are not scored."
    ]
    negated = sum(find_cue(item.texts[0]) is not None for item in records)
    totals = {"total": len(records), "total_negated": negated}
    found = phrase_set(roots, "negrefcocog", file, phrases, notes=notes, **totals)
    missing = [*found.missing, *dict.fromkeys(absent)]
    return [dataclasses.replace(found, missing=missing)]


def _size(image: coco.Image) -> tuple[int, int]:
    return image.height, image.width


def _coco_number(name: str) -> str:
    """What the names of a photo in COCO 2014 and 2017 have in common."""
    return Path(name).stem[-12:]


def _meant(
    annotations: Sequence[coco.Instance], right: Box, others: Sequence[Box], size: tuple[int, int]
) -> coco.Instance | None:
    """The object that `right` was made of, if just one fits."""
    found = [
        one
        for one in annotations
        for two in annotations
        if one is not two
        and one.category == two.category
        and len(others) == 1
        and _cut(one.box, two.box, right, size)
        and _cut(two.box, one.box, others[0], size)
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


_READERS = (phrasecut, refcoco, negrefcocog, categories)
SOURCES: dict[str, Source] = {read.__name__: read for read in _READERS}


def load_sets(
    names: Sequence[str],
    sources: dict[str, Source],
    roots: DataRoots,
    *,
    split: str | None,
    allow_subset: bool,
) -> list[PhraseSet]:
    """Reads the phrases of several sources, or with `[AVAILABLE]` of all that are there.

    `split` is of the files that have splits, None for each one's own default. Raises InputError
    with one line for each set that cannot be scored.
    """
    unknown = [name for name in names if name not in sources and name != AVAILABLE]
    if unknown:
        raise InputError(f"--phrases={unknown[0]} is not one of {', '.join(sources)}")
    found = load_available(
        names,
        sources,
        lambda name: {each.name: each for each in sources[name](roots, split)},
        allow_subset=allow_subset,
        items=("phrases", "phrase with a mask"),
        skip_subsets=True,
    )
    if not found:
        raise InputError(
            f"there are no phrases with masks and photos below {', '.join(map(str, roots.data))}: "
            "put refer_test.json of PhraseCut, a folder of RefCOCO or COCO's instances.json there, "
            "with their photos"
        )
    return list(found.values())
