"""Batches are a pure function of seed, step and pairs, whoever loads them."""

import numpy as np
import pytest
from tiny_batches import BATCH, assert_same, batches

from negclip_jax.common.errors import InputError
from negclip_jax.data.images import ImageDirectory, Preprocessor
from negclip_jax.data.loader import CachedFeatures
from negclip_jax.data.packing import Packing


def shown_pairs(loader, steps) -> list[int]:
    return np.concatenate([loader.pairs_at(step)[0] for step in steps]).tolist()


@pytest.fixture(scope="module")
def whole(make_loader) -> list[dict]:
    """Fifteen batches, more than two epochs, loaded by threads."""
    return batches(make_loader(), 0, 15)


def test_shapes_and_types(whole):
    assert len(whole) == 15
    for batch in whole:
        assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
            "image": ((BATCH, 32, 32, 3), np.uint8),
            "text": ((2 * BATCH, 16), np.int32),  # each caption, then its foil
            "truth": ((BATCH, 2), np.int8),
            "holds_caption": ((BATCH, 2), np.bool_),
        }


def test_pixels_that_fit_are_decoded_once_and_stay_as_they_are(make_loader, whole, monkeypatch):
    opened = []
    read = ImageDirectory.open
    monkeypatch.setattr(
        ImageDirectory, "open", lambda self, name: opened.append(name) or read(self, name)
    )
    bytes_each, images = 32 * 32 * 3, len(make_loader().examples.images)
    needed = images * bytes_each / 2**20
    assert_same(batches(make_loader(kept_pixels_mib=needed), 0, 15), whole)
    assert len(set(opened)) == len(opened) == images
    opened.clear()
    assert_same(batches(make_loader(kept_pixels_mib=0.99 * needed), 0, 15), whole)
    assert len(opened) > 2 * images


def test_less_than_an_epoch_decodes_what_it_needs(make_loader, whole, monkeypatch):
    opened = []
    read = ImageDirectory.open
    monkeypatch.setattr(
        ImageDirectory, "open", lambda self, name: opened.append(name) or read(self, name)
    )
    assert_same(batches(make_loader(kept_pixels_mib=64), 0, 1), whole[:1])
    assert len(opened) == BATCH


def test_worker_processes_load_the_same_from_any_start(make_loader, whole):
    assert_same(batches(make_loader(workers=2), 4, 15), whole[4:])


@pytest.mark.parametrize("more", [{}, pytest.param({"workers": 1}, marks=pytest.mark.slow)])
def test_the_first_batch_may_be_every_batch(make_loader, more):
    (first,) = batches(make_loader(), 0, 1)
    repeated = batches(make_loader(repeats_first=True, **more), 5, 15)
    assert_same(repeated, [first] * 10)


@pytest.mark.parametrize("start", [1, 5, 6, 7, 14])
def test_any_start_gives_the_same_batches(make_loader, whole, start):
    assert_same(batches(make_loader(), start, 15), whole[start:])


def test_a_far_start_is_as_quick_as_a_near_one(make_loader):
    # 45 ms without the image; replaying ten million steps would take days.
    (batch,) = batches(make_loader(), 10_000_000, 10_000_001)
    assert batch["image"].shape[0] == BATCH


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_that_each_load_some_rows_make_up_the_batch(make_loader, whole, processes):
    shares = np.split(np.random.default_rng(0).permutation(BATCH), processes)
    parts = [batches(make_loader(), 3, 9, rows) for rows in shares]
    rows = np.concatenate(shares)
    for step in range(6):
        for name, expected in whole[3 + step].items():
            joined = np.concatenate([part[step][name] for part in parts])
            if name == "text":
                expected = expected.reshape(BATCH, 2, -1)[rows].reshape(2 * BATCH, -1)
            else:
                expected = expected[rows]
            np.testing.assert_array_equal(joined, expected)


def test_each_pair_once_an_epoch_in_an_order_of_its_own(make_loader):
    loader = make_loader(batch_size=16)  # divides 80
    assert loader.steps_per_epoch == 5
    orders = []
    for epoch in range(3):
        order = shown_pairs(loader, range(5 * epoch, 5 * epoch + 5))
        assert sorted(order) == list(range(80))
        orders.append(order)
    orders.append(shown_pairs(make_loader(seed=6, batch_size=16), [0]))
    assert len({tuple(order[:16]) for order in orders}) == 4


def test_an_incomplete_last_batch_is_dropped(make_loader):
    loader = make_loader()
    assert loader.steps_per_epoch == 6
    assert len(set(shown_pairs(loader, range(6)))) == 72


def test_the_order_is_pinned(make_loader):
    """The order of a run must outlive versions of NumPy and of this code."""
    loader = make_loader()
    first = shown_pairs(loader, [0])[:8]
    assert first == np.argsort(np.random.Philox(key=[5, 0]).random_raw(160)[:80])[:8].tolist()
    assert first == PINNED[0]
    assert shown_pairs(loader, [6])[:8] == PINNED[1]


PINNED = ([31, 21, 40, 50, 12, 49, 47, 9], [10, 62, 7, 44, 33, 50, 30, 27])


