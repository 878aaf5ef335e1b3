"""From what a user writes for `data.images` to where the images are.

PHOTOS, gs://bucket/photos     a folder
wds:cc12m-{0000..1242}.tar     webdataset's tars
tfds:coco_captions/train       a prepared data set
"""

from negclip_jax.common import storage
from negclip_jax.common.errors import InputError
from negclip_jax.data.bucket_images import BucketImages
from negclip_jax.data.images import ImageDirectory, ImageSource
from negclip_jax.data.shard_images import RecordImages, TarImages

_KINDS = ("wds", "parquet", "arrayrecord", "tfds")


def is_folder(spec: str) -> bool:
    """Whether `spec` names a folder of this machine, there or not."""
    kind, colon, _ = spec.partition(":")
    return not (colon and kind in _KINDS) and not storage.is_remote(spec)


def open_images(spec: str) -> ImageSource:
    """The images that `spec` names; see the module.

    Raises InputError for what is not there, or cannot be read.
    """
    kind, colon, rest = spec.partition(":")
    if colon and kind == "tfds":
        from negclip_jax.data import tfds

        return tfds.TfdsImages(*tfds_name(spec))
    if colon and kind == "wds":
        return TarImages(rest)
    if colon and kind == "arrayrecord":
        return RecordImages(rest)
    if colon and kind == "parquet":
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
