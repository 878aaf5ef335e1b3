"""Images: CLIP's pixels bit for bit, every colour mode, and a sentence for every bad file."""

import json
import os
import pickle
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from negclip_jax.common.decoding import ImageError
from negclip_jax.data.images import (
    CLIP_MEAN,
    CLIP_STD,
    ImageDirectory,
    Preprocessor,
    decode,
    to_rgb,
)
from negclip_jax.interop.config import settings_of

DATA = Path(
    os.environ.get("NEGCLIP_TEST_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data"
)


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    """Some 40 COCO photos, of as many different sizes as there are."""
    files = sorted((DATA / "coco" / "photos").glob("*/*.jpg"))
    if not files:
        pytest.skip(f"COCO photos are not at {DATA}/coco/photos (set NEGCLIP_TEST_DATA)")
    by_size = {Image.open(file).size: file for file in files}
    chosen = [by_size[size] for size in sorted(by_size)]
    return [Image.open(file).convert("RGB") for file in chosen[:: max(1, len(chosen) // 40)][:44]]


def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def openai_reference(image: Image.Image, n: int = 224) -> np.ndarray:
    """OpenAI's `_transform`: torchvision's Resize(n, BICUBIC) and CenterCrop(n), uint8."""
    w, h = image.size
    new = (n, int(n * h / w)) if w <= h else (int(n * w / h), n)
    image = image.resize(new, Image.BICUBIC)
    top, left = round((new[1] - n) / 2.0), round((new[0] - n) / 2.0)
    return np.array(image)[top : top + n, left : left + n]


def test_photos_equal_openai(photos):
    assert len({p.size for p in photos}) > 20
    for image in photos:
        assert (Preprocessor().uint8(image) == openai_reference(image)).all()


def test_photos_equal_transformers(photos):
    transformers = pytest.importorskip("transformers")
    pil = transformers.models.clip.image_processing_pil_clip.CLIPImageProcessorPil
    raw = pil(do_rescale=False, do_normalize=False)(photos, return_tensors="np")["pixel_values"]
    ours = Preprocessor(crop="transformers")
    assert all(
        (ours.uint8(image) == reference.transpose(1, 2, 0)).all()
        for image, reference in zip(photos, raw, strict=True)
    )
    floats = pil()(photos[:4], return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(ours(photos[:4]), floats, atol=1e-6)


def test_the_two_crops_differ_on_some_photos_only(photos):
    pairs = [(Preprocessor().uint8(p), Preprocessor(crop="transformers").uint8(p)) for p in photos]
    differ = sum((a != b).any() for a, b in pairs)
    assert 0 < differ < len(photos)


@pytest.mark.parametrize("width", range(224, 240))
def test_crop_offset_rule(width):
    # Column c of the image has value c, and nothing is resized.
    image = Image.fromarray(np.tile(np.arange(width, dtype=np.uint8)[None, :, None], (224, 1, 3)))
    assert Preprocessor().uint8(image)[0, 0, 0] == round((width - 224) / 2)
    assert Preprocessor(crop="transformers").uint8(image)[0, 0, 0] == (width - 224) // 2


def test_normalise_is_openais_arithmetic():
    pixels = noise(7, 5)
    torch_like = pixels.astype(np.float32) / np.float32(255)
    expected = (torch_like - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_STD, np.float32)
    result = Preprocessor().normalise(pixels)
    assert result.dtype == np.float32 and (result == expected).all()
    with pytest.raises(ImageError, match="float32"):
        Preprocessor().normalise(result)


def test_call_takes_images_paths_and_arrays(tmp_path):
    pre, array = Preprocessor(size=16, resize=20), noise(40, 30)
    image = Image.fromarray(array)
    image.save(tmp_path / "a.png")
    expected = pre.normalise(pre.uint8(image))[None]
    assert expected.shape == (1, 16, 16, 3) and expected.dtype == np.float32
    path = tmp_path / "a.png"
    for form in (image, str(path), path, array, [image], (array,), array[None], iter([path])):
        assert (pre(form) == expected).all()
    assert pre([image, array, path]).shape == (3, 16, 16, 3)
    assert pre([]).shape == (0, 16, 16, 3)
    assert pre(noise(40, 30, 1)).shape == (1, 16, 16, 3)


@pytest.mark.parametrize(
    "bad", [[None], [3], np.zeros((8, 8, 3), np.float32), np.zeros((8, 8, 2), np.uint8)]
)
def test_call_refuses_what_is_no_image(bad):
    with pytest.raises(ImageError, match="must be a PIL image, a path or a uint8 array"):
        Preprocessor()(bad)


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 1), (2, 3), (1, 146), (3, 1000)])
def test_thin_images(size):
    image = Image.fromarray(noise(*size))
    assert Preprocessor().uint8(image).shape == (224, 224, 3)


@pytest.mark.parametrize("size", [(4, 500), (500, 4), (3, 500), (301, 1000), (1, 1000)])
def test_bounded_resize_is_the_middle_of_the_whole(size, monkeypatch):
    smooth = Image.fromarray(noise(4, 3)).resize(size, Image.Resampling.BICUBIC)
    pre = Preprocessor(size=200, resize=224)
    whole = pre.uint8(smooth).astype(int)
    monkeypatch.setattr("negclip_jax.data.images._LONGEST_RESIZED", 100)
    assert abs(pre.uint8(smooth).astype(int) - whole).max() <= 2


def test_exif_orientation_is_a_choice(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    grey = Image.fromarray(noise(40, 20)).convert("L").resize((400, 200))
    grey.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    opened = ImageDirectory(tmp_path).open("turned.jpg")
    plain, turned = Preprocessor(), Preprocessor(exif=True)
    assert opened.mode == "RGB"
    assert (turned.uint8(opened) == plain.uint8(opened.rotate(-90, expand=True))).all()
    assert (turned.uint8(opened) != plain.uint8(opened)).any()

    Image.fromarray(np.arange(800, dtype=np.uint16).reshape(20, 40)).save(
        tmp_path / "deep.png", exif=exif
    )
    deep = ImageDirectory(tmp_path).open("deep.png")
    assert (turned.uint8(deep) == plain.uint8(deep.rotate(-90, expand=True))).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "RGBA", "LA"])
def test_modes_become_rgb_as_pillow_does(mode):
    image = Image.fromarray(noise(9, 7)).convert(mode)
    result = to_rgb(image)
    assert result.mode == "RGB"
    assert (np.asarray(result) == np.asarray(image.convert("RGB"))).all()


@pytest.mark.parametrize(("mode", "by_way_of"), [("RGBa", "RGBA"), ("La", "LA"), ("PA", "P")])
def test_modes_that_pillow_does_not_convert_directly(mode, by_way_of):
    image = Image.fromarray(noise(9, 7)).convert(by_way_of)
    assert (np.asarray(to_rgb(image.convert(mode))) == np.asarray(image.convert("RGB"))).all()


def test_alpha_is_dropped_not_composited():
    pixels = np.array([[[200, 100, 50, 0], [1, 2, 3, 128]]], np.uint8)
    assert np.asarray(to_rgb(Image.fromarray(pixels))).tolist() == [[[200, 100, 50], [1, 2, 3]]]


def test_palette_with_transparency_keeps_its_colours(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "p.png", transparency=bytes([0, 128]))
    with Image.open(tmp_path / "p.png") as opened:
        assert opened.mode == "P"
    assert np.asarray(decode(tmp_path / "p.png")).tolist() == [[[10, 20, 30], [40, 50, 60]]]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    values = np.array([[0, 128, 257, 32896, 65279, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"grey.{suffix}")
    red = np.asarray(decode(tmp_path / f"grey.{suffix}"))[..., 0]
    assert red.tolist() == [[0, 0, 1, 128, 254, 255]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 7, 255]], np.int32), [0, 7, 255]),
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255]),
        (np.array([[-10, 0, 10]], np.int32), [0, 128, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 7, 255]], np.float32), [0, 7, 255]),
        (np.array([[5e6, 5e6, 5e6]], np.float32), [0, 0, 0]),
        (np.array([[np.nan, 0.2, np.inf]], np.float32), [0, 51, 0]),
    ],
)
def test_grey_of_unstated_span(values, expected):
    assert np.asarray(to_rgb(Image.fromarray(values)))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_animated_image_gives_its_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = tmp_path / f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    with Image.open(path) as opened:
        assert opened.n_frames == 2
    assert (np.asarray(decode(path)) == [255, 0, 0]).all()


