"""Both polarities: "there is no X" or "there is an X"? For an X that is absent and one that is not.

Source: this project. Benchmarks whose negated text is always right (or wrong) are won by whatever
likes (or dislikes) the word "no"; here neither wins. Built from any labelled photos, the first of
`instances.json`, `instances_val2017.json`, `instances_val2014.json` (COCO's layout; COCO's own are
CC BY 4.0, cocodataset.org).

Protocol: one item for each photo that shows a category Y and lacks another, X, both drawn by a hash
of the names, so that they are the same everywhere. Only the strict rule exists.

- `both_polarities`: the true statement above the false one, for X and for Y, both (chance 1/4);
- `absent`, `present`: its two halves (chance 1/2 each; liking "no" gets 1 and 0);
- `all_four`: both true statements above both false ones (chance 1/6);
- `mcq`: "there is no X" above "an X" and "a Y but no Z", Z being there (two categories; 1/3);
- `probe_absent`, `probe_present`, `probe_both`: the same questions to linear probes of the photos'
  features, each fitted on other photos (`evals.polarity`): what the image side allows. No text is
  read, so that a model with the vision tower of another one has its numbers.

Tables: alpha, beta and gamma (`evals.polarity`, cosines) over all photos and categories that some
photo shows and some lacks, by the negating word (means over categories) and by category (means over
words), with how many photos show it, and the mean of the shares of those that show it and that lack
it that are told right: by the text ("there is an X" against "there is no X") and by the probe.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evals import polarity, scoring
from evals.benchmark import Metric, Problem, Result, Table
from evals.cues import count_cues
from evals.images import DataRoots, ImageRef, ProblemImages
from evals.reading import Fields
from negclip_jax.common import coco
from negclip_jax.language import grammar
from negclip_jax.language.inflection import noun

FILES = ("instances.json", "instances_val2017.json", "instances_val2014.json")
CHANCES = {"both_polarities": 1 / 4, "absent": 1 / 2, "present": 1 / 2, "all_four": 1 / 6}
CHANCES |= {"probe_absent": 1 / 2, "probe_present": 1 / 2, "probe_both": 1 / 4}

_NOTE = (
    "alpha is a liking for affirmation, beta the pull of a mention, gamma the negation (cosines): "
    "both statements about a photo are told right where gamma > |alpha|, photos without the object "
    "are found where gamma > beta. A probe is linear and fitted on other photos: what the image "
    "side allows."
)
# A form of words for each negating word; the first is that of the questions.
FORMS = tuple(
    grammar.BY_NAME[f"{name}-alone"]
    for name in (
        *("there-is-no", "picture-without", "is-not", "isnt", "doesnt", "cannot", "hasnt", "lacks"),
        *("lacking", "missing", "absent", "none", "nowhere", "free", "minus"),
    )
)


class Photo(NamedTuple):
    """A photo with an absent category and one or two that are there ("" for no second one)."""

    image: ImageRef
    absent: str
    present: str
    second: str
    inside: frozenset[str] = frozenset()  # all categories that are there


def read_photos(file: Path) -> list[Photo]:
    """The photos of an instance file that show a category and lack one, with categories drawn.

    A category is there if anything of it is annotated, crowds included. Raises InputError.
    """
    fields = Fields(file)
    instances = coco.read_instances(file, fields)
    inside: dict[str, set[str]] = {}
    for row in instances.objects:
        inside.setdefault(row.image, set()).add(row.category)
    photos = []
    for i, (image_id, image) in enumerate(instances.images.items()):
        where = f"images[{i}]"
        name = fields.unique(fields.text(image._asdict(), "file_name", where), where)
        present = _drawn(name, inside.get(image_id, set()))
        absent = _drawn(name, set(instances.categories) - set(present))
        if present and absent:
            found = frozenset(present)
            photos.append(Photo(ImageRef(name), absent[0], *[*present, ""][:2], found))
    fields.done()
    return photos


def _drawn(photo: str, categories: set[str]) -> list[str]:
    """In an order that depends on nothing but the names."""
    name = Path(photo).name
    return sorted(categories, key=lambda c: hashlib.sha256(f"{name}/{c}".encode()).digest())


def statements(photo: Photo) -> tuple[str, ...]:
    """Two true statements, two false ones, and the wrong options of the choice of three."""
    x, y = noun(photo.absent), noun(photo.present)
    no_x, no_y = (f"there {thing.is_} no {thing.one}" for thing in (x, y))
    an_x, a_y = (f"there {thing.is_} {thing.some}" for thing in (x, y))
    wrong = (x.some, f"{y.some} but no {noun(photo.second).one}") if photo.second else ()
    return (no_x, a_y, an_x, no_y, *wrong)


def load(roots: DataRoots, *, download: str) -> Problem:
    """Reads an instance file. Raises InputError."""
    file = roots.find(*FILES, download=download)
    photos = read_photos(file)
    pictures = ProblemImages(roots, (photo.image for photo in photos))
    kept = [photo for photo in photos if photo.image in pictures]
    pairs = [(photo.image, text) for photo in kept for text in statements(photo)]
    every = sorted(set().union(*(photo.inside for photo in kept)))
    objects = [name for name in every if not all(name in photo.inside for photo in kept)]
    forms = [[_both_ways(form, name) for name in objects] for form in FORMS]
    known = [text for form in forms for both in form for text in both]
    row_of = {t: i for i, t in enumerate(dict.fromkeys([*(text for _, text in pairs), *known]))}

    def score(images: np.ndarray, texts: np.ndarray) -> Result:
        image_rows = np.array([pictures.row(ref) for ref, _ in pairs])
        text_rows = np.array([row_of[text] for _, text in pairs])
        metrics, columns = _answers(kept, scoring.inner(images, image_rows, texts, text_rows))
        if not objects:  # every photo shows the same
            return Result(metrics, columns)
        photos = images[[pictures.row(photo.image) for photo in kept]]
        spoken = texts[np.array([[[row_of[t] for t in both] for both in form] for form in forms])]
        probes, tables = _axes(kept, objects, photos, spoken)
        return Result([*metrics, *probes], columns, tables=tables)

    negations = np.array([float(count_cues(text)) for _, text in pairs])
    controls = {
        "prefers the negated text": lambda: Result(*_answers(kept, negations)),
        "prefers the affirmed text": lambda: Result(*_answers(kept, -negations)),
    }
    described = {"missing": pictures.missing, "file": str(file), "notes": (_NOTE,)}
    described["controls"] = controls if kept else {}
    return Problem(pictures.refs, list(row_of), score, len(photos), len(kept), **described)


def _both_ways(form: grammar.Template, name: str) -> tuple[str, str]:
    """The statements that an object is there, and that it is not."""
    return form.affirmed.format(**noun(name).slots), form.text.format(**noun(name).slots)


def _answers(photos: Sequence[Photo], flat: np.ndarray) -> tuple[list[Metric], dict[str, list]]:
    """Metrics and predictions, from the scores of all statements of all photos in their order."""
    scores = np.full((len(photos), 6), np.nan, flat.dtype)
    counts = np.array([len(statements(photo)) for photo in photos])
    scores[np.arange(6) < counts[:, None]] = flat
    first = np.zeros(len(photos), np.int64)
    absent = scoring.credit(scores[:, [0, 2]], first)
    present = scoring.credit(scores[:, [1, 3]], first)
    values = {
        "both_polarities": absent * present,
        "absent": absent,
        "present": present,
        "all_four": scoring.all_above(scores[:, :2], scores[:, 2:4]),
    }
    ids = np.array([photo.image.path for photo in photos])
    metrics = [
        Metric(name, value, ids, chance=CHANCES[name], headline=name == "both_polarities")
        for name, value in values.items()
    ]
    three = counts == 6
    if three.any():
        mcq = scoring.credit(scores[three][:, [0, 4, 5]], first[three])
        metrics.append(Metric("mcq", mcq, ids[three], chance=1 / 3, headline=True))
    columns = {
        "item": ids.tolist(),
        "images": [[i] for i in range(len(photos))],
        "texts": [list(statements(photo)[:4]) for photo in photos],
        "scores": scores[:, :4].tolist(),
        "answers": [[0, 1]] * len(photos),
        "predicted": np.sort(np.argsort(-scores[:, :4], axis=1, kind="stable")[:, :2]).tolist(),
        "right": values["both_polarities"].tolist(),
        "absent": [photo.absent for photo in photos],
        "present": [photo.present for photo in photos],
    }
    return metrics, columns


def _axes(
    photos: Sequence[Photo], objects: Sequence[str], images: np.ndarray, spoken: np.ndarray
) -> tuple[list[Metric], dict[str, Table]]:
    """The probes' metrics and the tables, from unit features.

    `images` are of the photos, `[N, D]`, and `spoken` of the statements of each form that each
    object is there and that it is not, `[F, K, 2, D]`.
    """
    names = [photo.image.path for photo in photos]
    present = np.array([[name in photo.inside for name in objects] for photo in photos])
    probed = polarity.probe(images, present, names)
    place, right = {name: i for i, name in enumerate(objects)}, {}
    for kind, sign in (("absent", -1), ("present", 1)):
        # A category that every photo shows, or none, has no probe.
        columns = np.array([place.get(getattr(photo, kind), -1) for photo in photos])
        asked = np.where(columns < 0, np.nan, probed[np.arange(len(photos)), columns])
        right[f"probe_{kind}"] = (np.sign(asked) * sign + 1) / 2
    right["probe_both"] = right["probe_absent"] * right["probe_present"]
    metrics = []
    for name, values in right.items():
        known = ~np.isnan(values)
        ids, headline = np.array(names)[known], name == "probe_both"
        metrics.append(Metric(name, values[known], ids, chance=CHANCES[name], headline=headline))
    axes = polarity.axes(images, present, spoken[:, :, 0], spoken[:, :, 1])
    turn = spoken[0, :, 0].astype(np.float64) - spoken[0, :, 1]
    told = [100 * polarity.balanced(scores, present) for scores in (images @ turn.T, probed)]
    counted = [f"{name} ({n:,} photos)" for name, n in zip(objects, present.sum(0), strict=True)]
    cues, columns = [form.cue for form in FORMS], ["alpha", "beta", "gamma"]
    by_cue = np.concatenate([axes.mean((0, 1))[None], axes.mean(1)])
    by_object = np.column_stack([axes.mean(0), *told])
    return metrics, {
        "alpha, beta, gamma by the negating word": _table(columns, ["all", *cues], by_cue),
        "by category": _table([*columns, "text %", "probe %"], counted, by_object),
    }


def _table(columns: list[str], names: Sequence[str], values: np.ndarray) -> Table:
    rows = np.where(np.isnan(values), None, np.round(values, 5)).tolist()
    return {"columns": columns, "rows": dict(zip(names, rows, strict=True))}
