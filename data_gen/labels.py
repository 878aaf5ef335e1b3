"""What is in each photo and what is not, with the source that says so: the table `labels`.

Boxes answer for every annotated class, verdicts for what was asked about, captions name things.
Sources stand beside each other, one row each, so that a contradiction can be seen.
"""

import collections
import functools
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_gen.annotations import ABSENT, NOT_ANNOTATED, PRESENT, UNSURE, InstanceVerifier
from data_gen.records import ImageItem, read_rows, shuffled, table_paths
from negclip_jax.common import atomic_files, strict_json
from negclip_jax.common.errors import InputError
from negclip_jax.common.records import identity
from negclip_jax.language.mentions import mentioned, named_things
from negclip_jax.language.names import object_name
from negclip_jax.language.questions import deny
from negclip_jax.language.vocabulary import CATEGORIES, canonical

LARGE, PLAIN, TINY, CROWD = "large", "plain", "tiny", "crowd"
_SURE = 0.8  # probability from which a model's "yes" makes a denial false, as for an absence
_LOOKED = ("boxes", "mllm", "vqa")  # sources that saw the photo
_SOURCES = {"instances": "boxes", "vqa": "vqa", "substring": "text"}  # by method; others: mllm
_EXISTENCE = re.compile(r"there (?:is|are) no (.+?)(?: in (?:this|the) (?:image|picture|photo))?")
_ASKED = ("image_id", "object", "question", "verdict", "p_yes", "mass", "method", "key")
_ASKED += ("error_code",)
_FORMAT = 2  # of labels.json
_PROBABILITY = {PRESENT: 1.0, ABSENT: 0.0, UNSURE: 0.5}  # that it is there, unless another is told


class Label(NamedTuple):
    """What one source says of an object in an image; fields as in the table "labels"."""

    image_id: str
    object: str
    name: str
    state: str
    source: str
    probability: float
    size: str | None = None
    key: str | None = None


def of_image(
    image: ImageItem, boxes: InstanceVerifier | None, verdicts: Sequence[Mapping[str, Any]]
) -> list[Label]:
    """The labels of one image, by its boxes, its rows of "verdicts" and its captions.

    What captions name and nothing shows is `unsure` by them.
    """
    found = _of_boxes(image.image_id, boxes) if boxes is not None else []
    annotated = {label.object for label in found}
    for row in verdicts:
        label = _of_verdict(row)
        if label is not None and not (label.source == "boxes" and label.object in annotated):
            found.append(label)
    there = {label.object for label in found if label.state == PRESENT}
    named = {canonical(name): word for name, word in named_in(image.texts).items()}
    found += [
        Label(image.image_id, name, named[name], UNSURE, "caption", 0.5)
        for name in sorted(named.keys() - there)
    ]
    return found


def named_in(captions: Sequence[str]) -> dict[str, str]:
    """What the captions of one image name, with the first one's words for it."""
    found: dict[str, str] = {}
    for text in captions:
        found = named_things(text) | found
    return found


def unsaid_by_others(
    image: ImageItem, number: int, seed: int, boxes: InstanceVerifier | None = None
) -> list[str]:
    """Up to `number` things that captions name and others do not, for as many others as can be.

    Seen to be there, they can be affirmed beside the captions that leave them unsaid. What `boxes`
    tell of the photo is left out.
    """
    left = shuffled(sorted(named_in(image.texts)), seed, image.image_id)
    if boxes is not None:
        left = [name for name in left if boxes.verdict(image.image_id, name)[0] == UNSURE]
    silent = {
        name: {c.id for c in image.captions if not mentioned(name, [c.text])} for name in left
    }
    chosen, without = list[str](), {c.id for c in image.captions}

    def worth(name: str) -> tuple[bool, int, int]:
        # Half of them COCO's categories, whose words have the fewest senses.
        coco = 2 * sum(name in CATEGORIES for name in chosen) <= len(chosen)
        is_wanted = coco and bool(silent[name]) and name in CATEGORIES
        return is_wanted, len(silent[name] & without), len(silent[name])

    while left and len(chosen) < number:
        chosen.append(max(left, key=worth))
        left.remove(chosen[-1])
        without -= silent[chosen[-1]]
    return chosen