def encoded(suffix: str, width: int = 64, height: int = 48) -> bytes:
    buffer = BytesIO()
    Image.fromarray(noise(width, height)).save(buffer, suffix)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", ["jpeg", "png", "webp", "gif", "bmp", "tiff"])
def test_truncated_image_is_an_error_that_names_it(tmp_path, suffix):
    (tmp_path / "cut").write_bytes(encoded(suffix)[: len(encoded(suffix)) // 2])
    with pytest.raises(ImageError, match=r"cut: (the image is damaged or cut short|this is not)"):
        decode(tmp_path / "cut")


def test_unreadable_files_are_named_with_the_reason(tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "page.jpg").write_bytes(b"<html>404</html>")
    (tmp_path / "folder.jpg").mkdir()
    images = ImageDirectory(tmp_path)
    for name, reason in {
        "absent.jpg": "there is no such image file",
        "empty.jpg": "the image file is empty",
        "page.jpg": "not an image that Pillow can read",
        "folder.jpg": "cannot be read \\(Is a directory\\)",
        "page.jpg/a.jpg": "cannot be read \\(Not a directory\\)",
    }.items():
        with pytest.raises(ImageError, match=f"{name}: .*{reason}"):
            images.open(name)
    with pytest.raises(ImageError, match=r"^row 3: the image file is empty\.$"):
        decode(b"", "row 3")


def test_decompression_bomb_is_refused(tmp_path, monkeypatch):
    (tmp_path / "big.png").write_bytes(encoded("png"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match=r"big\.png: the image is too large to decode safely"):
        decode(tmp_path / "big.png")


def test_decode_takes_bytes():
    assert (np.asarray(decode(encoded("png"))) == noise(64, 48)).all()


@pytest.mark.parametrize("root", ["photos", "./photos/", "../here/photos"])
def test_a_relative_directory(root, tmp_path, monkeypatch):
    (tmp_path / "here" / "photos" / "a").mkdir(parents=True)
    Image.new("RGB", (4, 4), "red").save(tmp_path / "here" / "photos" / "a" / "1.JPG", "JPEG")
    monkeypatch.chdir(tmp_path / "here")
    images = ImageDirectory(root)
    for name in ("a/1.JPG", "a/1.jpg"):
        assert images.open(name).getpixel((0, 0))[0] > 250
        assert images.read(name).startswith(b"\xff\xd8")
        assert images.identity(name)
        assert images.missing([name]) == []


@pytest.fixture
def root(tmp_path) -> Path:
    for name in ("a.png", "sub/b.png", "sub/deep/c.png"):
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2)).save(tmp_path / "root" / name)
    Image.new("RGB", (3, 2)).save(tmp_path / "secret.png")
    return tmp_path / "root"


UNSAFE = ["../secret.png", "sub/../../secret.png", "/etc/passwd", "C:\\a.png", "C:/a.png", "..",
          "sub\\..\\a.png", "a.png\0", "", "."]  # fmt: skip


@pytest.mark.parametrize("name", UNSAFE)
def test_names_that_leave_the_directory_are_refused(root, name):
    with pytest.raises(ImageError, match="refused"):
        ImageDirectory(root).open(name)
    with pytest.raises(ImageError, match="refused"):
        ImageDirectory(root).missing([name])


def test_symbolic_links_may_not_leave_the_directory(root):
    (root / "inside.png").symlink_to("sub/b.png")
    (root / "outside.png").symlink_to(root.parent / "secret.png")
    (root / "up").symlink_to(root.parent, target_is_directory=True)
    root.with_name("root2").mkdir()
    (root / "sibling").symlink_to(root.with_name("root2"), target_is_directory=True)
    images = ImageDirectory(root)
    assert images.open("inside.png").size == (3, 2)
    for name in ("outside.png", "up/secret.png", "sibling/a.png"):
        with pytest.raises(ImageError, match="symbolic link leads out"):
            images.open(name)


def test_directory_that_is_itself_a_link(root, tmp_path):
    (tmp_path / "link").symlink_to(root, target_is_directory=True)
    assert ImageDirectory(tmp_path / "link").open("sub/b.png").mode == "RGB"


def test_missing_lists_each_directory_once(root, monkeypatch):
    (root / "broken.png").symlink_to("nowhere.png")
    scanned, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: scanned.append(path) or scandir(path))
    names = ["a.png", "sub/b.png", "sub/x.png", "no/y.png", "sub/x.png", "sub/deep/c.png", "sub",
             "broken.png", "a.png/z.png", "./a.png"]  # fmt: skip
    expected = ["sub/x.png", "no/y.png", "sub", "broken.png", "a.png/z.png"]
    assert ImageDirectory(root).missing(names) == expected
    assert len(scanned) == 5


