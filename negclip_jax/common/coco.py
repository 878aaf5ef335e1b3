"""COCO annotation files: one reader for the layout of instances, one rule for ids.

COCO's own ids are whole numbers. Tools that people convert files with write them as `"1"`, `1.0`
or `"000000391895"` too, at times several of these in one file. An id that is compared as it stands
makes an annotated object an absent one; so all of these are one id here, as text: `"391895"`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from negclip_jax.common import strict_json
from negclip_jax.common.errors import InputError
from negclip_jax.common.records import Box, Fields, identity

# Share of the image's area below which an object counts as neither seen nor absent: 17 x 17 pixels
# of 640 x 480, two patches' corners for a ViT-B/32.
TINY = 0.001


class Image(NamedTuple):
    """A photo: its name ("" where the file gives none) and its sides in pixels (0: not given)."""

    file_name: str
    width: int
    height: int


class Instance(NamedTuple):
    """An annotated object.

    Attributes:
      id, image: normalised ids; `id` is "" where the file gives none.
      category: its name.
      box: x, y, width, height in pixels; None where the file gives none.
      area: of the object in pixels; that of its box where the file gives none.
      crowd: whether it stands for several objects that were not told apart.
      segmentation: polygons or a run-length code, as in the file; None unless asked for.
    """

    id: str
    image: str
    category: str
    box: Box | None
    area: float
    crowd: bool
    segmentation: Any


@dataclass
class Instances:
    """What files of instances say.

    Attributes:
      images: by normalised id.
      categories: their names, in the order of the file.
      objects: all annotations, in the order of the file.
    """

    images: dict[str, Image]
    categories: tuple[str, ...]
    objects: list[Instance]

    def is_plain(self, instance: Instance) -> bool:
        """Whether the object is plainly visible: neither a crowd nor tiny."""
        image = self.images.get(instance.image)
        pixels = image.width * image.height if image else 0
        return not instance.crowd and instance.area >= TINY * pixels


def read_lists(
    path: Path,
    keys: Sequence[str],
    error: type[InputError] = InputError,
    *,
    layout: str = "COCO",
    without: str | None = None,
) -> dict[str, Any]:
    """The JSON object of a file that must have these lists.

    Args:
      path: the file.
      keys: names of the lists.
      error, without: see `strict_json.read_json`.
      layout: its name, for messages.

    Raises `error` for a file that cannot be read or lacks one of the lists.
    """
    content = strict_json.read_json(path, (dict, list), error, without=without)
    wanted = " and ".join(f'"{key}"' for key in keys)
    if isinstance(content, list):
        raise error(
            f"{path} is not in the {layout} layout: it holds a list, not an object with {wanted}."
        )
    for key in keys:
        if not isinstance(content.get(key), list):
            what = "is not a list" if key in content else "is missing"
            raise error(f'{path} is not in the {layout} layout: the key "{key}" {what}.')
    return content


def read_instances(
    path: Path, fields: Fields | None = None, *, segmentation: bool = False
) -> Instances:
    """Reads a file in the layout of COCO's instances.

    Args:
      path: the file.
      fields: collects what is wrong with its records; the caller calls `done`. None: all that is
        wrong is raised here.
      segmentation: whether objects keep their segmentation. Else it is dropped while reading: it
        takes nine tenths of the memory.

    Raises InputError for a file of another layout or, without `fields`, for bad records.
    """
    without = None if segmentation else "segmentation"
    content = read_lists(path, ("images", "annotations", "categories"), without=without)
    own = fields if fields is not None else Fields(path)
    found = parse_instances(content, own)
    if fields is None:
        own.done()
    return found


def parse_instances(content: Mapping[str, Any], fields: Fields) -> Instances:
    """The same of the file's JSON value; its list of annotations is emptied on the way."""
    names: dict[str, str] = {}
    for i, row in enumerate(content["categories"]):
        where = f"categories[{i}]"
        key, name = fields.identity(row, "id", where), fields.text(row, "name", where)
        if names.setdefault(key, name) != name:
            fields.note("two categories have one id", f"{key} in {where}")
    images: dict[str, Image] = {}
    for i, row in enumerate(content["images"]):
        where = f"images[{i}]"
        key, image = fields.identity(row, "id", where), _image(row, where, fields)
        if images.setdefault(key, image) != image:
            fields.note("two images have one id", f"{key} in {where}")
    objects, rows = [], content["annotations"]
    for i, row in enumerate(rows):
        rows[i] = None  # so that a file's objects are not in memory twice
        where = f"annotations[{i}]"
        image, category = (fields.identity(row, key, where) for key in ("image_id", "category_id"))
        if category and category not in names:
            fields.note("category_id is not among the categories", where)
        elif image and category:
            box = None if row.get("bbox") is None else fields.box(row["bbox"], where)
            area = box[2] * box[3] if box else 0.0
            if row.get("area") is not None:
                area = fields.number(row, "area", where)
            objects.append(
                Instance(
                    identity(row.get("id")) or "",
                    image,
                    names[category],
                    box,
                    area,
                    bool(row.get("iscrowd")),
                    row.get("segmentation"),
                )
            )
    return Instances(images, tuple(dict.fromkeys(names.values())), objects)


def _image(row: Any, where: str, fields: Fields) -> Image:
    def given(take: Callable[[Any, str, str], Any], key: str, default: Any) -> Any:
        absent = not isinstance(row, Mapping) or row.get(key) is None
        return default if absent else take(row, key, where)

    sides = (given(fields.number, side, 0) for side in ("width", "height"))
    width, height = (int(side) if abs(side) < 1e9 else 0 for side in sides)
    return Image(given(fields.text, "file_name", ""), width, height)
