"""A photo for a model: decoded once, checked, made small, and named by its content."""

import hashlib
import io
import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from negclip_jax.common.chat.messages import ChatImage
from negclip_jax.common.decoding import MAX_BYTES, ImageError, is_upright, opened, to_rgb, upright
from negclip_jax.common.errors import InputError
from negclip_jax.common.photos import find_file
from negclip_jax.data.records import unsafe_name

_QUALITY = 90


@dataclass(frozen=True, kw_only=True)
class Photo(ChatImage):
    """A photo as it is sent.

    Attributes:
      width, height: pixels of the whole photo as a viewer shows it, rotation applied.
    """

    width: int
    height: int


class PhotoError(Exception):
    """A photo that cannot be used: `code` for the table of rejects, and the reason."""

    def __init__(self, code: str, detail: str):
        super().__init__(detail)
        self.code = code


class PhotoFolder:
    """Photos by their name below one folder, as files of the captions name them."""

    def __init__(self, root: str | os.PathLike, long_side: int, by: str = "data", url: str = ""):
        """Raises InputError where there is no such folder.

        Args:
          root: the folder.
          long_side: pixels; larger photos are made smaller.
          by: "data" to send photos, "url" or "file" to send where the server finds the whole file.
          url: what stands before a photo's name for "url".
        """
        self.root, self._long_side, self._by, self._url = Path(root), long_side, by, url
        if not self.root.is_dir():
            raise InputError(f"the image folder {root} does not exist; give --images=DIR")
        self._real_root = os.path.realpath(root)

    def path(self, name: str) -> Path:
        """Where the photo lies. Raises PhotoError for a name that leaves the folder."""
        reason = unsafe_name(name)
        if reason:
            raise PhotoError("image_outside", f"the image name {name!r} {reason}")
        path = find_file(self.root, name) or self.root / name
        real = os.path.realpath(path)
        if os.path.commonpath((real, self._real_root)) != self._real_root:
            raise PhotoError("image_outside", f"{name}: a link leads out of the image folder")
        return path

    def load(self, name: str) -> Photo:
        """Reads, checks and, where needed, converts one photo. Raises PhotoError."""
        path = self.path(name)
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
        photo = encode(data, name, self._long_side)
        if self._by == "data":
            return photo
        # Its name on disk may be spelled otherwise than in the captions.
        where = path.relative_to(self.root).as_posix()
        address = path.absolute().as_uri() if self._by == "file" else self._url + quote(where)
        return replace(photo, encoding=self._by, data=b"", address=address)


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
