"""COCO captions from a prepared `tensorflow-datasets` folder, without TensorFlow.

What `tfds.data_source("coco_captions")` gives, with two differences: the data set is opened from
its files alone, because TFDS' own code for COCO imports TensorFlow, and images stay as encoded
bytes until one is asked for. Preparing the data set (once, anywhere) does need TensorFlow.

Records hold caption and image together, so listing the names and captions of a split reads all of
its bytes once (13 GB for COCO 2014's train split) and decodes no image. That pass happens once in
a process and is shared by `read_tfds_pairs` and `TfdsImages`.
"""

import logging
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64
from PIL import Image

from negclip_jax.common import strict_json
from negclip_jax.common.decoding import ImageError
from negclip_jax.common.errors import InputError
from negclip_jax.data.images import ImageSource, decode
from negclip_jax.data.records import Pair

_log = logging.getLogger(__name__)

_FEATURES = "tensorflow_datasets.core.features."
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")


class _Record(NamedTuple):
    filename: str
    image_id: str
    captions: tuple[str, ...]


class TfdsImages(ImageSource):
    """Images of a prepared data set by their file name.

    The file names are listed when first needed, and travel with a pickle: worker processes open
    the files but do not list them again.
    """

    def __init__(
        self, name: str = "coco_captions", split: str = "train", data_dir: str | None = None
    ):
        """`data_dir` is where data sets were prepared, by default TFDS_DATA_DIR.

        Raises InputError if the data set is not prepared there, or not with random access.
        """
        self._where = (name, split, data_dir)
        self._rows: dict[str, int] | None = None
        self._source = open_split(*self._where)

    def open(self, name: str) -> Image.Image:
        row = self._index().get(name)
        if row is None:
            raise ImageError(f"{name}: there is no such image in {_shown(*self._where)}.")
        return decode(self._source[row]["image"], f"{name} in {_shown(*self._where)}")

    def read(self, name: str) -> bytes:
        return self._source[self._index()[name]]["image"]

    def identity(self, name: str) -> list:
        """Data set, version and row: prepared data sets are not edited."""
        return [*map(str, self._where), self._source.dataset_info.full_name, self._index()[name]]

    def names(self) -> list[str]:
        return list(self._index())

    def missing(self, names: Iterable[str]) -> list[str]:
        rows = self._index()
        return [name for name in dict.fromkeys(names) if name not in rows]

    def storage_order(self, names: Sequence[str]) -> Int64[np.ndarray, " N"]:
        rows = self._index()
        return np.argsort([rows.get(name, -1) for name in names], kind="stable")

    def _index(self) -> dict[str, int]:
        if self._rows is None:
            self._rows = {r.filename: row for row, r in enumerate(_records(*self._where))}
        return self._rows

    def __getstate__(self) -> dict:
        return {"_where": self._where, "_rows": self._index()}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._source = open_split(*self._where)


def read_tfds_pairs(
    name: str = "coco_captions", split: str = "train", data_dir: str | None = None
) -> list[Pair]:
    """Affirmative captions of a prepared data set as pairs with `negated=None`.

    Blank captions are left out and counted in the log. Raises InputError if the data set is not
    prepared, lacks a feature or holds no caption.
    """
    captions = [(r, caption) for r in _records(name, split, data_dir) for caption in r.captions]
    pairs = [
        Pair(record.filename, caption, None, image_id=record.image_id)
        for record, caption in captions
        if caption.strip()
    ]
    where = _shown(name, split, data_dir)
    if not pairs:
        raise InputError(f"{where} holds no captions: there is nothing to train on.")
    _log.info("%s: %d captions, %d blank left out", where, len(pairs), len(captions) - len(pairs))
    return pairs


@lru_cache(maxsize=4)
def _records(name: str, split: str, data_dir: str | None) -> tuple[_Record, ...]:
    """Everything but the pixels of a split, in its order."""
    return tuple(
        _Record(
            _text(example["image/filename"]),
            str(int(example["image/id"])),
            tuple([_text(caption) for caption in example["captions"]["text"]]),
        )
        for example in open_split(name, split, data_dir)
    )


def open_split(
    name: str,
    split: str,
    data_dir: str | None = None,
    features: Iterable[str] = ("image", "image/filename", "image/id", "captions"),
) -> Sequence[dict]:
    """Random access to a split of a prepared data set; elements are dicts with encoded images.

    Raises InputError if it is not prepared, not with random access, or lacks one of `features`.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder
    from tensorflow_datasets.core.utils import file_utils

    where = _shown(name, split, data_dir)
    for folder in file_utils.list_data_dirs(given_data_dir=data_dir):
        _refuse_foreign_features(Path(folder) / re.split("[/:]", name)[0], where)
    try:
        builder = read_only_builder.builder_from_files(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        folder = f" --data_dir={data_dir}" if data_dir else ""
        raise InputError(
            f"{where} is not prepared. Where TensorFlow is installed, run `tfds build {name} "
            f"--file_format=array_record{folder}`, then set TFDS_DATA_DIR to that folder here."
        ) from None
    missing = set(features) - set(builder.info.features)
    if missing:
        raise InputError(
            f"{where} has no {', '.join(sorted(missing))}: use one like coco_captions."
        )
    try:
        # An image that is not wanted is not decoded, and one that is passes our own checks.
        return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except NotImplementedError:
        raise InputError(
            f"{where} is prepared in a format without random access. Convert it: `tfds "
            f"convert_format --dataset_dir={builder.data_dir} --out_file_format=array_record`."
        ) from None
    except ValueError as error:  # TFDS names the splits that there are
        raise InputError(f"{where} cannot be opened: {error}") from None


def _refuse_foreign_features(folder: Path, where: str) -> None:
    """Raises InputError where a `features.json` names other classes than TFDS' own.

    TFDS imports whatever module such a file names, which runs its code.
    """
    for path in folder.glob("**/features.json"):
        with strict_json.reported(f"{where}: {path}", InputError):
            foreign = _classes(strict_json.load(path))
        foreign = [name for name in foreign if not name.startswith(_FEATURES)]
        if foreign:
            raise InputError(
                f"{where}: {path} asks for the class {foreign[0]}, and loading it would run its "
                "code: prepare the data set with TFDS' own features."
            )


def _classes(value: Any) -> list[str]:
    """All Python classes that a `features.json` names, at any depth."""
    if isinstance(value, list):
        return [name for item in value for name in _classes(item)]
    if not isinstance(value, dict):
        return []
    named = [str(value[key]) for key in _CLASS_KEYS if key in value and "." in str(value[key])]
    return named + [name for item in value.values() for name in _classes(item)]


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _shown(name: str, split: str, data_dir: str | None) -> str:
    return f"tfds:{name}/{split}" + (f" in {data_dir}" if data_dir else "")
