"""From what a user writes for `data.images` to where the images are.

PHOTOS, gs://bucket/photos     a folder
wds:cc12m-{0000..1242}.tar     webdataset's tars
tfds:coco_captions/train       a prepared data set
"""

from negclip_jax.common import storage
from negclip_jax.common.errors import InputError
from negclip_jax.data.images import BucketImages, ImageDirectory, ImageSource
from negclip_jax.data.shard_images import RecordImages, TarImages

# Sets of shards, and how their files end where a folder is given.
SUFFIXES = {"wds": ".tar", "parquet": ".parquet", "arrayrecord": ".array_record*"}


def kind_of(spec: str) -> tuple[str, str]:
    """What stands before the colon, a key of `SUFFIXES` or "tfds", else ""; what follows it."""
    kind, colon, rest = spec.partition(":")
    return (kind, rest) if colon and (kind in SUFFIXES or kind == "tfds") else ("", spec)


def is_folder(spec: str) -> bool:
    """Whether `spec` names a folder of this machine, there or not."""
    return not kind_of(spec)[0] and not storage.is_remote(spec)


def open_images(spec: str) -> ImageSource:
    """The images that `spec` names; see the module.

    Raises InputError for what is not there, or cannot be read.
    """
    kind, rest = kind_of(spec)
    if kind == "tfds":
        from negclip_jax.data import tfds

        return tfds.TfdsImages(*tfds_name(spec))
    if kind == "wds":
        return TarImages(rest)
    if kind == "arrayrecord":
        return RecordImages(rest)
    if kind == "parquet":
        from negclip_jax.data.parquet_images import ParquetImages

        return ParquetImages(rest)
    return ImageDirectory(spec) if is_folder(spec) else BucketImages(spec)


def tfds_name(text: str) -> tuple[str, str]:
    """Data set and split of `tfds:NAME/SPLIT`; raises InputError."""
    name, _, split = text.removeprefix("tfds:").rpartition("/")
    if not name:
        raise InputError(
            f"cannot read {text!r}: write tfds:NAME/SPLIT, e.g. tfds:coco_captions/train"
        )
    return name, split
