"""Small JPEG copies as data URLs."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from negclip_jax.common.page.thumbnails import file_jpeg, file_thumbnail, jpeg_url, thumbnail


def opened(url: str) -> Image.Image:
    head, data = url.split(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_the_longer_side_is_bounded_and_small_images_stay():
    image = Image.new("RGBA", (600, 300))
    assert opened(thumbnail(image)).size == (176, 88) and image.size == (600, 300)
    assert opened(thumbnail(image, 300)).size == (300, 150)
    assert opened(thumbnail(Image.new("L", (20, 10)))).size == (20, 10)


def test_a_file_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (400, 100)).save(tmp_path / "turned.jpg", exif=exif)
    assert opened(file_thumbnail(tmp_path / "turned.jpg", 160)).size == (40, 160)


def test_where_a_photo_was_taken_and_what_was_noted_is_left_out(tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "maker"
    exif.get_ifd(0x8825)[1] = "N"
    path = tmp_path / "a.jpg"
    Image.new("RGB", (40, 30)).save(path, exif=exif, comment=b"at home")
    assert Image.open(path).info["comment"] == b"at home" and Image.open(path).getexif()
    small = Image.open(io.BytesIO(file_jpeg(path, 20)))
    assert small.size == (20, 15) and not small.getexif() and "comment" not in small.info


@pytest.mark.parametrize("content", [None, b"", b"no image", b"GIF89a"])
def test_what_cannot_be_read_is_left_out(tmp_path, content):
    path = tmp_path / "1.jpg"
    if content is not None:
        path.write_bytes(content)
    assert file_thumbnail(path) == ""


def test_bytes_stay_as_they_are():
    data = np.random.default_rng(0).bytes(100)
    assert base64.b64decode(jpeg_url(data).partition(",")[2]) == data


def test_deep_grey_is_scaled_not_cut(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64)
    for kind in (np.uint16, np.int32, np.float32):
        Image.fromarray(ramp.astype(kind)).save(tmp_path / "a.tif")
        data = base64.b64decode(file_thumbnail(tmp_path / "a.tif").partition(",")[2])
        assert 126 < np.asarray(Image.open(io.BytesIO(data))).mean() < 129
