"""COCO annotation files: one reader for the layout of instances, one rule for ids.

COCO's own ids are whole numbers. Tools that people convert files with write them as `"1"`, `1.0`
or `"000000391895"` too, at times several of these in one file. An id that is compared as it stands
makes an annotated object an absent one; so all of these are one id here, as text: `"391895"`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from negclip_jax.common import strict_json
from negclip_jax.common.errors import InputError
from negclip_jax.common.records import Box, Fields, identity

# Share of the image's area below which an object counts as neither seen nor absent: 17 x 17 pixels
# of 640 x 480, two patches' corners for a ViT-B/32.
TINY = 0.001
_DROPPED = "segmentation"  # nine tenths of a file, which few need

T = TypeVar("T")


class Image(NamedTuple):
    """A photo: its name ("" where the file gives none) and its sides in pixels (0: not given)."""

    file_name: str
    width: int
    height: int


class Instance(NamedTuple):
    """An annotated object."""

    id: str  # normalised; "" where the file gives none
    image: str  # its id, normalised
    category: str  # its name
    box: Box | None  # x, y, width, height in pixels; None where the file gives none
    area: float  # of the object in pixels; that of its box where the file gives none
    crowd: bool  # whether it stands for several objects that were not told apart
    segmentation: Any  # polygons or a run-length code, as in the file; None unless asked for


@dataclass
class Instances:
    """What files of instances say."""

    images: dict[str, Image]  # by normalised id
    categories: tuple[str, ...]  # their names, in the order of the file
    objects: list[Instance]  # all annotations, in the order of the file

    def is_plain(self, instance: Instance) -> bool:
        """Whether the object is plainly visible: neither a crowd nor tiny."""
        image = self.images.get(instance.image)
        return is_plain(instance, image.width * image.height if image else 0)


def is_plain(instance: Instance, pixels: int) -> bool:
    """Whether an object is neither a crowd nor tiny in an image of so many pixels (0: unknown)."""
    return not instance.crowd and share(instance, pixels) >= TINY


def share(instance: Instance, pixels: int) -> float:
    """An object's share of an image of so many pixels (0: unknown, which gives 1)."""
    return instance.area / pixels if pixels else 1.0


def read_lists(
    path: Path,
    keys: Sequence[str],
    error: type[InputError] = InputError,
    *,
    layout: str = "COCO",
    without: str | None = None,
) -> dict[str, Any]:
    """The object of a JSON file in a `layout` with these lists; see `strict_json.read_json`."""
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

    `fields` collect what is wrong with its records, and the caller calls `done`. Without
    `segmentation`, nine tenths of the memory, objects lose theirs while they are read. Raises
    InputError for a file of another layout or, without `fields`, for bad records.
    """
    without = None if segmentation else _DROPPED
    content = read_lists(path, ("images", "annotations", "categories"), without=without)
    own = fields if fields is not None else Fields(path)
    found = parse_instances(content, own)
    if fields is None:
        own.done()
    return found


def parse_instances(content: Mapping[str, Any], fields: Fields) -> Instances:
    """The same of the file's JSON value; its list of annotations is emptied on the way."""
    names = _categories(content["categories"], fields)
    images: dict[str, Image] = {}
    for i, (key, image) in enumerate(_images(content["images"], fields)):
        if images.setdefault(key, image) != image:
            fields.note("two images have one id", f"{key} in images[{i}]")

    def emptied(rows: list[Any]) -> Iterator[Any]:
        for i, row in enumerate(rows):
            rows[i] = None  # so that a file's objects are not in memory twice
            yield row

    objects = list(_objects(emptied(content["annotations"]), names, fields))
    return Instances(images, tuple(dict.fromkeys(names.values())), objects)


def fold_instances(
    path: Path,
    fold: Callable[[tuple[str, ...], Iterable[tuple[str, Image]], Iterable[Instance]], T],
) -> T:
    """What `fold` makes of categories, images by id, and objects, which it sees one by one.

    Where something is odd it is called again with what was read whole. It raises
    `strict_json.Irregular` for two images of one id, which only then are checked. Raises
    InputError as `read_instances` does.
    """
    try:
        fields = Fields(path)
        names = _categories(strict_json.elements(path, "categories", without=_DROPPED), fields)
        images = strict_json.elements(path, "images", without=_DROPPED, to_end=False)
        rows = strict_json.elements(path, "annotations", without=_DROPPED, to_end=False)
        categories = tuple(dict.fromkeys(names.values()))
        result = fold(categories, _images(images, fields), _objects(rows, names, fields))
        if not len(fields):
            return result
    except strict_json.Irregular:
        pass
    found = read_instances(path)
    return fold(found.categories, found.images.items(), found.objects)


def _categories(rows: Iterable[Any], fields: Fields) -> dict[str, str]:
    """Names by id."""
    names: dict[str, str] = {}
    for i, row in enumerate(rows):
        where = f"categories[{i}]"
        key, name = fields.identity(row, "id", where), fields.text(row, "name", where)
        if names.setdefault(key, name) != name:
            fields.note("two categories have one id", f"{key} in {where}")
    return names


def _images(rows: Iterable[Any], fields: Fields) -> Iterator[tuple[str, Image]]:
    for i, row in enumerate(rows):
        where = f"images[{i}]"
        yield fields.identity(row, "id", where), _image(row, where, fields)


def _objects(rows: Iterable[Any], names: Mapping[str, str], fields: Fields) -> Iterator[Instance]:
    for i, row in enumerate(rows):
        where = f"annotations[{i}]"
        image, category = (fields.identity(row, key, where) for key in ("image_id", "category_id"))
        if category and category not in names:
            fields.note("category_id is not among the categories", where)
        elif image and category:
            box = None if row.get("bbox") is None else fields.box(row["bbox"], where)
            area = box[2] * box[3] if box else 0.0
            if row.get("area") is not None:
                area = fields.number(row, "area", where)
            own, crowd, shape = identity(row.get("id")) or "", row.get("iscrowd"), row.get(_DROPPED)
            yield Instance(own, image, names[category], box, area, bool(crowd), shape)


def _image(row: Any, where: str, fields: Fields) -> Image:
    def given(take: Callable[[Any, str, str], Any], key: str, default: Any) -> Any:
        absent = not isinstance(row, Mapping) or row.get(key) is None
        return default if absent else take(row, key, where)

    sides = (given(fields.number, side, 0) for side in ("width", "height"))
    width, height = (int(side) if abs(side) < 1e9 else 0 for side in sides)
    return Image(given(fields.text, "file_name", ""), width, height)