OTHER_SPELLINGS = [
    ("caf\u00e9.jpg", "cafe\u0301.jpg"),  # composed in the file of pairs, decomposed on the disk
    ("cafe\u0301.jpg", "caf\u00e9.jpg"),
    ("photo.jpg", "photo.JPG"),
    ("photo.JPEG", "photo.jpeg"),
    ("caf\u00e9/a.jpg", "cafe\u0301/a.JPG"),
]


@pytest.mark.parametrize(("named", "on_disk"), OTHER_SPELLINGS)
def test_a_photo_is_found_under_another_spelling_of_its_name(root, named, on_disk):
    (root / on_disk).parent.mkdir(exist_ok=True)
    Image.new("RGB", (5, 4)).save(root / on_disk, "JPEG")
    images = ImageDirectory(root)
    assert images.missing([named]) == []
    assert images.open(named).size == (5, 4)
    assert images.read(named) == (root / on_disk).read_bytes()
    assert images.identity(named) == images.identity(on_disk) != []
    assert images.missing([f"other/{named}"]) == [f"other/{named}"]


def test_of_several_spellings_none_is_taken_but_the_exact_one(root):
    for number, name in enumerate(("photo.JPG", "photo.Jpg"), 5):
        Image.new("RGB", (number, 4)).save(root / name, "JPEG")
    images = ImageDirectory(root)
    assert images.missing(["photo.jpg", "photo.Jpg", "Photo.JPG"]) == ["photo.jpg", "Photo.JPG"]
    assert images.open("photo.Jpg").size == (6, 4)