def _of_boxes(image_id: str, boxes: InstanceVerifier) -> list[Label]:
    """One label for each annotated class; none where the file does not know the image."""
    known = identity(image_id)
    present = boxes.present.get(known)
    if present is None:
        return []
    labels, doubted = [], boxes.doubted(known)
    sizes = dict.fromkeys(present, TINY) | dict.fromkeys(boxes.crowds[known], CROWD)
    sizes |= dict.fromkeys(boxes.visible[known], PLAIN) | dict.fromkeys(boxes.large[known], LARGE)
    for name in boxes.names:
        state = PRESENT if name in present else UNSURE if name in doubted else ABSENT
        key, p = canonical(name.lower()), _PROBABILITY[state]
        labels.append(Label(image_id, key, name, state, "boxes", p, sizes.get(name)))
    return labels


def _of_verdict(row: Mapping[str, Any]) -> Label | None:
    """The label of a row of "verdicts".

    None for an error, for an image that the boxes do not know, and for a question that asks for
    more than whether something is there: a man without a hat says nothing of hats.
    """
    name = row["object"]
    if row["question"] is not None:
        denial = deny(row["question"])
        existence = denial and _EXISTENCE.fullmatch(denial.clause)
        name = existence and object_name(existence[1])
    if row["verdict"] == "error" or row["error_code"] == NOT_ANNOTATED or not name:
        return None
    key, mass = canonical(object_name(name) or name.lower()), row["mass"]
    source = _SOURCES.get(row["method"], "mllm")
    p = row["p_yes"] / mass if mass else 0.5
    return Label(row["image_id"], key, name, row["verdict"], source, p, None, row["key"])


def settled(labels: Iterable[Label]) -> tuple[list[str], list[str]]:
    """(objects that are surely in the image, objects that surely are not), of one image's labels.

    Present is what boxes show plainly or a model is sure to see; absent is what every source calls
    so. What sources contradict each other about is neither.
    """
    present, absent = [], []
    for name, rows in _by_object(labels).items():
        state = _state(rows)
        if state == ABSENT:
            absent.append(name)
        elif state == PRESENT and any(
            row.state == PRESENT and row.probability >= _SURE and row.size not in (TINY, CROWD)
            for row in rows
        ):
            present.append(name)
    return present, absent


def _state(rows: Sequence[Label]) -> str:
    """What the labels of one object say together."""
    looked = {row.state for row in rows if row.source in _LOOKED}
    if PRESENT in looked:
        return UNSURE if ABSENT in looked else PRESENT
    # A caption that names it, or an answer that is neither, is enough to doubt an absence.
    return ABSENT if looked and all(row.state == ABSENT for row in rows) else UNSURE


def _by_object(labels: Iterable[Label]) -> dict[str, list[Label]]:
    found = collections.defaultdict[str, list[Label]](list)
    for label in labels:
        found[label.object].append(label)
    return found


def read_labels(run: str | os.PathLike) -> Iterator[tuple[str, list[Label]]]:
    """Each image of a run, in order, and its labels; one part of the tables at a time.

    Shards of an earlier version have no labels: theirs are those of their verdicts. Raises
    InputError for a part that is not readable Parquet.
    """
    return ((image_id, labels) for image_id, _, labels in _images(Path(run)))


def _images(run: Path) -> Iterator[tuple[str, str, list[Label]]]:
    """(image id, file name, labels) of each image that has labels."""
    names = {path.name for table in ("labels", "verdicts") for path in table_paths(run, table)}
    for name in sorted(names):
        rows = of_part(run, name)
        for image_id, group in itertools.groupby(rows, lambda row: row[1].image_id):
            names, labels = zip(*group, strict=True)
            yield image_id, names[0], list(labels)


def of_part(run: Path, name: str) -> Iterator[tuple[str, Label]]:
    """(file name, label) of one part, in order of the images; errors are those of `read_labels`."""
    if table_paths(run, "labels", name):
        rows = read_rows(run, "labels", ["file_name", *Label._fields], name)
        return ((file_name, Label._make(row)) for file_name, *row in rows)
    files = dict(read_rows(run, "items", ["image_id", "file_name"], name))
    verdicts = (
        dict(zip(_ASKED, row, strict=True)) for row in read_rows(run, "verdicts", _ASKED, name)
    )
    return ((files.get(r.image_id, r.image_id), r) for r in map(_of_verdict, verdicts) if r)


