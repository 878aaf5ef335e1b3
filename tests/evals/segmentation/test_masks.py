"""Polygons and run-length codes to pixels, against brute force, COCO's own numbers and torch."""

import json

import numpy as np
import pytest
import torch

from evals.segmentation import masks

# pycocotools 2.0.11, mask.encode of `SHAPE`.
COMPRESSED = (
    "i01T10000000ZO`0G@9`0G@9`0G@9`0G@9`0G@9`0G@9`0G@9`0G@9`0G@9`0G@9`0G@9`0G@9`0G@9`0G@9`0G@9`0G@9"
    "`0G@9`0G@9`0G@9`0G@9`0G@9`0G@9`0G@9`0G@9`0G@o00000000000000000000Ac0L0000000?]O40000000WO"
)
SHAPE = np.zeros((37, 50), bool)
SHAPE[3:20, 5:30] = SHAPE[10:30, 40:45] = SHAPE[25] = True


def inside(x: float, y: float, corners: list[tuple[float, float]]) -> bool:
    """Even-odd rule for one point, by a ray to the right."""
    odd = False
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
            odd = not odd
    return odd


@pytest.mark.parametrize("seed", range(6))
def test_a_polygon_holds_the_pixels_whose_centres_it_encloses(seed):
    rng = np.random.default_rng(seed)
    corners = [(float(x), float(y)) for x, y in rng.uniform(-4, 24, (5 + seed, 2))]
    wanted = [[inside(c + 0.5, r + 0.5, corners) for c in range(20)] for r in range(16)]
    found = masks.mask_of([np.ravel(corners).tolist()], 16, 20)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(masks.mask_of([corners], 16, 20), wanted)


def test_a_rectangle_of_whole_pixels_is_exact_and_polygons_are_joined():
    found = masks.mask_of([[2, 1, 5, 1, 5, 4, 2, 4], [[4, 3], [8, 3], [8, 6], [4, 6]]], 7, 9)
    wanted = np.zeros((7, 9), bool)
    wanted[1:4, 2:5] = wanted[3:6, 4:8] = True
    np.testing.assert_array_equal(found, wanted)


def test_run_length_codes_are_those_of_coco():
    np.testing.assert_array_equal(
        masks.mask_of({"size": [37, 50], "counts": COMPRESSED}, 37, 50), SHAPE
    )
    runs = masks.decompressed(COMPRESSED.encode())
    changes = np.flatnonzero(np.diff(SHAPE.T.ravel())) + 1
    assert runs == np.diff([0, *changes, SHAPE.size]).tolist()
    np.testing.assert_array_equal(masks.mask_of({"size": [37, 50], "counts": runs}, 37, 50), SHAPE)


def test_real_annotations_have_the_box_and_the_area_that_coco_states(shared_data):
    content = json.loads((shared_data / "coco" / "instances.json").read_text())
    size = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    crowds = [a for a in content["annotations"] if a["iscrowd"]]
    assert len(crowds) > 20
    for one in crowds:
        mask = masks.mask_of(one["segmentation"], *size[one["image_id"]])
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        box = [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
        np.testing.assert_allclose(one["bbox"], box, atol=1)
    large = [a for a in content["annotations"] if a["area"] > 2000 and not a["iscrowd"]][:100]
    areas = [masks.mask_of(a["segmentation"], *size[a["image_id"]]).sum() for a in large]
    np.testing.assert_allclose(areas, [a["area"] for a in large], rtol=0.03)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "neither polygons nor"),
        ("abc", "neither polygons nor"),
        ([[1, 2, 3]], "not pairs of numbers"),
        ([[1, 2, float("nan"), 4]], "not pairs of numbers"),
        ([[1, 2, 1e300, -1e300]], "not pairs of numbers"),
        ([["a", "b"]], "not a list of numbers"),
        ({"size": [3, 4], "counts": [12]}, r"of size \[3, 4\], not \[4, 4\]"),
        ({"size": [4, 4], "counts": [3, 4]}, "do not add up to 16"),
        ({"size": [4, 4], "counts": [20, -4]}, "do not add up to 16"),
        ({"size": [4, 4], "counts": [2**62] * 4 + [16]}, "do not add up to 16"),
        ({"size": [4, 4], "counts": "o" * 100_000}, "do not add up|no whole numbers|cut short"),
        ({"size": [4, 4], "counts": None}, "no whole numbers|do not add up"),
        ({"size": [4, 4], "counts": "a\x01"}, "a character that is none of it"),
        ({"size": [4, 4], "counts": "P"}, "cut short"),
    ],
)
def test_what_is_no_segmentation(segmentation, message):
    with pytest.raises(ValueError, match=message):
        masks.mask_of(segmentation, 4, 4)


@pytest.mark.parametrize("shape", [(37, 50), (480, 640), (9, 7)])
def test_resizing_is_torchs_nearest(shape):
    mask = np.random.default_rng(0).random(shape) < 0.5
    wanted = torch.nn.functional.interpolate(torch.tensor(mask)[None, None].float(), (64, 64))
    np.testing.assert_array_equal(masks.resized(mask, 64), wanted[0, 0].numpy() > 0)


def test_an_outline_is_what_erosion_takes_away():
    mask = np.zeros((9, 9), bool)
    mask[1:8, 1:8] = True
    rim = masks.outline(mask)
    assert rim.sum() == 24 and not rim[2:7, 2:7].any()
    assert masks.outline(mask, 2).sum() == 40
    assert masks.outline(np.ones((4, 4), bool)).sum() == 12  # the picture's edge is a border too
