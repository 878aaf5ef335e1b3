"""Every phrase is segmented once: counts are right, a stopped command continues."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from evals.images import DataRoots
from evals.segmentation import masks, scoring, sources
from evals.segmentation.clipseg import CLIPSeg
from negclip_jax.common.errors import InputError


class Towers(scoring.Towers):
    """Counts how many photos are looked at; stops at the one that `stop_at` says."""

    seen, stop_at = 0, None

    def masks(self, pixels, texts):
        type(self).seen += 1
        if type(self).seen == type(self).stop_at:
            raise KeyboardInterrupt
        return super().masks(pixels, texts)


@pytest.fixture(scope="module")
def clipseg(clipseg_directory):
    return CLIPSeg(str(clipseg_directory), size=32)


@pytest.fixture
def towers(clipseg, monkeypatch):
    monkeypatch.setattr(Towers, "seen", 0)
    monkeypatch.setattr(Towers, "stop_at", None)
    own = clipseg.embed(["cat", "dog"], clipseg.tokenizer(None))
    towers = {"own": own, "other": own + 0.5}
    by_text = {k: dict(zip(("cat", "dog"), v, strict=True)) for k, v in towers.items()}
    return Towers(clipseg, by_text)


@pytest.fixture
def roots(annotated):
    return DataRoots((annotated,))


def score(towers, sets, roots, out, **options):
    return scoring.score(towers, sets, roots, out, **({"allow_subset": False} | options))


def test_counts_are_those_of_masks_compared_by_hand(towers, roots, tmp_path):
    sets = sources.categories(roots, None)
    rows = score(towers, sets, roots, tmp_path / "out")["categories"]
    assert list(rows) == [phrase.item for phrase in sets[0].phrases]
    phrase = sets[0].phrases[1]
    image, (truth,), drawn = scoring.look(towers, [phrase], roots)
    small = masks.resized(truth, 32)
    above = drawn["other"][0] > np.float32(0.5)
    row = rows[phrase.item]
    assert row["tp"]["other"][24] == (above & small).sum()
    assert row["fp"]["other"][24] == (above & ~small).sum()
    assert row["positives"] == small.sum() > 0 and row["negated"] is False
    assert image.size == (61, 40) and drawn["own"].shape == (1, 32, 32)
    counts = scoring.counts(list(rows.values()), "other")
    assert counts.tp.shape == (6, 49) and counts.tp[1, 24] == row["tp"]["other"][24]


def test_vision_runs_once_for_a_photo_and_a_second_time_not_at_all(towers, roots, tmp_path):
    sets, out = sources.categories(roots, None), tmp_path / "out"
    first = score(towers, sets, roots, out)
    assert Towers.seen == 3  # photos, of two phrases and two towers each
    assert score(towers, sets, roots, out) == first
    assert Towers.seen == 3


def test_a_stopped_command_continues_and_a_torn_line_is_done_again(
    towers, roots, tmp_path, monkeypatch
):
    sets = sources.categories(roots, None)
    whole = score(towers, sets, roots, tmp_path / "whole")
    out = tmp_path / "out"
    monkeypatch.setattr(Towers, "stop_at", 6)
    with pytest.raises(KeyboardInterrupt):
        score(towers, sets, roots, out)
    path = out / scoring.ROWS
    assert len(path.read_text().splitlines()) == 4
    path.write_bytes(path.read_bytes()[:-9])
    monkeypatch.setattr(Towers, "stop_at", None)
    assert score(towers, sets, roots, out) == whole
    assert Towers.seen == 6 + 2  # the photo of the torn line, and the one that was stopped at
    assert len(path.read_text().splitlines()) == 6


def test_a_phrase_whose_mask_changed_is_segmented_again(towers, roots, tmp_path):
    (found,) = sources.categories(roots, None)
    before = score(towers, [found], roots, tmp_path / "out")
    changed = dataclasses.replace(found.phrases[0], segmentations=([[0, 0, 9, 0, 9, 9]],))
    other = dataclasses.replace(found, phrases=[changed, *found.phrases[1:]])
    after = score(towers, [other], roots, tmp_path / "out")
    assert Towers.seen == 4
    assert after["categories"]["1/cat"]["positives"] < before["categories"]["1/cat"]["positives"]


def test_photos_that_cannot_be_used_are_named_and_left_out_if_allowed(
    towers, roots, annotated, tmp_path
):
    sets = sources.categories(roots, None)
    (annotated / "photos" / "000000000001.png").write_bytes(b"no picture")
    turned = Image.new("RGB", (40, 62))
    turned.save(annotated / "photos" / "000000000002.png")
    with pytest.raises(InputError) as error:
        score(towers, sets, roots, tmp_path / "out")
    assert "2 photos cannot be used" in str(error.value) and "--allow-subset" in str(error.value)
    assert "000000000002.png is 40 x 62 pixels, annotated were 62 x 40" in str(error.value)
    rows = score(towers, sets, roots, tmp_path / "out", allow_subset=True)["categories"]
    assert list(rows) == ["3/cat", "3/dog"]


@pytest.mark.parametrize("size", [(0, 61), (-40, -61), (40_000_000, 61_000_000)])
def test_a_size_that_cannot_be_is_one_line(towers, roots, tmp_path, size):
    (found,) = sources.categories(roots, None)
    phrases = [dataclasses.replace(found.phrases[0], size=size)]
    with pytest.raises(InputError, match=r"phrase 1/cat: a photo of .* pixels cannot be"):
        score(towers, [dataclasses.replace(found, phrases=phrases)], roots, tmp_path / "out")


def test_a_segmentation_that_is_none_names_file_and_phrase(towers, roots, annotated, tmp_path):
    path = annotated / "instances.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"] = {"size": [40, 61], "counts": [5]}
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"instances\.json: phrase 1/cat \('cat'\): the runs of"):
        score(towers, sources.categories(roots, None), roots, tmp_path / "out")
