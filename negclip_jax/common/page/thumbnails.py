"""Small copies of images inside a page."""

import base64
import io
import os

from PIL import Image

from negclip_jax.common.decoding import ImageError, opened, to_rgb, upright

_QUALITY = 78


def thumbnail(image: Image.Image, side: int = 176) -> str:
    """Data URL of an image as a JPEG, its longer side at most `side` pixels."""
    return jpeg_url(_small_jpeg(image, side))


def file_thumbnail(file: bytes | str | os.PathLike, side: int = 176) -> str:
    """The `thumbnail` of an image file or its bytes, upright; "" where it cannot be read."""
    data = file_jpeg(file, side)
    return jpeg_url(data) if data else ""


def file_jpeg(file: bytes | str | os.PathLike, side: int) -> bytes:
    """A JPEG of an image file or its bytes, upright, its longer side at most `side` pixels.

    Empty where it cannot be read. Metadata, such as where a photo was taken, is left out.
    """
    try:
        with opened(file) as image:
            image.draft("RGB", (2 * side, 2 * side))  # a JPEG is decoded at 1/2, 1/4 or 1/8
            return _small_jpeg(upright(image), side)
    except ImageError:
        return b""


def jpeg_url(data: bytes) -> str:
    """Data URL of a JPEG file's bytes."""
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def _small_jpeg(image: Image.Image, side: int) -> bytes:
    small = to_rgb(image).copy()
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_QUALITY, comment=b"")
    return buffer.getvalue()
