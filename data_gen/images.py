"""A photo for a model: decoded once, checked, made small, and named by its content."""

import hashlib
import io
import os
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from negclip_jax.common.chat.messages import ChatImage
from negclip_jax.common.decoding import MAX_BYTES, MAX_PIXELS, formats
from negclip_jax.common.errors import InputError
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

    def __init__(self, root: str | os.PathLike, long_side: int):
        """`long_side`: pixels; larger photos are made smaller. Raises InputError without a root."""
        self.root, self._long_side = Path(root), long_side
        if not self.root.is_dir():
            raise InputError(f"the image folder {root} does not exist; give --images=DIR")
        self._real_root = os.path.realpath(root)

    def path(self, name: str) -> Path:
        """Where the photo lies. Raises PhotoError for a name that leaves the folder."""
        reason = unsafe_name(name)
        if reason:
            raise PhotoError("image_outside", f"the image name {name!r} {reason}")
        path = self.root / name
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
        return encode(data, name, self._long_side)


def encode(data: bytes, name: str, long_side: int) -> Photo:
    """A photo from a file's bytes.

    An upright RGB JPEG that is small enough is sent as it is; anything else that Pillow reads
    (CMYK, palettes, 16-bit grey, EXIF rotation) becomes an RGB JPEG. Raises PhotoError for
    animations, for more than 100 megapixels and for damaged files.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=formats())
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            if getattr(image, "n_frames", 1) > 1:
                raise PhotoError("image_animated", f"{name} is an animation")
            as_it_is = _fits_as_it_is(image, long_side)
            if image.format == "JPEG" and not as_it_is:
                image.draft("RGB", (long_side, long_side))  # decodes at 1/2, 1/4 or 1/8
            turned = ImageOps.exif_transpose(image) if not as_it_is else image
            turned.load()
    except PhotoError:
        raise
    except Image.DecompressionBombError:
        detail = f"{name} has more than {MAX_PIXELS // 10**6} million pixels"
        raise PhotoError("image_too_large", detail) from None
    except Exception as error:  # Pillow's plug-ins raise whatever they meet in damaged files
        raise PhotoError("image_undecodable", f"{name} cannot be decoded ({error})") from None
    if as_it_is:
        return Photo(sha256, "file", data, width=image.width, height=image.height)
    return _converted(turned, sha256, _upright_size(data), long_side)


def _fits_as_it_is(image: Image.Image, long_side: int) -> bool:
    small = max(image.size) <= long_side
    upright = image.getexif().get(0x0112, 1) == 1
    return small and upright and image.format == "JPEG" and image.mode == "RGB"


def _upright_size(data: bytes) -> tuple[int, int]:
    """Width and height of the whole photo, which a draft decode no longer knows."""
    with Image.open(io.BytesIO(data), formats=formats()) as image:
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return image.size[::-1] if turned else image.size


def _converted(image: Image.Image, sha256: str, size: tuple[int, int], long_side: int) -> Photo:
    if image.mode.startswith("I;16"):  # Pillow would clip 16 bits, not scale them
        image = image.point(lambda value: value / 256).convert("L")
    image = _on_white(image) if "A" in image.getbands() else image.convert("RGB")
    image.thumbnail((long_side, long_side), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_QUALITY)
    encoding = f"jpeg{_QUALITY}-{long_side}"
    return Photo(sha256, encoding, out.getvalue(), width=size[0], height=size[1])


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")