def test_rows_hold_what_their_index_says(make_loader, whole, pairs, tokenizer, tiny_pairs):
    loader = make_loader()
    images = ImageDirectory(tiny_pairs / "images")
    shown = set()
    for step in (0, 7):
        for row, (index, caption, _) in enumerate(zip(*loader.pairs_at(step), strict=True)):
            pair = pairs[index]
            pixels = Preprocessor(size=32, resize=32).uint8(images.open(pair.image))
            np.testing.assert_array_equal(whole[step]["image"][row], pixels)
            text = tokenizer([pair.caption if caption else pair.negated])[0]
            np.testing.assert_array_equal(whole[step]["text"][2 * row], text[:16])
            assert not text[16:].any()
            shown.add(int(caption))
            assert whole[step]["truth"][row].tolist() == [1, -1 if pair.foils else 0]
            if pair.foils:
                foil = tokenizer([pair.foils[0]])[0]
                np.testing.assert_array_equal(whole[step]["text"][2 * row + 1], foil[:16])
    assert shown == {0, 1}


@pytest.mark.parametrize(("captions", "share"), [("negated", 0), ("original", 0), ("mix", 0.25)])
def test_the_mix_shows_its_share_of_originals(make_loader, captions, share):
    loader = make_loader(captions, original_fraction=share)
    chosen = [loader.pairs_at(step)[1] for step in range(200)]
    assert abs(np.mean(chosen) - share) < 0.03


def test_rows_cut_to_a_multiple_of_8_encode_to_the_same_features(tiny_config, make_loader, pairs):
    import jax
    from flax import nnx

    from negclip_jax.models import clip

    model = clip.CLIP(tiny_config, rngs=nnx.Rngs(0))
    (batch,) = batches(make_loader("negated", foils=0), 0, 1)
    ids = batch["text"][:10]
    assert ids.shape == (10, 8) and tiny_config.text.context_length == 24
    padded = np.pad(ids, ((0, 0), (0, 16)))
    encode = jax.jit(model.encode_text)
    np.testing.assert_allclose(encode(ids), encode(padded), rtol=1e-5, atol=1e-6)


def test_validation_is_in_file_order_and_masks_its_padding(make_loader, pairs):
    loader = make_loader("negated", foils=0, shuffle=False)
    assert loader.steps_per_epoch == 7
    loaded = batches(loader, 0, 7)
    masks = np.concatenate([batch["mask"] for batch in loaded])
    assert masks.tolist() == [True] * 80 + [False] * 4
    texts = np.concatenate([batch["text"] for batch in loaded])[masks]
    np.testing.assert_array_equal(
        texts, loader.examples.tokens.padded(loader.examples.first_text, texts.shape[1])
    )
    assert all(batch["text"].any(axis=1).all() for batch in loaded), "padding needs an end token"


def test_a_batch_larger_than_the_data(make_loader):
    with pytest.raises(InputError, match=r"train\.batch_size=81 is larger than the 80 training"):
        make_loader(batch_size=81)
    (batch,) = batches(make_loader(batch_size=96, shuffle=False), 0, 1)  # validation pads
    assert batch["mask"].sum() == 80


def test_cached_features_from_any_start_and_in_shares(make_loader):
    features = np.arange(40, dtype=np.float32)[:, None] + np.zeros(3, np.float32)
    loader = make_loader(cached=CachedFeatures(features, np.zeros(40, bool)))
    loaded = batches(loader, 0, 15)
    for step, batch in enumerate(loaded):
        expected = loader.examples.image_of[loader.pairs_at(step)[0]]
        np.testing.assert_array_equal(batch["feature"][:, 0], expected)
    assert_same(batches(loader, 7, 15), loaded[7:])
    share = batches(loader, 3, 5, np.arange(4, 9))
    np.testing.assert_array_equal(share[1]["feature"], loaded[4]["feature"][4:9])
    np.testing.assert_array_equal(share[1]["text"], loaded[4]["text"][8:18])


def test_packed_batches_hold_the_texts_of_padded_ones(make_loader, whole):
    packing = Packing(
        per_shard=BATCH, row_length=24, max_captions_per_row=12
    )  # two shards of caption and foil
    loader = make_loader(packing=packing)
    loaded = batches(loader, 0, 15)
    for batch, padded in zip(loaded, whole, strict=True):
        text = batch["text"]
        assert text["ids"].shape[0] % 2 == 0 and text["slots"].shape == (2, BATCH)
        rows = len(text["ids"]) // 2
        for i, expected in enumerate(padded["text"]):
            row, slot = divmod(int(text["slots"].ravel()[i]), packing.max_captions_per_row)
            row += i // BATCH * rows
            ids = text["ids"][row][text["segments"][row] == slot + 1]
            np.testing.assert_array_equal(ids, expected[: len(ids)])
            assert not expected[len(ids) :].any()
        np.testing.assert_array_equal(batch["truth"], padded["truth"])
    # Two processes, one shard each, agree on the number of rows.
    shares = [batches(loader, 0, 15, rows) for rows in np.split(np.arange(BATCH), 2)]
    needed = set()
    for batch, *parts in zip(loaded, *shares, strict=True):
        for name, expected in batch["text"].items():
            joined = np.concatenate([part["text"][name] for part in parts])
            np.testing.assert_array_equal(joined, expected)
        for part in parts:
            needed.add(bool((part["text"]["segments"].any(axis=1)).all()))
    assert needed == {True, False}, "no shard has fewer rows than the other: proves nothing"


def test_what_grain_prints_of_the_source_is_short(make_loader):
    made = make_loader()
    source = made._read(0, 2, np.arange(BATCH), False)
    assert len(str(source)) + len(repr(made.examples)) < 1000
    assert len(repr(made)) < 200
