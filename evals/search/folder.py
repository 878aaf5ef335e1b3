"""All photos below a folder, in shards or with features, as the encoder takes them."""

import os
import urllib.parse
from pathlib import Path

from evals.images import ImageRef
from negclip_jax.common.errors import InputError
from negclip_jax.common.page.thumbnails import file_thumbnail
from negclip_jax.common.photos import PHOTO_SUFFIXES
from negclip_jax.data.feature_files import ImageFeatures
from negclip_jax.data.images import ImageDirectory, ImageSource, photos_below
from negclip_jax.data.shard_images import ShardImages
from negclip_jax.data.sources import is_folder, open_images


class PhotoFolder(ImageDirectory):
    """Photos by their names below `root`, sorted; hidden files and folders are left out.

    `refs` are the photos, `skipped` names that look like photos and are not read, with the reason:
    links that lead out of the folder above all. Linked folders are not entered.
    """

    given = None

    def __init__(self, root: Path):
        """Lists the folder; no photo is opened. Raises InputError where there is none in it."""
        if not root.is_dir():
            what = "is not a folder" if root.exists() else "does not exist"
            raise InputError(f"--images={root} {what}: give a folder with photos")
        super().__init__(root)
        names, self.skipped = photos_below(root)
        self.refs = [ImageRef(name) for name in names]
        if not names:
            more = ""
            for name, reason in list(self.skipped.items())[:1]:
                more = f" that can be read; {name}: {reason}"
            suffixes = ", ".join(sorted(PHOTO_SUFFIXES))
            raise InputError(
                f"--images={root} holds no photo{more} (looked for {suffixes}, at any depth)"
            )

    def path(self, ref: ImageRef) -> Path:
        """The file of a photo."""
        return Path(self.root, ref.path)

    def shown(self, ref: ImageRef, out: Path) -> tuple[str, str]:
        """A small copy of a photo, and a link to it from a page in `out`."""
        file = self.path(ref)
        path = Path(os.path.relpath(file, out)).as_posix()
        return file_thumbnail(file), urllib.parse.quote(path.encode("utf-8", "surrogateescape"))

    def identity(self, path: str) -> list:
        """Changes whenever the photo's file does."""
        return [os.path.abspath(self.root), *super().identity(path)]


class PhotoShards(ImageSource):
    """Photos in tars, Parquet or ArrayRecord, see `data.sources`; as `PhotoFolder`."""

    given = None

    def __init__(self, spec: str):
        """Lists the shards; no photo is opened. Raises InputError where there is none."""
        source = open_images(spec)
        if not isinstance(source, ShardImages):
            raise InputError(f"--images={spec}: give a folder, wds:, parquet: or arrayrecord:")
        self.root, self.skipped, self._source = spec, {}, source
        self.refs = [ImageRef(name) for name in source.names()]
        self.open, self.read, self.missing = source.open, source.read, source.missing
        self.identities, self.storage_order = source.identities, source.storage_order

    def identity(self, name: str) -> list:
        """Changes whenever the photo's shard does."""
        return self._source.identity(name)

    def shown(self, ref: ImageRef, out: Path) -> tuple[str, str]:
        """A small copy of a photo; there is nothing to link to."""
        return file_thumbnail(self._source.read(ref.path)), ""


class FeatureList(ImageSource):
    """Photos with features of another library, `given` to the encoder; as `PhotoFolder`."""

    def __init__(self, features: ImageFeatures, photos: PhotoFolder | PhotoShards | None):
        """`photos` are those to rank; None: all that have features, and none of them is shown."""
        self.root, self._photos = photos.root if photos else features.path, photos
        self.refs = photos.refs if photos else [ImageRef(name) for name in features.names]
        self.skipped = dict(photos.skipped) if photos else {}
        self.given = (features, lambda name: name if features.usable(name) else None)
        source = photos or features
        self.open, self.read, self.missing = source.open, source.read, source.missing
        self.identity = source.identity

    def shown(self, ref: ImageRef, out: Path) -> tuple[str, str]:
        """As that of the photos, if there are any."""
        return self._photos.shown(ref, out) if self._photos else ("", "")


Photos = PhotoFolder | PhotoShards | FeatureList


def photos_of(spec: str | None, features: ImageFeatures | None = None) -> Photos:
    """What `--images` names, with the features of `--features`. Raises InputError."""
    if spec is None and features is None:
        raise InputError("give --images=PHOTOS, or --features=FILE of photos that are elsewhere")
    photos = None
    if spec is not None:
        photos = PhotoFolder(Path(spec)) if is_folder(spec) else PhotoShards(spec)
    return photos if features is None else FeatureList(features, photos)
