"""Decoding of untrusted images: few formats, bounded sizes and memory, one-line errors."""

import os
import struct
import subprocess
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hostile import child
from PIL import Image

from negclip_jax.common import decoding
from negclip_jax.common.decoding import FORMATS, ImageError, decode, opened
from negclip_jax.data.images import ImageDirectory


def encoded(form: str, size: tuple[int, int] = (8, 6), **options) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", size, (200, 10, 30)).save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(side: int, bits: int, *before: bytes, data: bytes = b"") -> bytes:
    """A grey PNG of `side` x `side` pixels, with chunks of one's own before the pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, bits, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + pixels


def refused(data, *expected: str) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, None if isinstance(data, (str, os.PathLike)) else "a.jpg")
    for words in expected:
        assert words in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("form", sorted(set(FORMATS) & set(decoding.formats())))
def test_formats_that_are_read(form):
    image = decode(encoded(form))
    assert (image.mode, image.size) == ("RGB", (8, 6))


@pytest.mark.parametrize("form", ["EPS", "JPEG2000", "ICO", "TGA", "SGI", "PCX", "ICNS"])
def test_formats_that_are_not(form):
    size = (64, 64) if form == "ICNS" else (8, 6)
    refused(encoded(form, size), "a.jpg: this is not an image that Pillow can read as one of JPEG")


def test_no_program_is_started_for_an_image(monkeypatch):
    """Pillow hands EPS, which is a program, to Ghostscript, whatever the file is called."""
    started = []
    monkeypatch.setattr(subprocess, "check_call", lambda *a, **k: started.append(a))
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(a))
    refused(encoded("EPS"))
    with pytest.raises(ImageError), opened(encoded("EPS"), "a.jpg"):
        pass
    assert not started


HUGE = {
    "PNG": png(20_000, 8),
    "JPEG": encoded("JPEG").replace(b"\x08\x00\x06\x00\x08\x03", b"\x08\xff\xff\xff\xff\x03", 1),
    "GIF": b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\x02\0;",
    "BMP": encoded("BMP")[:18] + struct.pack("<ii", 30_000, 30_000) + encoded("BMP")[26:],
    "PPM": b"P6 60000 60000 255\n",
}


@pytest.mark.parametrize("form", HUGE)
def test_a_few_bytes_that_claim_to_be_gigapixels(form):
    refused(HUGE[form], "a.jpg: the image is too large to decode safely")


def test_limits_are_exact(monkeypatch, tmp_path):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 48)
    assert decode(encoded("PNG")).size == (8, 6)
    refused(encoded("PNG", (7, 7)), "7 x 7 pixels")
    path = tmp_path / "a.png"
    path.write_bytes(encoded("PNG"))
    monkeypatch.setattr(decoding, "MAX_BYTES", path.stat().st_size)
    assert decode(path).size == (8, 6)
    with path.open("ab") as file:
        file.write(b"\0")
    refused(path, f"{path.stat().st_size} bytes, more than")


# Prints the outcome of decoding the file at `path`.
_DECODE = """
try:
    result = decode(path).size[0]
except ImageError as error:
    result = str(error)
"""


def outcome(path: Path) -> tuple[object, float]:
    """Width or error of decoding a file in another process, and the MiB that it took."""
    setup = f"from negclip_jax.data.images import decode, ImageError; path = {str(path)!r}"
    result, before, after = child.measured(setup, _DECODE, limit_gib=4)
    return result, after - before


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "iCCP"])
def test_texts_and_profiles_that_unpack_to_gigabytes(kind, tmp_path):
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(2**20)) for _ in range(128)) + packer.flush()
    head = b"a\0\1\0\0\0" if kind == "iTXt" else b"a\0\0"
    chunks = [chunk(kind.encode(), head + bomb)] * 8
    (tmp_path / "a.png").write_bytes(png(1, 8, *chunks, data=zlib.compress(b"\0\xff")))
    assert (tmp_path / "a.png").stat().st_size < 1_100_000
    result, mib = outcome(tmp_path / "a.png")
    assert result == 1 or "the image is damaged" in result
    assert mib < 200


def grey_16_bits(path: Path) -> None:
    packer = zlib.compressobj(1)
    row = bytes(20_001)
    data = b"".join(packer.compress(row) for _ in range(10_000)) + packer.flush()
    path.write_bytes(png(10_000, 16, data=data))


def lossless_webp(path: Path) -> None:
    """34 bytes: one colour."""
    path.write_bytes(
        bytes.fromhex("524946461a000000574542505650384c0d0000002f0fe7c319071011118888fe0700")
    )


@pytest.mark.slow
@pytest.mark.parametrize("write", [grey_16_bits, lossless_webp])
def test_a_hundred_megapixels_are_decoded_in_less_than_1700_mb(write, tmp_path):
    """The worst two of all formats, and the one that went through 64-bit numbers."""
    write(tmp_path / "image")
    assert (tmp_path / "image").stat().st_size < 1_000_000
    result, mib = outcome(tmp_path / "image")
    assert result == 10_000 and 200 < mib < 1620


def test_more_than_a_hundred_megapixels_are_not_decoded(tmp_path):
    (tmp_path / "a.png").write_bytes(png(10_001, 1))
    result, mib = outcome(tmp_path / "a.png")
    assert "10001 x 10001 pixels, more than 100 million" in result and mib < 20


def test_pipes_devices_and_endless_files_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(
        ImageError, match=r"pipe\.jpg: the image cannot be read \(it is a device or"
    ):
        ImageDirectory(tmp_path).open("pipe.jpg")
    refused("/dev/zero", "a device or a pipe")
    with (tmp_path / "endless.jpg").open("wb") as file:
        file.truncate(2**40)
    refused(tmp_path / "endless.jpg", "1,099,511,627,776 bytes")


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_grey_is_converted_in_strips_as_it_would_be_whole(mode, monkeypatch):
    rng = np.random.default_rng(0)
    kinds = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
    values = (rng.random((37, 23)) * 70_000 - (0 if mode == "I;16" else 500)).astype(kinds[mode])
    whole = decoding._grey_to_8_bits(values, mode)
    monkeypatch.setattr(decoding, "_STRIP", 50)
    np.testing.assert_array_equal(decoding._grey_to_8_bits(values, mode), whole)


def test_turned_as_exif_says_and_not_where_it_is_damaged():
    image = Image.new("RGB", (8, 6))
    assert decoding.is_upright(image) and decoding.upright(image) is image
    image.getexif()[0x0112] = 6
    assert not decoding.is_upright(image) and decoding.upright(image).size == (6, 8)
    broken = encoded("JPEG", exif=b"Exif\0\0MM\0*" + b"\xff" * 12)
    with opened(broken, "a.jpg") as damaged:
        assert decoding.upright(damaged).size == (8, 6)
