"""All photos below a folder or in shards, as the encoder takes them."""

import os
import urllib.parse
from pathlib import Path

from evals.images import ImageRef
from negclip_jax.common.decoding import ImageError, opened
from negclip_jax.common.errors import InputError
from negclip_jax.common.page.thumbnails import file_thumbnail
from negclip_jax.common.photos import PHOTO_SUFFIXES
from negclip_jax.data.images import ImageDirectory, ImageSource
from negclip_jax.data.records import unsafe_name
from negclip_jax.data.shard_images import ShardImages
from negclip_jax.data.sources import is_folder, open_images

# Photos in formats that are not read, which are named rather than passed over.
_NOT_READ = {".jxl", ".jp2", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"}


class PhotoFolder(ImageDirectory):
    """Photos by their names below `root`, sorted; hidden files and folders are left out.

    Attributes:
      refs: the photos.
      skipped: names that look like photos and are not read, with the reason: links that lead out of
        the folder above all. Linked folders are not entered.
    """

    def __init__(self, root: Path):
        """Lists the folder; no photo is opened. Raises InputError where there is none in it."""
        if not root.is_dir():
            what = "is not a folder" if root.exists() else "does not exist"
            raise InputError(f"--images={root} {what}: give a folder with photos")
        super().__init__(root)
        self.skipped: dict[str, str] = {}
        names = sorted(name for name in self._walk() if self._is_inside(name))
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

    def _walk(self) -> list[str]:
        names = []
        for folder, folders, files in os.walk(self.root):
            here = Path(folder).relative_to(self.root)
            for name in [f for f in folders if (Path(folder) / f).is_symlink()]:
                self.skipped[(here / name).as_posix()] = "a link to a folder is not followed"
            folders[:] = [f for f in folders if not f.startswith(".")]
            for file in (f for f in files if not f.startswith(".")):
                name, suffix = (here / file).as_posix(), Path(file).suffix.lower()
                if suffix in PHOTO_SUFFIXES or (not suffix and _is_photo(Path(folder, file))):
                    names.append(name)
                elif suffix in _NOT_READ:
                    self.skipped[name] = f"photos of the type {suffix} are not read"
        return names

    def _is_inside(self, name: str) -> bool:
        real, root = os.path.realpath(os.path.join(self.root, name)), os.path.realpath(self.root)
        reason = unsafe_name(name) or ""
        if os.path.commonpath((real, root)) != root:
            reason = "a link leads out of the folder"
        elif not os.path.isfile(real):
            reason = "it is no file"
        if reason:
            self.skipped[name] = reason
        return not reason


class PhotoShards(ImageSource):
    """Photos in tars, Parquet or ArrayRecord, see `data.sources`; as `PhotoFolder`."""

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


def photos_of(spec: str) -> PhotoFolder | PhotoShards:
    """What `--images` names. Raises InputError."""
    return PhotoFolder(Path(spec)) if is_folder(spec) else PhotoShards(spec)


def _is_photo(path: Path) -> bool:
    """Whether a file without a suffix is one by its first bytes."""
    try:
        with opened(path):
            return not path.is_symlink()
    except ImageError:
        return False
