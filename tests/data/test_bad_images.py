"""Images that cannot be read: named once, replaced or left out by rule, too many stop the run."""

import dataclasses
import logging

import numpy as np
import pytest
from tiny_batches import BATCH, assert_same, batches

from negclip_jax.common.decoding import ImageError
from negclip_jax.common.errors import InputError
from negclip_jax.data.examples import tokenize_pairs
from negclip_jax.data.images import ImageDirectory
from negclip_jax.data.loader import CachedFeatures
from negclip_jax.data.packing import Packing


class BrokenImages(ImageDirectory):
    """The images of a directory, some of which cannot be read."""

    def __init__(self, root, broken: frozenset[str]):
        super().__init__(root)
        self.broken = broken

    def open(self, name):
        if name in self.broken:
            raise ImageError(f"{name}: the image is damaged or cut short (for the test).")
        return super().open(name)


@pytest.fixture
def broken(tiny_pairs):
    return BrokenImages(tiny_pairs / "images", frozenset({"003.png", "004.png", "021.png"}))


@pytest.fixture(scope="module")
def whole(make_loader) -> list[dict]:
    """Fifteen batches, more than two epochs, loaded by threads."""
    return batches(make_loader(), 0, 15)


def test_a_bad_image_is_replaced_by_the_next_readable_pair(make_loader, broken, whole, caplog):
    loader = make_loader(images=broken, max_bad_images=0.1)
    loaded = batches(loader, 0, 12)
    replaced = 0
    for step, batch in enumerate(loaded):
        for row, (index, caption, _) in enumerate(zip(*loader.pairs_at(step), strict=True)):
            texts = batch["text"][2 * row : 2 * row + 2]
            # Captions 6 and 7 belong to image 3, 8 and 9 to image 4, 42 and 43 to image 21.
            if index in (6, 7, 8, 9, 42, 43):
                index = 10 if index < 10 else 44
                replaced += 1
                clean = loader.load(index)
                assert (clean["pair"], clean["bad"]) == (index, -1)
                np.testing.assert_array_equal(batch["image"][row], clean["image"])
                shown = loader.examples.shown(np.array([index]), np.array([caption]), None)
                expected = loader.examples.tokens.padded(shown.index_BxM[0], 16)
                np.testing.assert_array_equal(texts, expected)
                np.testing.assert_array_equal(batch["truth"][row], shown.truth_BxM[0])
            else:
                np.testing.assert_array_equal(batch["image"][row], whole[step]["image"][row])
                expected = whole[step]["text"][2 * row : 2 * row + 2]
                np.testing.assert_array_equal(texts, expected)
    assert replaced >= 6
    named = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(named) == 3
    for name in broken.broken:
        assert sum(f"{name}: the image is damaged" in message for message in named) == 1
    assert "the next readable pair takes its place" in named[0]
    # Another pass over the data says nothing new.
    batches(loader, 12, 18)
    assert sum(r.levelno == logging.WARNING for r in caplog.records) == 3
    # Nor does who loads it change what is loaded.
    assert_same(batches(make_loader(images=broken, max_bad_images=0.1, workers=1), 0, 12), loaded)


@pytest.mark.parametrize("shuffle", [True, False])
def test_cached_features_belong_to_the_same_pairs(make_loader, broken, caplog, shuffle):
    """Also where an image cannot be read: the same pair takes its place, or it is masked."""
    decoding = make_loader(images=broken, max_bad_images=0.1, shuffle=shuffle)
    names = decoding.examples.images
    unreadable = np.array([name in broken.broken for name in names])
    assert unreadable.sum() == 3
    numbers = np.where(unreadable, np.nan, np.arange(40))
    features = np.repeat(numbers[:, None], 2, axis=1).astype(np.float32)
    cached = dataclasses.replace(decoding, cached=CachedFeatures(features, unreadable))
    pixels = {
        i: decoding.preprocess.uint8(broken.open(names[i])) for i in np.flatnonzero(~unreadable)
    }
    masked = 0
    for ours, theirs in zip(cached.batches(0, 7), decoding.batches(0, 7), strict=True):
        feature, image = ours.pop("feature"), theirs.pop("image")
        assert feature.dtype == np.float32 and np.isfinite(feature).all()
        assert_same([ours], [theirs])
        for row in np.flatnonzero(ours.get("mask", np.ones(BATCH, bool))):
            np.testing.assert_array_equal(image[row], pixels[int(feature[row, 0])])
        masked += 0 if shuffle else int((~ours["mask"]).sum())
    assert masked == (0 if shuffle else 10)  # six pairs of three images, and four of padding
    named = [r.getMessage() for r in caplog.records if "the image is damaged" in r.getMessage()]
    assert len(named) == 6, "each of both loaders names each image once"


