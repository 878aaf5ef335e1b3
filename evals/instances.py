"""What is in labelled photos and what is not, from files in the layout of COCO's instances."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from evals.images import ImageRef
from evals.reading import Fields, read_json


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
    content, fields = read_json(file, dict), Fields(file)
    names = {
        fields.number(row, "id", f"categories[{i}]"): fields.text(row, "name", f"categories[{i}]")
        for i, row in enumerate(fields.sequence(content, "categories", "the file"))
    }
    inside: dict[float, set[str]] = {}
    for i, row in enumerate(fields.sequence(content, "annotations", "the file")):
        category = fields.number(row, "category_id", f"annotations[{i}]")
        if category not in names:
            fields.note("category_id is not among the categories", f"annotations[{i}]")
        image = fields.number(row, "image_id", f"annotations[{i}]")
        inside.setdefault(image, set()).add(names.get(category, ""))
    photos = []
    for i, row in enumerate(fields.sequence(content, "images", "the file")):
        where = f"images[{i}]"
        name = fields.unique(fields.text(row, "file_name", where), where)
        present = _drawn(name, inside.get(fields.number(row, "id", where), set()))
        absent = _drawn(name, set(names.values()) - set(present))
        if present and absent:
            photos.append(Photo(ImageRef(name), absent[0], *[*present, ""][:2]))
    fields.done()
    return photos


def _drawn(photo: str, categories: set[str]) -> list[str]:
    """In an order that depends on nothing but the names."""

    def key(category: str) -> bytes:
        return hashlib.sha256(f"{Path(photo).name}/{category}".encode()).digest()

    return sorted(categories, key=key)
