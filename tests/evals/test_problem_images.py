"""The images of a problem: order, missing photos, several photos for one image."""

import numpy as np
from tiny_evals import AllThere, write_photos

from evals.images import DataRoots, ImageRef, ProblemImages

A, B, C = (ImageRef(f"{name}.jpg") for name in "abc")


def pair(ref: ImageRef) -> tuple[ImageRef, ImageRef]:
    stem = ref.path[0]
    return ImageRef(f"{stem}0.jpg"), ImageRef(f"{stem}1.jpg")


def test_one_photo_an_image(tmp_path):
    pictures = ProblemImages(AllThere((tmp_path,)), [B, A, B, C])
    assert pictures.refs == [B, A, C] and pictures.row(A) == pictures.shown(A) == 1
    encoded = np.eye(3, dtype=np.float32)
    assert pictures.features(encoded) is encoded


def test_crops_of_one_photo_are_images_of_their_own(tmp_path):
    crop = ImageRef("a.jpg", (0, 0, 5, 5))
    pictures = ProblemImages(AllThere((tmp_path,)), [A, crop])
    assert pictures.refs == [A, crop] and pictures.row(crop) == 1


def test_missing_photos(tmp_path):
    write_photos(tmp_path, ["b.jpg"])
    pictures = ProblemImages(DataRoots((tmp_path,)), [A, B, C, A])
    assert pictures.missing == ["a.jpg", "c.jpg"] and pictures.refs == [B]
    assert B in pictures and A not in pictures and pictures.row(B) == 0


def test_views_are_averaged(tmp_path):
    pictures = ProblemImages(AllThere((tmp_path,)), [B, A], pair)
    assert [ref.path for ref in pictures.refs] == ["b0.jpg", "b1.jpg", "a0.jpg", "a1.jpg"]
    assert (pictures.row(A), pictures.shown(A)) == (1, 2)
    encoded = np.array([[1, 0], [0, 1], [0, 1], [0, 1]], np.float32)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(pictures.features(encoded), [[half, half], [0, 1]], atol=1e-6)


def test_an_image_lacks_if_one_of_its_views_does(tmp_path):
    write_photos(tmp_path, ["a0.jpg", "a1.jpg", "b0.jpg"])
    pictures = ProblemImages(DataRoots((tmp_path,)), [A, B], pair)
    assert pictures.missing == ["b1.jpg"] and A in pictures and B not in pictures


def test_nothing_is_there(tmp_path):
    pictures = ProblemImages(DataRoots((tmp_path,)), [A])
    assert pictures.refs == [] and pictures.missing == ["a.jpg"]
