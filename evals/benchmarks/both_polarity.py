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
- `mcq`: "there is no X" above "an X" and "a Y but no Z", Z being there (two categories; 1/3).
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evals import scoring
from evals.benchmark import Metric, Problem, Result
from evals.cues import count_cues
from evals.images import DataRoots, ImageRef, ProblemImages
from evals.reading import Fields
from negclip_jax.common import coco
from negclip_jax.language.inflection import noun

FILES = ("instances.json", "instances_val2017.json", "instances_val2014.json")
CHANCES = {"both_polarities": 1 / 4, "absent": 1 / 2, "present": 1 / 2, "all_four": 1 / 6}


class Photo(NamedTuple):
    """A photo with an absent category and one or two that are there ("" for no second one)."""

    image: ImageRef
    absent: str
    present: str
    second: str


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
            photos.append(Photo(ImageRef(name), absent[0], *[*present, ""][:2]))
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
    row_of = {text: i for i, text in enumerate(dict.fromkeys(text for _, text in pairs))}

    def score(images: np.ndarray, texts: np.ndarray) -> Result:
        image_rows = np.array([pictures.row(ref) for ref, _ in pairs])
        text_rows = np.array([row_of[text] for _, text in pairs])
        return _result(kept, scoring.inner(images, image_rows, texts, text_rows))

    negations = np.array([float(count_cues(text)) for _, text in pairs])
    controls = {
        "prefers the negated text": lambda: _result(kept, negations),
        "prefers the affirmed text": lambda: _result(kept, -negations),
    }
    return Problem(
        images=pictures.refs,
        texts=list(row_of),
        score=score,
        total=len(photos),
        scored=len(kept),
        missing=pictures.missing,
        file=str(file),
        controls=controls if kept else {},
    )


def _result(photos: Sequence[Photo], flat: np.ndarray) -> Result:
    """From the scores of all statements of all photos, one after another."""
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
    return Result(metrics, columns)