def write_labels(run: str | os.PathLike, path: Path) -> None:
    """Writes `labels.json`, which `read_label_file` reads.

    Of several labels of an object the first counts that has the state which they say together, as
    in `settled` (but a tiny object is present too); what they contradict each other about is
    unsure. Boxes answer for all their classes: those of a photo that are absent are not listed
    again for each photo. The file, with a line for each image:

        {"format": 2, "classes": {"boxes": [CLASS, ...]}, "images": {
        FILE: {"present": {SOURCE: [OBJECT, ...]}, "absent": {SOURCE: {OBJECT: PROBABILITY}},
               "unsure": ..., "rest": "boxes"},

    A list stands where all have the probability of their state, 1, 0 or 0.5. With `rest` every
    other class of this source is absent. Raises InputError as `read_labels` does, and OSError.
    """
    run, text = Path(run), functools.partial(json.dumps, ensure_ascii=False)
    rows = read_rows(run, "labels", ["image_id", "object", "source"])
    of_boxes = ((image, name) for image, name, source in rows if source == "boxes")
    _, first = next(itertools.groupby(of_boxes, lambda row: row[0]), (None, ()))
    classes = sorted({name for _, name in first})  # for which boxes answer
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_files.whole_file(path) as unfinished, unfinished.open("w", encoding="utf-8") as out:
        out.write(f'{{"format": {_FORMAT}, "classes": {text({"boxes": classes})}, "images": {{')
        between = "\n"
        for _, file_name, labels in _images(run):
            objects = {}
            for name, rows in sorted(_by_object(labels).items()):
                state, first = _state(rows), rows[0]._replace(probability=0.5)
                first = next((row for row in rows if row.state == state), first)
                objects[name] = state, first.source, round(first.probability, 4)
            out.write(f"{between}{text(file_name)}: {text(_packed(objects, classes))}")
            between = ",\n"
        out.write("\n}}\n")


def _packed(
    objects: Mapping[str, tuple[str, str, float]], classes: Sequence[str]
) -> dict[str, Any]:
    """The labels of one image as they are written."""
    rest = {name for name in classes if objects.get(name) == (ABSENT, "boxes", 0.0)}
    # Only where it says of every class what is so.
    rest = rest if objects.keys() >= set(classes) else set()
    found: dict[str, Any] = {}
    for name, (state, source, probability) in objects.items():
        if name not in rest:
            found.setdefault(state, {}).setdefault(source, {})[name] = probability
    for state, sources in found.items():
        for source, names in sources.items():
            if set(names.values()) == {_PROBABILITY[state]}:
                sources[source] = list(names)
    return found | ({"rest": "boxes"} if rest else {})


def read_label_file(path: str | os.PathLike) -> dict[str, dict[str, dict[str, Any]]]:
    """`labels.json` as image file name to object to `state`, `source` and `probability`.

    Files of earlier versions, which are written so, are read too. Raises InputError.
    """
    content = strict_json.read_json(Path(path))
    if isinstance(content.get("format", {}), dict):
        return content
    if content["format"] != _FORMAT:
        raise InputError(f"{path} is of format {content['format']}; here 1 and {_FORMAT} are read")
    try:
        return {
            name: dict(sorted(_unpacked(image, content["classes"]).items()))
            for name, image in content["images"].items()
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no file of labels ({error!r} in one of its images)") from None


def _unpacked(image: Mapping[str, Any], classes: Mapping[str, list[str]]) -> dict[str, Any]:
    found = {}
    for state, usual in _PROBABILITY.items():
        for source, names in image.get(state, {}).items():
            names = dict.fromkeys(names, usual) if isinstance(names, list) else names
            for name, p in names.items():
                found[name] = {"state": state, "source": source, "probability": p}
    if source := image.get("rest"):
        absent = {"state": ABSENT, "source": source, "probability": 0.0}
        found = {name: dict(absent) for name in classes[source]} | found
    return found
