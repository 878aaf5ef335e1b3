"""Photos of every kind: sent, converted, or refused with a code."""

import io
import os
import struct
import unicodedata
import zlib

import numpy as np
import pytest
from fault_server import photo
from PIL import Image
from tiny_tars import member, write_tar

from data_gen.images import PhotoError, PhotoFolder, encode
from negclip_jax.common.decoding import decode
from negclip_jax.common.errors import InputError


def save(image: Image.Image, form: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def gradient(mode: str, size=(60, 40)) -> Image.Image:
    return Image.radial_gradient("L").resize(size).convert(mode)


def test_a_small_jpeg_is_sent_as_it_is():
    data = photo(0)
    sent = encode(data, "a.jpg", 672)
    assert sent.data == data and (sent.width, sent.height, sent.encoding) == (48, 40, "file")
    assert sent.data_url.startswith(b"data:image/jpeg;base64,/9j/")


def test_a_large_photo_is_made_smaller():
    sent = encode(save(gradient("RGB", (1600, 900)), "JPEG"), "a.jpg", 672)
    assert (sent.width, sent.height) == (1600, 900)
    assert Image.open(io.BytesIO(sent.data)).size == (672, 378)
    assert sent.encoding == "jpeg90-672"


@pytest.mark.parametrize(
    ("mode", "form"),
    [("CMYK", "JPEG"), ("L", "JPEG"), ("P", "PNG"), ("RGBA", "PNG"), ("LA", "PNG"), ("1", "PNG")],
)
def test_other_modes_become_rgb(mode, form):
    sent = Image.open(io.BytesIO(encode(save(gradient(mode), form), "a", 672).data))
    assert (sent.format, sent.mode, sent.size) == ("JPEG", "RGB", (60, 40))


def test_16_bits_are_scaled_and_transparency_is_white():
    deep = Image.fromarray(np.full((20, 20), 32768, np.uint16))
    middle = Image.open(io.BytesIO(encode(save(deep, "PNG"), "a", 672).data)).getpixel((5, 5))
    assert all(abs(value - 128) < 3 for value in middle)
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    sent = Image.open(io.BytesIO(encode(save(clear, "PNG"), "a", 672).data))
    assert min(sent.getpixel((5, 5))) > 250


def big_endian_tiff(values: np.ndarray) -> bytes:
    """Grey of 16 bits, most significant byte first: Pillow's mode I;16B."""
    data, (height, width) = values.astype(">u2").tobytes(), values.shape
    short = 1 << 16  # a SHORT stands in the upper half of its four bytes
    tags = [(256, 4, width), (257, 4, height), (258, 3, 16 * short), (259, 3, short)]
    tags += [(262, 3, short), (273, 4, 8), (277, 3, short), (278, 4, height), (279, 4, len(data))]
    entries = b"".join(struct.pack(">HHII", tag, kind, 1, v) for tag, kind, v in tags)
    head = b"MM\0*" + struct.pack(">I", 8 + len(data))
    return head + data + struct.pack(">H", len(tags)) + entries + bytes(4)


RAMP = np.linspace(0, 65535, 64 * 64).reshape(64, 64)
DEEP = {
    "I;16B": big_endian_tiff(RAMP),
    "I;16": save(Image.fromarray(RAMP.astype(np.uint16)), "TIFF"),
    "F, 0..1": save(Image.fromarray((RAMP / 65535).astype(np.float32)), "TIFF"),
    "F, 0..65535": save(Image.fromarray(RAMP.astype(np.float32)), "TIFF"),
    "I, 0..65535": save(Image.fromarray(RAMP.astype(np.int32)), "TIFF"),
}


@pytest.mark.parametrize("kind", DEEP)
def test_deep_grey_is_what_training_reads(kind):
    sent = np.asarray(Image.open(io.BytesIO(encode(DEEP[kind], "a.tif", 672).data)), int)
    read = np.asarray(decode(DEEP[kind]), int)
    assert abs(sent - read).max() < 6 and 126 < sent.mean() < 129


@pytest.mark.parametrize("form", ["MPO", "TIFF"])
def test_of_several_pictures_the_first_is_sent(form):
    small = gradient("RGB", (30, 20))
    data = save(gradient("RGB"), form, save_all=True, append_images=[small])
    sent = encode(data, "IMG_0001.jpg", 672)
    first = Image.open(io.BytesIO(sent.data))
    assert (sent.width, sent.height, first.size, first.format) == (60, 40, (60, 40), "JPEG")


def test_exif_rotation_is_applied():
    image = gradient("RGB")
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by a quarter
    sent = encode(save(image, "JPEG", exif=exif.tobytes()), "a.jpg", 672)
    assert (sent.width, sent.height) == (40, 60)
    assert Image.open(io.BytesIO(sent.data)).size == (40, 60)


def huge_png() -> bytes:
    """The header of a PNG with 20,000 x 20,000 pixels, and nothing more."""
    data = bytearray(save(Image.new("1", (1, 1)), "PNG"))
    data[16:24] = (20_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


UNUSABLE = {
    "no image": (b"no image", "image_undecodable"),
    "cut": (photo(0)[:300], "image_undecodable"),
    "huge": (huge_png(), "image_too_large"),
    "animated": (
        save(gradient("P"), "GIF", save_all=True, append_images=[Image.new("P", (60, 40))]),
        "image_animated",
    ),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_what_cannot_be_used(kind):
    data, code = UNUSABLE[kind]
    with pytest.raises(PhotoError) as caught:
        encode(data, "a.jpg", 672)
    assert caught.value.code == code and "a.jpg" in str(caught.value)


def test_a_folder_and_its_borders(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    (root / "a.jpg").write_bytes(photo(0))
    (root / "empty.jpg").write_bytes(b"")
    (tmp_path / "secret.jpg").write_bytes(photo(1))
    os.symlink(tmp_path / "secret.jpg", root / "link.jpg")
    folder = PhotoFolder(root, 672)
    assert folder.load("a.jpg").width == 48
    codes = {}
    for name in ("none.jpg", "empty.jpg", "link.jpg", "../secret.jpg", "/etc/hosts", "a\0b"):
        with pytest.raises(PhotoError) as caught:
            folder.load(name)
        codes[name] = caught.value.code
    assert codes.pop("none.jpg") == "image_missing"
    assert codes.pop("empty.jpg") == "image_empty"
    assert set(codes.values()) == {"image_outside"}
    with pytest.raises(InputError, match="does not exist; give --images=DIR"):
        PhotoFolder(tmp_path / "none", 672)


def test_names_in_another_spelling_and_formats_that_are_not_read(tmp_path):
    composed = "caf\u00e9.jpg"
    (tmp_path / unicodedata.normalize("NFD", composed)).write_bytes(photo(0))
    (tmp_path / "IMG.JPG").write_bytes(photo(1))
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    folder = PhotoFolder(tmp_path, 672)
    assert folder.load(composed).width == folder.load("IMG.jpg").width == 48
    with pytest.raises(
        PhotoError, match=r"phone.heic: .* not an image that Pillow can read"
    ) as bad:
        folder.load("phone.heic")
    assert bad.value.code == "image_undecodable"


def test_photos_in_tars(tmp_path):
    contents = {"a.jpg": photo(0), "b.jpg": photo(1), "bad.jpg": b"no photo", "empty.jpg": b""}
    write_tar(tmp_path / "0.tar", [member(name, data) for name, data in contents.items()])
    tars = PhotoFolder(f"wds:{tmp_path}/*.tar", 672)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(contents["a.jpg"])
    folder = PhotoFolder(tmp_path / "photos", 672)
    assert tars.load("a.jpg") == tars.load("0.tar/a.jpg") == folder.load("a.jpg")
    assert tars.thumbnail("a.jpg", 32) == folder.thumbnail("a.jpg", 32) != ""
    assert tars.thumbnail("none.jpg", 32) == folder.thumbnail("../x", 32) == ""
    assert tars.holds_any(["none.jpg", "b.jpg"]) and not tars.holds_any(["none.jpg", "../a.jpg"])
    assert folder.holds_any(["none.jpg", "a.jpg"]) and not folder.holds_any(["b.jpg"])
    codes = {}
    for name in ("none.jpg", "bad.jpg", "empty.jpg", "../a.jpg"):
        with pytest.raises(PhotoError) as caught:
            tars.load(name)
        codes[name] = caught.value.code
    assert list(codes.values()) == [
        "image_missing",
        "image_undecodable",
        "image_unreadable",
        "image_outside",
    ]
    by_url = PhotoFolder(f"wds:{tmp_path}/*.tar", 672, "url", "https://photos/")
    assert by_url.load("a.jpg").address == "https://photos/a.jpg"
    with pytest.raises(InputError, match=r"photos of wds:.* are no files"):
        PhotoFolder(f"wds:{tmp_path}/*.tar", 672, "file")
    with pytest.raises(InputError, match="match no file"):
        PhotoFolder("wds:none-*.tar", 672)
