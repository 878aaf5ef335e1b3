"""Encoded images to RGB, whoever encoded them: few formats, bounded memory, one-line errors.

Pillow reads 40 formats, some through other programs (EPS through Ghostscript) and most without
ever having been attacked. Photos come in the few of `FORMATS`, and nothing else is tried, whatever
a file is called. An image is weighed by its header before anything of it is decoded.
"""

import contextlib
import functools
import os
import stat
from collections.abc import Iterator
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image, ImageOps

from negclip_jax.common.errors import InputError


class ImageError(InputError):
    """An image that cannot be read or used; the message names it and says why."""


FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "MPO", "BMP", "TIFF", "PPM", "AVIF")
# Decoding needs 4 to 16 bytes a pixel (progressive JPEG and WebP keep all their coefficients or
# frames): at most 1.7 GB for one image of 100 megapixels, as SECURITY.md says.
MAX_PIXELS = 100_000_000
MAX_BYTES = 2**29  # of a file: more than 100 megapixels of any format need
_STRIP = 2**20  # grey values of 64 bits that are converted at a time


@contextlib.contextmanager
def opened(data: bytes | str | os.PathLike, name: str | None = None) -> Iterator[Image.Image]:
    """An image of which the header alone was read; `load` in the block decodes it.

    Raises ImageError where it is missing, empty, none of `FORMATS`, damaged, cut short, or larger
    than `MAX_PIXELS` or `MAX_BYTES`, and for any error in the block.
    """
    in_memory = not isinstance(data, (str, os.PathLike))
    name = name or ("image in memory" if in_memory else os.fspath(data))
    try:
        if _size(data) > MAX_BYTES:
            raise Image.DecompressionBombError(f"{_size(data):,} bytes, more than {MAX_BYTES:,}")
        with Image.open(BytesIO(data) if in_memory else data, formats=formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(
                    f"{image.width} x {image.height} pixels, more than {MAX_PIXELS // 10**6} "
                    "million"
                )
            yield image
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly every type on a malformed file
        raise ImageError(f"{name}: {_reason(error, data)}.") from error


def decode(data: bytes | str | os.PathLike, name: str | None = None) -> Image.Image:
    """Decodes an image file, or its bytes, to a PIL image in mode RGB; see `opened`."""
    with opened(data, name) as image:
        image.load()
        return to_rgb(image)


def read_file(path: str | os.PathLike) -> bytes:
    """The bytes of an image file; empty for what cannot be read or is too large to be one."""
    try:
        if _size(path) <= MAX_BYTES:
            with open(path, "rb") as file:
                return file.read()
    except OSError:
        pass
    return b""


@functools.cache
def formats() -> tuple[str, ...]:
    """Those of `FORMATS` that the installed Pillow has: what `Image.open` is to try."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _size(data: bytes | str | os.PathLike) -> int:
    """Bytes; OSError for no file: a pipe would be waited for and a device read without end."""
    if not isinstance(data, (str, os.PathLike)):
        return len(data)
    state = os.stat(data)
    if not (stat.S_ISREG(state.st_mode) or stat.S_ISDIR(state.st_mode)):
        raise OSError(22, "it is a device or a pipe")
    return state.st_size


def _reason(error: Exception, data: bytes | str | os.PathLike) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such image file"
    if isinstance(error, OSError) and error.errno:
        return f"the image cannot be read ({error.strerror})"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"the image is too large to decode safely ({str(error).rstrip('.')})"
    if isinstance(error, Image.UnidentifiedImageError):
        if not _size(data):
            return "the image file is empty"
        return f"this is not an image that Pillow can read as one of {', '.join(FORMATS)}"
    return f"the image is damaged or cut short ({str(error).rstrip('.') or type(error).__name__})"


def is_upright(image: Image.Image) -> bool:
    """Whether its EXIF orientation turns nothing; a damaged EXIF block does not say how to turn."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    except Exception:  # Pillow's reader raises nearly every type
        return True


def upright(image: Image.Image) -> Image.Image:
    """The image, turned as its EXIF orientation says."""
    return image if is_upright(image) else ImageOps.exif_transpose(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB.

    Alpha is dropped, not composited, and palette images take their colours: what OpenAI's
    `convert("RGB")` does. Grey of more than 8 bits is scaled, see `_grey_to_8_bits`. Of an
    animated image the current frame is taken, the first one after opening.
    """
    if image.mode == "RGB":
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        grey = Image.fromarray(_grey_to_8_bits(np.asarray(image), image.mode))
        grey.info.update(image.info)
        image = grey
    elif image.mode in ("P", "PA", "La", "RGBa"):
        # Premultiplied modes have no direct conversion, and palettes with transparency warn
        # without this step. The colours are the same.
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    return image.convert("RGB")


def _grey_to_8_bits(values: np.ndarray, mode: str) -> np.ndarray:
    """Grey of modes I;16, I and F to uint8.

    I;16 spans 0..65535. I and F do not say what they span: 0..1 (F only), 0..255 and 0..65535 are
    taken as such by their extremes, anything else is stretched from its own least to greatest.
    """
    low, high = 0, 65_535
    if not mode.startswith("I;16"):
        extremes = [(strip.min(), strip.max()) for _, strip in _strips(values)]
        low, high = min(e[0] for e in extremes), max(e[1] for e in extremes)
        spans = ([1] if mode == "F" else []) + [255, 65_535]
        low, high = next(((0, span) for span in spans if low >= 0 and high <= span), (low, high))
    grey = np.empty(values.shape, np.uint8)
    for rows, strip in _strips(values):
        grey[rows] = np.rint((strip - low) * (255 / ((high - low) or 1)))
    return grey


def _strips(values: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Some rows at a time in float64, what is not finite as 0: all at once would take 16 bytes a
    pixel."""
    step = max(1, _STRIP // values.shape[1])
    for start in range(0, len(values), step):
        rows = slice(start, start + step)
        yield rows, np.nan_to_num(values[rows].astype(np.float64), posinf=0, neginf=0)
