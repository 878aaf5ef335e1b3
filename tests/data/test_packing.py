"""Packed rows hold every token once, in its place, and no caption sees another."""

import numpy as np
import pytest

from negclip_jax.data.packing import Packing, Ragged, _assign


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    lengths = np.concatenate([rng.integers(2, 24, 500), [2, 40]])
    ids = rng.integers(1, 1000, lengths.sum()).astype(np.int32)
    return Ragged(ids, np.concatenate([[0], np.cumsum(lengths)]))


def unpack(packed, per_shard):
    """Captions in batch order, read back by position and segment alone."""
    shards = len(packed["slots"])
    rows = len(packed["ids"])
    slots_a_row = packed["ends"].shape[1]
    found = []
    for shard in range(shards):
        for slot in packed["slots"][shard]:
            row, segment = divmod(int(slot), slots_a_row)
            row += shard * rows // shards
            inside = packed["segments"][row] == segment + 1
            assert np.flatnonzero(inside)[-1] == packed["ends"][row, segment]
            assert (packed["positions"][row][inside] == np.arange(inside.sum())).all()
            found.append(packed["ids"][row][inside])
    assert len(found) == shards * per_shard
    return found


@pytest.mark.parametrize("shards", [1, 4])
def test_every_caption_is_found_again(texts, shards):
    captions = np.random.default_rng(1).permutation(len(texts))[:64]
    packing = Packing.suited_to(texts.lengths, 64, shards)
    packed = packing.pack(texts, captions)
    for caption, ids in zip(captions, unpack(packed, 64 // shards), strict=True):
        expected = texts.ids[texts.offsets[caption] : texts.offsets[caption + 1]]
        assert np.array_equal(ids, expected)
    assert {a.dtype for a in packed.values()} == {np.dtype("int32")}
    used = (packed["segments"] > 0).sum()
    assert used == texts.lengths[captions].sum(), "a token was lost or written twice"


def test_rows_are_as_declared_and_grow_in_steps(texts):
    packing = Packing(per_shard=8, row_length=48, max_captions_per_row=6, rows=3, row_step=4)
    short = np.flatnonzero(texts.lengths <= 8)[:8]
    long = np.flatnonzero(texts.lengths >= 20)[:8]
    assert packing.pack(texts, short)["ids"].shape == (3, 48)
    assert packing.pack(texts, long)["ids"].shape == (7, 48)
    assert packing.pack(texts, short, rows=5)["ids"].shape == (5, 48)
    assert packing.rows_needed(texts.lengths[long]) == 7


def test_room_alone_decides_the_shape_and_the_places(texts):
    """So that a caption can be exchanged for a shorter one where others know only the first."""
    packing = Packing(per_shard=8, row_length=48, max_captions_per_row=6, row_step=1)
    long = np.flatnonzero(texts.lengths >= 16)[:8]
    short = np.flatnonzero(texts.lengths <= 8)[:8]
    room = texts.lengths[long]
    planned, exchanged = packing.pack(texts, long), packing.pack(texts, short, room)
    assert planned["ids"].shape == exchanged["ids"].shape != packing.pack(texts, short)["ids"].shape
    np.testing.assert_array_equal(planned["slots"], exchanged["slots"])
    for caption, ids in zip(short, unpack(exchanged, 8), strict=True):
        expected = texts.ids[texts.offsets[caption] : texts.offsets[caption + 1]]
        np.testing.assert_array_equal(ids, expected)
    with pytest.raises(ValueError, match="longer than the room"):
        packing.pack(texts, long, texts.lengths[short])


def test_one_number_of_rows_serves_nearly_all_batches(texts):
    packing = Packing.suited_to(texts.lengths, 128, 1)
    rng = np.random.default_rng(2)
    shapes = [
        packing.pack(texts, rng.permutation(len(texts))[:128])["ids"].shape for _ in range(50)
    ]
    assert shapes.count((packing.rows, packing.row_length)) >= 48
    assert len(set(shapes)) <= 2


def test_slots_of_a_row_are_not_exceeded():
    texts = Ragged(np.ones(400, np.int32), np.arange(0, 401, 2))
    packing = Packing(per_shard=200, row_length=64, max_captions_per_row=4)
    packed = packing.pack(texts, np.arange(200))
    assert packed["segments"].max() == 4 and len(packed["ids"]) == 50


def test_caption_longer_than_a_row_is_refused(texts):
    with pytest.raises(ValueError, match="40 tokens in rows of 32"):
        Packing(per_shard=1, row_length=32, max_captions_per_row=2).pack(
            texts, np.array([len(texts) - 1])
        )


def test_padded_rows(texts):
    rows = texts.padded(np.array([3, 0]), 24)
    for row, caption in zip(rows, (3, 0), strict=True):
        length = texts.lengths[caption]
        assert np.array_equal(row[:length], texts.ids[texts.offsets[caption] :][:length])
        assert not row[length:].any()


def test_real_captions_cost_at_most_15_percent(shared_data):
    """Text compute on NegBench's negated captions, batch 512: rows over real tokens."""
    import ast
    import csv

    from negclip_jax.data.tokenizer import load_tokenizer

    file = "COCO_val_negated_retrieval_llama3.1_rephrased_affneg_true.csv"
    with open(shared_data / "benchmarks" / "negbench" / file, newline="") as handle:
        captions = [c for r in csv.DictReader(handle) for c in ast.literal_eval(r["captions"])]
    tokenizer = load_tokenizer(shared_data / "clip_tokenizer")
    real = Ragged(*tokenizer.encode_ragged(captions))
    packing = Packing.suited_to(real.lengths, 512, 1)
    order = np.random.default_rng(0).permutation(len(real))
    for batch in order[: 40 * 512].reshape(40, 512):
        cells = packing.pack(real, batch)["ids"].size
        assert cells <= 1.15 * real.lengths[batch].sum()


def test_a_caption_goes_where_least_room_is_left():
    """Best fit in decreasing length, told by a search over all rows."""
    rng = np.random.default_rng(0)
    for row_length in (77, 96, 300):
        lengths = rng.integers(3, 78, 200)
        packing = Packing(len(lengths), row_length, max_captions_per_row=5)
        row_of, number_of, column_of = _assign(lengths, packing)
        left, used = [], []
        for caption in np.argsort(-lengths, kind="stable").tolist():
            length = lengths[caption]
            fits = [r for r in range(len(left)) if left[r] >= length and used[r] < 5]
            least = min((left[r] for r in fits), default=None)
            assert (
                (row_of[caption] == len(left)) if least is None else least == left[row_of[caption]]
            )
            if least is None:
                left.append(row_length)
                used.append(0)
            row = row_of[caption]
            assert (number_of[caption], column_of[caption]) == (used[row], row_length - left[row])
            left[row] -= length
            used[row] += 1
