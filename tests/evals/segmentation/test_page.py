"""Overlays show photo, truth and mask; the phrases that differ most come first."""

import numpy as np
from PIL import Image

from evals.segmentation import page


def row(before: int, after: int, positives: int = 100) -> dict:
    counts = {"own": [before] * 49, "tuned": [after] * 49}
    return {"tp": counts, "fp": {"own": [0] * 49, "tuned": [0] * 49}, "positives": positives}


ROWS = {
    "a": row(50, 40),
    "b": row(10, 90),
    "c": row(90, 10),
    "d": row(30, 30),
    "e": row(1, 4),
    "f": row(5, 6),
}


def test_worst_losses_come_before_best_wins():
    assert page.choose(ROWS, "own", "tuned", 10) == [
        ("Worst losses", [("c", 0.9, 0.1), ("a", 0.5, 0.4)]),
        ("Best wins", [("b", 0.1, 0.9), ("e", 0.01, 0.04)]),
    ]
    assert page.choose(ROWS, "own", "tuned", 2) == [
        ("Worst losses", [("c", 0.9, 0.1)]),
        ("Best wins", [("b", 0.1, 0.9)]),
    ]
    assert page.choose({"d": ROWS["d"]}, "own", "tuned", 4) == []


def test_masks_of_all_models_have_one_colour(monkeypatch):
    """Two models with the same mask look the same."""
    mask = np.zeros((10, 10))
    mask[2:5] = 1
    drawn = {name: [mask] for name in ("own", "middle", "tuned")}
    look = Image.new("RGB", (60, 60), "white"), [mask > 0], drawn
    monkeypatch.setattr(page.scoring, "look", lambda *_: look)
    truth, first, last = page._shown(None, (0.1, 0.2), None, None)["pictures"]
    assert first["url"] == last["url"] != truth["url"]
    assert (first["place"], last["place"]) == (0, 2)


def test_an_overlay_tints_the_mask_and_outlines_the_truth():
    photo = Image.new("RGB", (40, 20), (100, 100, 100))
    truth, mask = np.zeros((80, 160), bool), np.zeros((10, 10), bool)
    truth[20:60, 80:140] = True  # [5:15, 20:35] of the photo
    mask[:, :3] = True  # [:, :12]
    found = np.asarray(page.overlay(photo, truth, mask, (200, 0, 0)))
    assert found[10, 5].tolist() == [155, 45, 45] and found[10, 15].tolist() == [100, 100, 100]
    assert found[5, 27].tolist() == [255, 255, 255]  # the rim
    assert found[7, 27].tolist() == [0, 0, 0]  # a dark line inside it, seen on bright photos
    assert found[10, 27].tolist() == [100, 100, 100]
    alone = np.asarray(page.overlay(photo, truth, None, (200, 0, 0)))
    assert alone[10, 5].tolist() == [100, 100, 100] and alone[5, 27].tolist() == [255, 255, 255]