@pytest.fixture
def uneven(pairs, tokenizer, make_loader, broken):
    """Function of arguments to a packing loader of captions of very different lengths."""
    rng = np.random.default_rng(3)
    changed = [
        dataclasses.replace(
            pair,
            caption="a" * rng.integers(1, 22),
            negated="b" * rng.integers(1, 22),
            foils=("c" * rng.integers(1, 22),),
        )
        for pair in pairs
    ]
    names = sorted({pair.image for pair in pairs})
    examples = tokenize_pairs(changed, names, tokenizer, caption_mode="mix", foils=1)
    packing = Packing(
        per_shard=BATCH, row_length=24, max_captions_per_row=12
    )  # two shards, no row to spare

    def make(**arguments):
        settings = {"images": broken, "max_bad_images": 0.1, "packing": packing}
        return make_loader(examples=examples, **(settings | arguments))

    return make


def planned_room(loader, step: int) -> np.ndarray:
    pairs, choice, bits = loader.pairs_at(step)
    return loader.examples.reserved_of(pairs, choice, loader.examples.shown(pairs, choice, bits))


@pytest.mark.parametrize("shuffle", [True, False])
def test_processes_agree_on_shapes_though_one_alone_meets_a_bad_image(uneven, shuffle):
    """What replaces a pair never needs more rows than all planned for it."""
    loader = uneven(shuffle=shuffle)
    whole = batches(loader, 0, 7)
    shares = [batches(loader, 0, 7, rows) for rows in np.split(np.arange(BATCH), 2)]
    for batch, *parts in zip(whole, *shares, strict=True):
        for name, expected in batch["text"].items():
            joined = np.concatenate([part["text"][name] for part in parts])
            np.testing.assert_array_equal(joined, expected, err_msg=name)
    planned = [planned_room(loader, step).ravel() for step in range(7)]
    rows = [len(batch["text"]["ids"]) // 2 for batch in whole]
    assert rows == [loader.packing.rows_needed(room) for room in planned]


def test_a_longer_pair_is_passed_over(uneven):
    loader = uneven()
    every = np.arange(len(loader.examples))
    sizes = loader.examples.lengths_of(every)
    room = loader.examples.reserved_lengths_of(every)
    following = {6: 10, 7: 10, 8: 10, 9: 10, 42: 44, 43: 44}  # the next readable pair
    chosen = {pair: int(loader.load(pair)["pair"]) for pair in following}
    assert all((sizes[new] <= room[old]).all() for old, new in chosen.items())
    assert any((sizes[new] > room[old]).any() for old, new in following.items())
    assert chosen != following


def test_where_no_pair_fits_the_run_stops(uneven, broken):
    loader = uneven()
    every = np.arange(len(loader.examples))
    room = loader.examples.reserved_lengths_of(every)
    fits_all = (loader.examples.lengths_of(every)[:, None] <= room[None]).all(axis=2)
    images = loader.examples.image_of[fits_all.any(axis=1)]
    broken.broken = frozenset(loader.examples.images[i] for i in images)
    with pytest.raises(InputError, match="no pair with short captions is left to take the place"):
        batches(uneven(max_bad_images=1.0), 0, 6)


def test_too_many_bad_images_stop_the_run(make_loader, broken):
    loader = make_loader(images=broken, max_bad_images=0.05)  # two of forty
    message = r"3 images could not be read, more than the 2 that data\.max_bad_images=0\.05 allows"
    with pytest.raises(InputError, match=message + r"; the last: 0\d\d\.png: the image is damaged"):
        batches(loader, 0, 6)


def test_no_readable_image_at_all_stops_the_run(make_loader, tiny_pairs):
    names = frozenset(f"{i:03d}.png" for i in range(40))
    images = BrokenImages(tiny_pairs / "images", names)
    with pytest.raises(InputError, match=r"1 images could not be read, more than the 0 that"):
        batches(make_loader(images=images), 0, 1)


def test_validation_leaves_bad_images_out(make_loader, broken, caplog):
    loader = make_loader("negated", images=broken, shuffle=False, max_bad_images=0.1)
    masks = np.concatenate([batch["mask"] for batch in loader.batches(0, 7)])
    left_out = np.flatnonzero(~masks[:80]).tolist()
    assert left_out == [6, 7, 8, 9, 42, 43]
    assert caplog.text.count("left out") == 3
    list(loader.batches(0, 7))  # the next evaluation
    assert caplog.text.count("left out") == 3


def test_kept_pixels_change_nothing(make_loader, broken, caplog):
    bad = {"images": broken, "max_bad_images": 0.1}
    kept = make_loader(**bad, kept_pixels_mib=64)
    assert_same(batches(kept, 0, 12), batches(make_loader(**bad), 0, 12))
    assert sum("of bad ones" in r.message for r in caplog.records) == 2 * 3  # each loader names all
    masked = make_loader(**bad, kept_pixels_mib=64, shuffle=False)
    steps = masked.steps_per_epoch
    plain = batches(make_loader(**bad, shuffle=False), 0, steps)
    assert_same(batches(masked, 0, 2 * steps)[:steps], plain)
