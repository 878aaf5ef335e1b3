"""Photos with classes, from a folder of class folders or a prepared tensorflow-datasets folder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from evals.classification import Labelled
from evals.images import IMAGE_SUFFIXES, DataRoots, FileMissing, ImageRef, tfds_rows
from negclip_jax.common.errors import InputError

SINGLE = "a photo of a {}."


class Prompts(NamedTuple):
    """Class names and templates of OpenAI's prompts; `keys` name the classes' folders."""

    classes: list[str]
    keys: list[str]
    templates: list[str]


def read_prompts(name: str) -> Prompts:
    """The prompts of one data set, which come with this package (MIT, openai/CLIP)."""
    path = Path(__file__).with_name("prompts") / f"{name}.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    classes = content["classes"]
    return Prompts(classes, content.get("keys", classes), content["templates"])


def find_labelled(
    roots: DataRoots, folders: Sequence[str], tfds: str, keys: Sequence[str], download: str
) -> tuple[Path, list[Labelled]]:
    """The photos of the first of `folders` that is there, else of the tfds data set.

    `tfds` is "NAME/SPLIT"; `keys` are names of the classes' folders or tfds labels in the order of
    the classes, where "aquarium_fish" and "aquarium fish" are the same. Returns where they came
    from and the photos. Raises InputError where neither is there or a class has another name.
    """
    for name in folders:
        folder = roots.folder(name)
        if folder is not None:
            return folder, _from_folder(folder, keys)
    rows = prepared(roots, folders, tfds, download)
    return Path(f"tfds:{tfds}"), _from_tfds(rows, tfds, keys)


def prepared(roots: DataRoots, folders: Sequence[str], tfds: str, download: str) -> Sequence[dict]:
    """The rows of a prepared tfds data set, asked for because none of `folders` is there.

    Raises FileMissing that names both.
    """
    dataset, _, split = tfds.rpartition("/")
    try:
        return tfds_rows(dataset, split, roots.data)
    except InputError as error:
        raise FileMissing(
            f"none of the folders {', '.join(folders)} is below {', '.join(map(str, roots.data))} "
            f"({download}), and as a prepared data set: {error}"
        ) from None


def _from_folder(folder: Path, keys: Sequence[str]) -> list[Labelled]:
    labels = {_plain(key): label for label, key in enumerate(keys)}
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    unknown = [path.name for path in inside if _plain(path.name) not in labels]
    absent = set(labels) - {_plain(path.name) for path in inside}
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
            if file.suffix.lower() in IMAGE_SUFFIXES:
                name = f"{path.name}/{file.name}"
                ref = ImageRef(f"{folder.name}/{name}")
                items.append(Labelled(name, ref, labels[_plain(path.name)]))
    if not items:
        raise InputError(f"{folder} holds no images.")
    return items


def _from_tfds(rows: Sequence[dict], tfds: str, keys: Sequence[str]) -> list[Labelled]:
    features = rows.dataset_info.features
    if "label" not in features:
        raise InputError(f"tfds:{tfds} has no labels: use the data set as it is published.")
    labels = {_plain(key): label for label, key in enumerate(keys)}
    names = [_plain(name) for name in features["label"].names]
    if set(names) != set(labels):
        different = ", ".join(sorted(set(names) ^ set(labels))[:3])
        raise InputError(f"tfds:{tfds} has other classes than the prompts ({different}, ...).")
    return [
        Labelled(str(i), ImageRef(f"tfds:{tfds}#{i}"), labels[names[int(row["label"])]])
        for i, row in enumerate(rows)
    ]


def _plain(name: str) -> str:
    return name.lower().replace("_", " ").strip()
