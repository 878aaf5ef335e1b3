"""Captions in packed rows, in buckets and at one width: the same features, and what is measured."""

import json

import numpy as np
import pytest

from bench import layouts
from negclip_jax.data.packing import Ragged


@pytest.fixture(scope="module")
def captions() -> Ragged:
    """32 captions of 2 to 20 tokens, of which the last token is their length."""
    lengths = np.random.default_rng(0).integers(2, 21, 32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.full(offsets[-1], 99, np.int32)
    ids[offsets[1:] - 1] = lengths
    return Ragged(ids, offsets)


@pytest.mark.parametrize("buckets", [1, 2, 4])
def test_a_caption_is_whole_in_the_row_that_is_told(captions, buckets):
    widths = layouts.widths_of(captions.lengths.reshape(2, 16), buckets)
    assert widths == sorted(widths) and not any(width % 8 for width in widths)
    for batch in (np.arange(16), np.arange(16, 32)):
        parts, row = layouts.bucketed(captions, batch, widths)
        assert [part.shape for part in parts] == [(16 // buckets, width) for width in widths]
        last = np.concatenate([part.max(axis=1, where=part != 99, initial=0) for part in parts])
        assert (last[row] == captions.lengths[batch]).all()


def test_widths_are_no_larger_than_the_batches_need():
    lengths = np.array([[5, 9, 30, 7], [3, 17, 4, 2]])
    assert layouts.widths_of(lengths, 1) == [32]
    assert layouts.widths_of(lengths, 2) == [8, 32]  # 2 3 | 4 17 and 5 7 | 9 30
    assert layouts.widths_of(lengths, 4) == [8, 8, 16, 32]


@pytest.mark.slow
def test_layouts_give_the_same_features_and_packed_rows_are_fullest(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(layouts, "_TRIED", 3)
    file = tmp_path / "layouts.json"
    layouts.main(["--arch=tiny", "--batch-size=64", "--rounds=2", f"--json={file}"])
    found = json.loads(file.read_text())
    every = found["layouts"]
    assert list(every) == ["packed rows", "2 buckets", "4 buckets", "one width"]
    assert all(each["largest_difference"] < 1e-5 for each in every.values())
    places = {name: each["places"] for name, each in every.items()}
    assert found["tokens"] <= places["packed rows"] < places["4 buckets"]
    assert places["4 buckets"] < places["2 buckets"] < places["one width"]
    assert every["packed rows"]["ratios"] == [1, 1]
    assert all(min(each["seconds"]) > 0 for each in every.values())
    assert "| one width " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--batch-size=6", "--batch-size must be a positive multiple of 4"),
        ("--rounds=0", "--rounds must be"),
    ],
)
def test_bad_numbers_exit_with_one_line(flag, told):
    with pytest.raises(SystemExit, match=f"^bench.layouts: {told}"):
        layouts.main([flag])
