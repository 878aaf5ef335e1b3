"""What instance annotations tell about an image: COCO's boxes as verifier and as measure."""

import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from negclip_jax.common import coco
from negclip_jax.common.records import identity
from negclip_jax.language.vocabulary import canonical, kinds, same

ABSENT, PRESENT, UNSURE = "absent", "present", "unsure"


class InstanceVerifier:
    """Tells from an instance file whether an object is in an image.

    Attributes:
      names: the categories that the file annotates, as its images may be asked about.
      present: image id to all categories annotated there, however small.
    """

    def __init__(self, instances_path: str | os.PathLike):
        """Reads a COCO instances JSON.

        Raises InputError as `coco.read_instances` does.
        """
        instances = coco.read_instances(Path(instances_path))
        self.names = instances.categories
        self.present = _categories(instances, instances.objects)
        self._plain = _categories(instances, filter(instances.is_plain, instances.objects))

    def verdict(self, image_id: str | int, obj: str) -> tuple[str, float]:
        """("absent" | "present" | "unsure", probability that it is present: 0, 1 or 0.5).

        An object is `absent` only if the file annotates its class, or a wider one, and there is no
        instance in the image. It is `unsure` when the image is not in the file, the class is not
        annotated, the instances are only crowds or tiny, or the object is a kind of an annotated
        class that is there ("kitten", where a cat is).
        """
        image_id = identity(image_id)
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


def _categories(
    instances: coco.Instances, objects: Iterable[coco.Instance]
) -> dict[str, frozenset[str]]:
    """Image id to the categories of these objects."""
    found: dict[str, set[str]] = {image_id: set() for image_id in instances.images}
    for row in objects:
        found.setdefault(row.image, set()).add(row.category)
    return {image_id: frozenset(names) for image_id, names in found.items()}
