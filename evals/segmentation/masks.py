"""Masks of annotated objects: polygons and COCO's run-length codes to pixels, and back to outlines.

A pixel belongs to a polygon if its centre lies inside (even-odd rule). COCO's own C code and
scikit-image, which CLIPSeg's evaluation uses, differ from that on the border alone, each in
another way. Run-length codes are decoded exactly as by pycocotools (`common/maskApi.c`).
"""

from typing import Any

import numpy as np
from scipy import ndimage

_FAR = 1e6  # pixels: no photo is as large


def mask_of(segmentation: Any, height: int, width: int) -> np.ndarray:
    """A COCO `segmentation` as bool `[height, width]`, of the photo in pixels.

    Polygons, each a flat list x0, y0, x1, y1, ... or a list of points (x, y), of which the union is
    meant; or a run-length code `{"size": [height, width], "counts": ...}`, whose counts are a list
    of runs or COCO's compressed string. Raises ValueError for anything else.
    """
    if isinstance(segmentation, dict):
        return _decoded(segmentation, height, width)
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError("a segmentation is neither polygons nor a run-length code")
    mask = np.zeros((height, width), bool)
    centres = np.arange(height) + 0.5
    for polygon in segmentation:
        try:
            points = np.asarray(polygon, np.float64)
        except (TypeError, ValueError):
            raise ValueError("a polygon is not a list of numbers") from None
        if points.ndim == 1 and points.size % 2 == 0:
            points = points.reshape(-1, 2)
        if points.ndim != 2 or points.shape[1] != 2 or not (np.abs(points) < _FAR).all():
            raise ValueError("a polygon is not pairs of numbers x, y of a photo's size")
        # A pixel is inside if the number of edges to the left of its centre is odd.
        crossings = np.zeros((height, width + 1), np.int32)
        for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
            low, high = min(y0, y1), max(y0, y1)
            rows = np.flatnonzero((low <= centres) & (centres < high))  # a shared corner: once
            if len(rows):
                x = x0 + (centres[rows] - y0) * (x1 - x0) / (y1 - y0)
                first = np.clip(np.ceil(x - 0.5), 0, width).astype(int)
                crossings[rows, first] += 1
        mask |= np.cumsum(crossings, axis=1)[:, :width] % 2 == 1
    return mask


def resized(mask: np.ndarray, size: int) -> np.ndarray:
    """A mask `[H, W]` with both sides `size`, by torch's nearest neighbour: floor(i x in / out)."""
    rows, columns = (np.arange(size) * n // size for n in mask.shape)
    return mask[rows[:, None], columns]


def outline(mask: np.ndarray, thickness: int = 1) -> np.ndarray:
    """The pixels of a mask that are at most `thickness` from its border or the picture's."""
    return mask & ~ndimage.binary_erosion(mask, iterations=thickness)


def _decoded(code: dict, height: int, width: int) -> np.ndarray:
    """A run-length code: alternating runs of 0 and 1 down the columns."""
    counts = code.get("counts")
    if isinstance(counts, str | bytes):
        counts = decompressed(counts)
    if code.get("size") != [height, width]:
        raise ValueError(f"a run-length code is of size {code.get('size')}, not {[height, width]}")
    try:
        runs = np.asarray(counts, np.int64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("a run-length code's counts are no whole numbers") from None
    pixels = height * width
    if runs.ndim != 1 or (runs < 0).any() or (runs > pixels).any() or runs.sum() != pixels:
        raise ValueError(f"the runs of a run-length code do not add up to {pixels} pixels")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def decompressed(counts: str | bytes) -> list[int]:
    """COCO's compressed counts as a list of runs.

    Six bits a character (from "0" on), five of them digits of a number in two's complement, least
    significant first, the sixth saying that it goes on; from the third run on, differences to the
    run before the last. Raises ValueError for a string that is cut short or holds other characters.
    """
    text = counts.encode("latin-1", "replace") if isinstance(counts, str) else counts
    runs: list[int] = []
    value = shift = 0
    for character in text:
        digit = character - 48
        if not 0 <= digit < 64:
            raise ValueError("a compressed run-length code holds a character that is none of it")
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32 and shift < 60:
            continue
        if digit & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("a compressed run-length code is cut short")
    return runs
