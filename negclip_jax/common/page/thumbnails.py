"""Small copies of images inside a page."""

import base64
import io

from PIL import Image

_QUALITY = 78


def thumbnail(image: Image.Image, side: int = 176) -> str:
    """Data URL of an image as a JPEG, its longer side at most `side` pixels."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_QUALITY)
    return jpeg_url(buffer.getvalue())


def jpeg_url(data: bytes) -> str:
    """Data URL of a JPEG file's bytes."""
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()