@pytest.mark.parametrize("suffix", [".avif", ".jfif", ".jpe", ""])
def test_what_a_photo_is_called_does_not_matter(root, suffix):
    Image.new("RGB", (5, 4)).save(root / f"p{suffix}", "AVIF" if suffix == ".avif" else "JPEG")
    assert ImageDirectory(root).open(f"p{suffix}").size == (5, 4)


def test_directory_pickles_small(root):
    data = pickle.dumps(ImageDirectory(root))
    assert len(data) < 1000 and pickle.loads(data).open("a.png").size == (3, 2)


def test_directory_that_does_not_exist(tmp_path):
    with pytest.raises(ImageError, match="does not exist"):
        ImageDirectory(tmp_path / "no")


CLIP_336 = {
    "crop_size": {"height": 336, "width": 336},
    "size": {"shortest_edge": 336},
    "do_resize": True,
    "do_center_crop": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.1, 0.2, 0.3],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_processor_type": "CLIPImageProcessor",
}
EXPECTED_336 = Preprocessor(336, 336, "openai", (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))


def write(path: Path, content) -> None:
    path.write_text(json.dumps(content))


def test_settings_from_either_file(tmp_path):
    write(tmp_path / "preprocessor_config.json", CLIP_336)
    assert Preprocessor(**settings_of(tmp_path)) == EXPECTED_336
    write(tmp_path / "preprocessor_config.json", CLIP_336 | {"size": 336, "crop_size": 336})
    assert Preprocessor(**settings_of(tmp_path)) == EXPECTED_336
    # A processor_config.json from before transformers 5 has no such section.
    write(tmp_path / "processor_config.json", {"processor_class": "CLIPProcessor"})
    assert Preprocessor(**settings_of(tmp_path)) == EXPECTED_336
    write(tmp_path / "processor_config.json", {"image_processor": CLIP_336 | {"crop_size": 300}})
    assert Preprocessor(**settings_of(tmp_path)).size == 300


def test_settings_that_transformers_saves(tmp_path):
    pytest.importorskip("transformers").CLIPImageProcessor().save_pretrained(tmp_path)
    assert Preprocessor(**settings_of(tmp_path), crop="transformers") == Preprocessor(
        crop="transformers"
    )


def test_settings_where_there_is_no_file(tmp_path):
    assert settings_of(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resample": 2}, "not CLIP's \\(resample=2\\)"),
        ({"do_center_crop": False}, "do_center_crop=False"),
        ({"do_normalize": False, "do_resize": False}, "do_resize=False, do_normalize=False"),
        ({"rescale_factor": 1.0}, "rescale_factor=1.0"),
        ({"image_processor_type": "ViTImageProcessor"}, "ViTImageProcessor"),
        ({"size": {"height": 224, "width": 224}}, "size is {'height': 224, 'width': 224}"),
        ({"crop_size": {"height": 224, "width": 200}}, "crop_size is .*square"),
        ({"size": "224"}, "size is '224'"),
        ({"size": 200}, "size is 336 and resize 200"),
        ({"image_std": [0.1, 0.2, 0]}, "std must be above 0"),
        ({"image_mean": [0.1, 0.2]}, "one value for red, green and blue"),
        ({"image_mean": "abc"}, "one value for red, green and blue"),
    ],
)
def test_unsupported_settings_are_refused(tmp_path, change, message):
    write(tmp_path / "preprocessor_config.json", CLIP_336 | change)
    with pytest.raises(ImageError, match=message):
        Preprocessor(**settings_of(tmp_path))


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_broken_settings_file(tmp_path, content):
    (tmp_path / "preprocessor_config.json").write_text(content, encoding="latin-1")
    with pytest.raises(
        ImageError,
        match=r"preprocessor_config\.json (cannot|does not|is not|holds a value of type list)",
    ):
        Preprocessor(**settings_of(tmp_path))


def test_unknown_crop_is_refused():
    with pytest.raises(ImageError, match="crop is 'center'"):
        Preprocessor(crop="center")
