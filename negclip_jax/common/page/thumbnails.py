"""Small copies of images inside a page."""

import base64
import io
import os

from PIL import Image

from negclip_jax.common.decoding import ImageError, opened, to_rgb, upright

_QUALITY = 78


def thumbnail(image: Image.Image, side: int = 176) -> str:
    """Data URL of an image as a JPEG, its longer side at most `side` pixels."""
    small = to_rgb(image).copy()
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_QUALITY)
    return jpeg_url(buffer.getvalue())


def file_thumbnail(file: bytes | str | os.PathLike, side: int = 176) -> str:
    """The `thumbnail` of an image file or its bytes, upright; "" where it cannot be read."""
    try:
        with opened(file) as image:
            image.draft("RGB", (2 * side, 2 * side))  # a JPEG is decoded at 1/2, 1/4 or 1/8
            return thumbnail(upright(image), side)
    except ImageError:
        return ""


def jpeg_url(data: bytes) -> str:
    """Data URL of a JPEG file's bytes."""
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()
