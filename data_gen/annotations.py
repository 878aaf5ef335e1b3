"""What instance annotations tell about an image: COCO's boxes as verifier and as measure."""

import collections
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from negclip_jax.common import strict_json
from negclip_jax.common.errors import InputError
from negclip_jax.language.vocabulary import canonical, kinds, same

ABSENT, PRESENT, UNSURE = "absent", "present", "unsure"
# Share of the image's area below which an object counts as neither seen nor absent: 17 x 17 pixels
# of 640 x 480, two patches' corners for a ViT-B/32.
TINY = 0.001


@dataclass(frozen=True)
class Scene:
    """What is known of one image: its categories and all its captions."""

    present: frozenset[str]
    captions: tuple[str, ...]


class InstanceVerifier:
    """Tells from an instance file whether an object is in an image.

    Attributes:
      names: the categories that the file annotates, as its images may be asked about.
      present: image id to all categories annotated there, however small.
    """

    def __init__(self, instances_path: str | os.PathLike):
        """Reads a COCO instances JSON.

        Raises InputError for a file without the lists `images`, `annotations` and `categories`, or
        with an annotation of a category that it does not define.
        """
        content = read_coco(
            Path(instances_path), ("images", "annotations", "categories"), "segmentation"
        )
        try:
            scenes = read_scenes({"annotations": []}, content)
            self.names = tuple(str(category["name"]) for category in content["categories"])
            self.present = {str(i): scene.present for i, scene in scenes.items()}
            self._plain = _plainly_visible(content)
        except InputError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
            raise InputError(
                f"{instances_path} is not in COCO's layout ({error!r} in one of its rows)"
            ) from None

    def verdict(self, image_id: str | int, obj: str) -> tuple[str, float]:
        """("absent" | "present" | "unsure", probability that it is present: 0, 1 or 0.5).

        An object is `absent` only if the file annotates its class, or a wider one, and there is no
        instance in the image. It is `unsure` when the image is not in the file, the class is not
        annotated, the instances are only crowds or tiny, or the object is a kind of an annotated
        class that is there ("kitten", where a cat is).
        """
        image_id = str(image_id)
        annotated = self.present.get(image_id)
        name = canonical(obj)
        classes = _classes(name, self.names)
        if annotated is None or not classes:
            return UNSURE, 0.5
        if not annotated.intersection(classes):
            return ABSENT, 0.0
        if name in self._plain[image_id]:
            return PRESENT, 1.0
        return UNSURE, 0.5


@cache
def _classes(name: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The annotated classes that every instance of the object belongs to."""
    if name in names:
        return (name,)
    equal = tuple(known for known in names if same(known) & same(name))
    return equal or tuple(known for known in names if name in kinds(known))


def _plainly_visible(content: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """Image id to the categories with an instance that is neither a crowd nor tiny."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    areas = {
        image["id"]: image.get("width", 0) * image.get("height", 0) for image in content["images"]
    }
    visible: dict[Any, set[str]] = {image_id: set() for image_id in areas}
    for row in content["annotations"]:
        width, height = row.get("bbox", (0, 0, 0, 0))[2:]
        area = row.get("area", width * height)
        large = area >= TINY * areas.get(row["image_id"], 0)
        if large and not row.get("iscrowd"):
            visible.setdefault(row["image_id"], set()).add(names[row["category_id"]])
    return {str(image_id): frozenset(found) for image_id, found in visible.items()}


def read_scenes(captions: Mapping[str, Any], instances: Mapping[str, Any]) -> dict[Any, Scene]:
    """Image id to Scene, for the images that the instance file lists.

    Raises InputError where an annotation names a category that the file does not define.
    """
    names = {category["id"]: category["name"] for category in instances["categories"]}
    present: dict[Any, set[str]] = {image["id"]: set() for image in instances["images"]}
    for row in instances["annotations"]:
        if row["category_id"] not in names:
            raise InputError(
                f"instance {row.get('id')} has category_id {row['category_id']}, "
                "which is not among the categories of the file"
            )
        present.setdefault(row["image_id"], set()).add(names[row["category_id"]])
    texts = collections.defaultdict(list)
    for row in captions["annotations"]:
        texts[row["image_id"]].append(row["caption"])
    return {i: Scene(frozenset(names), tuple(texts[i])) for i, names in present.items()}


def read_coco(path: Path, keys: Sequence[str], drop: str | None = None) -> dict[str, Any]:
    """Reads a COCO file that must have these lists. Raises InputError that says what is missing.

    `drop` names a key that is left out of every object while reading: polygons are nine tenths of
    an instance file's memory.
    """
    content = strict_json.read_json(path, (dict, list), without=drop)
    for key in keys:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(f"{path} has no list '{key}'; a COCO annotation file is expected")
    return content
