"""A photo for a model: decoded once, checked, made small, and named by its content."""

import hashlib
import io
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from negclip_jax.common.chat.messages import ChatImage
from negclip_jax.common.decoding import MAX_BYTES, ImageError, is_upright, opened, to_rgb, upright
from negclip_jax.common.errors import InputError
from negclip_jax.common.page.thumbnails import file_thumbnail
from negclip_jax.common.photos import find_file
from negclip_jax.data.records import unsafe_name
from negclip_jax.data.sources import is_folder, open_images

_QUALITY = 90


@dataclass(frozen=True, kw_only=True)
class Photo(ChatImage):
    """A photo as it is sent."""

    width: int  # pixels of the whole photo as a viewer shows it, rotation applied
    height: int


class PhotoError(Exception):
    """A photo that cannot be used: `code` for the table of rejects, and the reason."""

    def __init__(self, code: str, detail: str):
        super().__init__(detail)
        self.code = code


class PhotoFolder:
    """Photos by their name below one folder, as files of the captions name them.

    In place of a folder stands whatever `data.sources.open_images` opens: tars, Parquet, a bucket.
    """

    def __init__(self, root: str | os.PathLike, long_side: int, by: str = "data", url: str = ""):
        """Raises InputError where there is no such folder.

        `long_side`: pixels; larger photos are made smaller. `by`: "data" to send photos, "url" or
        "file" to send where the server finds the whole file: `url` and its name.
        """
        self.root, self._long_side, self._by, self._url = Path(root), long_side, by, url
        self._source = None if is_folder(str(root)) else open_images(str(root))
        if self._source is not None:
            if by == "file":
                raise InputError(f"images.by=file: photos of {root} are no files; images.by=data")
        elif not self.root.is_dir():
            raise InputError(f"the image folder {root} does not exist; give --images=DIR")
        self._real_root = os.path.realpath(root)

    def path(self, name: str) -> Path:
        """Where the photo lies. Raises PhotoError for a name that leaves the folder."""
        self._check(name)
        path = find_file(self.root, name) or self.root / name
        real = os.path.realpath(path)
        if os.path.commonpath((real, self._real_root)) != self._real_root:
            raise PhotoError("image_outside", f"{name}: a link leads out of the image folder")
        return path

    def holds_any(self, names: Sequence[str]) -> bool:
        """Whether one of the photos is there."""
        if self._source is not None:
            return len(self._source.missing(names)) < len(set(names))
        return any(find_file(self.root, name) for name in names)

    def thumbnail(self, name: str, side: int) -> str:
        """Data URL of a small copy, "" where there is no such photo or none that can be read."""
        try:
            file = self.path(name) if self._source is None else self._read(name)
            return file_thumbnail(file, side)
        except (PhotoError, ImageError):
            return ""

    def load(self, name: str) -> Photo:
        """Reads, checks and, where needed, converts one photo. Raises PhotoError."""
        if self._source is not None:
            photo, where = encode(self._read(name), name, self._long_side), name
        else:
            path = self.path(name)
            photo = encode(self._file(path, name), name, self._long_side)
            where = path.relative_to(self.root).as_posix()
        if self._by == "data":
            return photo
        # Its name on disk may be spelled otherwise than in the captions.
        address = path.absolute().as_uri() if self._by == "file" else self._url + quote(where)
        return replace(photo, encoding=self._by, data=b"", address=address)

    def _check(self, name: str) -> None:
        reason = unsafe_name(name)
        if reason:
            raise PhotoError("image_outside", f"the image name {name!r} {reason}")

    def _file(self, path: Path, name: str) -> bytes:
        try:
            state = path.stat()
            if not stat.S_ISREG(state.st_mode) or state.st_size > MAX_BYTES:
                detail = f"{name} is no file of at most {MAX_BYTES:,} bytes"
                raise PhotoError("image_unreadable", detail)
            data = path.read_bytes()
        except FileNotFoundError:
            raise PhotoError("image_missing", f"{name} is not in {self.root}") from None
        except OSError as error:
            raise PhotoError("image_unreadable", f"{name}: {error.strerror}") from None
        if not data:
            raise PhotoError("image_empty", f"{name} has 0 bytes")
        return data

    def _read(self, name: str) -> bytes:
        self._check(name)
        if data := self._source.read(name):
            return data
        try:
            if self._source.missing([name]):
                raise PhotoError("image_missing", f"{name} is not in {self.root}")
            self._source.open(name)  # says why
        except ImageError as error:
            raise PhotoError("image_unreadable", str(error)) from None
        raise PhotoError("image_unreadable", f"{name} could not be read at first")


def encode(data: bytes, name: str, long_side: int) -> Photo:
    """A photo from a file's bytes, decoded as training decodes it (`common.decoding`).

    An upright RGB JPEG that is small enough is sent as it is; anything else that can be read
    (CMYK, palettes, grey of 16 or 32 bits, EXIF rotation) becomes an RGB JPEG; transparency
    becomes white. Of a file with further pictures (MPO, as phones write it, and TIFF) the first is
    sent. Raises PhotoError for animations, for more than 100 megapixels and for damaged files.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    animated = False
    try:
        with opened(data, name) as image:
            animated = getattr(image, "n_frames", 1) > 1 and image.format not in ("MPO", "TIFF")
            size = image.size
            plain = image.format == "JPEG" and image.mode == "RGB" and is_upright(image)
            if plain and max(size) <= long_side:
                image.load()
                return Photo(sha256, "file", data, width=size[0], height=size[1])
            if not animated:
                if image.format in ("JPEG", "MPO"):
                    image.draft("RGB", (long_side, long_side))  # decodes at 1/2, 1/4 or 1/8
                image.load()
                turned = upright(image)
                size = size if turned.size == image.size else size[::-1]
                if "A" in turned.getbands():
                    rgba = turned.convert("RGBA")
                    white = Image.new("RGBA", rgba.size, "white")
                    turned = Image.alpha_composite(white, rgba)
                sent = to_rgb(turned)
                sent.thumbnail((long_side, long_side), Image.Resampling.BICUBIC)
    except ImageError as error:
        large = isinstance(error.__cause__, Image.DecompressionBombError)
        code = "image_too_large" if large else "image_undecodable"
        raise PhotoError(code, str(error)) from None
    if animated:
        raise PhotoError("image_animated", f"{name} is an animation")
    out = io.BytesIO()
    sent.save(out, "JPEG", quality=_QUALITY)
    encoding = f"jpeg{_QUALITY}-{long_side}"
    return Photo(sha256, encoding, out.getvalue(), width=size[0], height=size[1])
