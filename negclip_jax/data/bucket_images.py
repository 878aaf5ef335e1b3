"""Photos that lie in a bucket, read one by one as they are needed."""

import functools
import posixpath
from collections.abc import Iterable
from typing import Any

from PIL import Image

from negclip_jax.common import remote, storage
from negclip_jax.common.decoding import ImageError, decode
from negclip_jax.common.photos import PHOTO_SUFFIXES, name_key
from negclip_jax.data.images import ImageSource
from negclip_jax.data.records import unsafe_name


class BucketImages(ImageSource):
    """Images by their name below an address such as `gs://bucket/train2014`. Pickles to it."""

    def __init__(self, root: str):
        """Raises InputError where the storage is unknown and ImageError where nothing is there."""
        self.root = root.rstrip("/")
        self._folder = storage.path(self.root)
        if not self._listed:
            raise ImageError(f"There are no images at {self.root}.")

    def open(self, name: str) -> Image.Image:
        """The image `name` in mode RGB; raises ImageError for whatever `decode` refuses."""
        address = f"{self.root}/{self._checked(name)}"
        try:
            content = self._bytes(name)
        except storage.errors() as error:
            cause = storage.root_cause(error)
            raise ImageError(f"{address}: the image cannot be read ({cause}).") from error
        return decode(content, name=address)

    def read(self, name: str) -> bytes:
        """The object's bytes, empty where it cannot be read."""
        try:
            return self._bytes(name)
        except storage.errors():
            return b""

    def identity(self, name: str) -> list:
        """Size and the bucket's own checksum, of the time when this object was made."""
        info = self._listed.get(self._spelled(self._checked(name)))
        return [] if info is None else [info["size"], remote.checksum(info)]

    def names(self) -> list[str]:
        """Of the photos at any depth, sorted; hidden objects and folders left out."""
        shown = (name for name in self._listed if not any(p[:1] == "." for p in name.split("/")))
        return sorted(x for x in shown if posixpath.splitext(x)[1].lower() in PHOTO_SUFFIXES)

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of `names` that are not there, each once and in order."""
        distinct = dict.fromkeys(names)
        return [n for n in distinct if self._spelled(self._checked(n)) not in self._listed]

    def _bytes(self, name: str) -> bytes:
        name = self._checked(name)
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:  # there may be one of another spelling
            if (other := self._spelled(name)) == name:
                raise
            return (self._folder / other).read_bytes()

    def _spelled(self, name: str) -> str:
        """The name as the bucket has it, where one object alone is spelled so; else the name."""
        if name in self._listed or len(found := self._spellings.get(name_key(name), ())) != 1:
            return name
        return found[0]

    @functools.cached_property
    def _spellings(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self._listed:
            found.setdefault(name_key(name), []).append(name)
        return found

    @functools.cached_property
    def _listed(self) -> dict[str, dict[str, Any]]:
        with storage.announced(f"the list of the images in {self.root}"):
            return remote.listed(self._folder)

    def _checked(self, name: str) -> str:
        reason = unsafe_name(name)
        if reason:
            raise ImageError(f"The image name {name!r} {reason}: refused.")
        return posixpath.normpath(name)

    def __getstate__(self) -> dict[str, Any]:
        """Without the list, which a worker that opens images does not need."""
        return {"root": self.root}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.root = state["root"]
        self._folder = storage.path(self.root)
