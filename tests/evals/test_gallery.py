"""Worst losses and best wins first, with the photos that belong to them."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from evals import report
from evals.images import DataRoots, ImageRef


def rows(margins, right) -> list[dict]:
    return [
        {"scores": [m, 0.0, -1.0], "answers": [0], "right": r, "predicted": []}
        for m, r in zip(margins, right, strict=True)
    ]


def test_margin_is_right_against_the_best_wrong_option():
    assert report.margin({"scores": [0.1, 0.5, 0.3], "answers": [1]}) == pytest.approx(0.2)
    assert report.margin({"scores": [0.9, 0.2, 0.3], "answers": [0, 1]}) == pytest.approx(-0.1)


def test_with_two_models_what_changed_most_comes_first():
    before = rows([0.3, 0.2, -0.1, -0.2, 0.5, -0.5], [1, 1, 0, 0, 1, 0])
    after = rows([-0.1, -0.9, 0.8, 0.1, 0.1, -0.9], [0, 0, 1, 1, 1, 0])
    (lost_title, lost), (won_title, won) = report.choose([before, after], size=10)
    assert lost_title.startswith("Lost") and won_title.startswith("Won")
    assert (lost, won) == ([1, 0], [2, 3])


def test_the_first_and_the_last_model_are_compared():
    before, middle, after = rows([0.3], [1]), rows([0.3], [1]), rows([-0.1], [0])
    assert report.choose([before, middle, after], 4)[0][1] == [0]


def test_with_one_model_its_worst_mistakes():
    found = rows([-0.1, -0.9, 0.8, 0.1], [0, 0, 1, 1])
    (_, wrong), (_, sure) = report.choose([found], size=4)
    assert (wrong, sure) == ([1, 0], [2, 3])


@pytest.mark.parametrize(("bad", "good", "shown"), [(9, 9, (3, 3)), (1, 9, (1, 5)), (9, 2, (4, 2))])
def test_one_kind_gives_its_room_to_the_other(bad, good, shown):
    found = rows([-1.0] * bad + [1.0] * good, [0] * bad + [1] * good)
    (_, wrong), (_, sure) = report.choose([found], size=6)
    assert (len(wrong), len(sure)) == shown


def test_photos_are_small_cropped_copies(tmp_path):
    pixels = np.zeros((300, 600, 3), np.uint8)
    pixels[:, 300:] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "1.png")
    roots = DataRoots((tmp_path,))

    def opened(ref):
        head, data = report._photo_url(roots, ref).split(",")
        assert head == "data:image/jpeg;base64"
        return Image.open(io.BytesIO(base64.b64decode(data)))

    assert opened(ImageRef("1.png")).size == (176, 88)
    cropped = opened(ImageRef("1.png", (300, 0, 100, 100)))
    assert cropped.size == (100, 100) and cropped.getpixel((50, 50))[0] > 250
    assert report._photo_url(roots, ImageRef("gone.png")) == ""
