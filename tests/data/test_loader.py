"""Batches are a pure function of seed, step and pairs, whoever loads them."""

import dataclasses
import functools
import gc
import logging
import subprocess
import sys

import numpy as np
import pytest

from negclip_jax.data import loader as loading
from negclip_jax.data.examples import Examples, tokenize_pairs
from negclip_jax.data.images import ImageDirectory, ImageError, Preprocessor
from negclip_jax.data.loader import PairLoader
from negclip_jax.data.packing import Packing
from negclip_jax.data.pairs import read_pairs
from negclip_jax.data.tokens import Tokenizer
from negclip_jax.errors import InputError

BATCH = 12  # 80 pairs: 6 full batches an epoch and 8 pairs left over


@pytest.fixture(scope="module")
def pairs(tiny_pairs):
    return read_pairs(tiny_pairs / "pairs.json")


@pytest.fixture(scope="module")
def tokenizer(tiny_vocabulary):
    return Tokenizer.from_directory(tiny_vocabulary, context_length=24)


@pytest.fixture(scope="module")
def make_loader(tiny_pairs, pairs, tokenizer):
    """Function of PairLoader's arguments, and of those of tokenize_pairs."""

    @functools.cache
    def examples(captions: str, foils: int) -> Examples:
        images = sorted({pair.image for pair in pairs})
        return tokenize_pairs(pairs, images, tokenizer, captions=captions, foils=foils)

    def make(captions: str = "mix", foils: int = 1, **arguments) -> PairLoader:
        settings = {
            "examples": examples(captions, foils),
            "images": ImageDirectory(tiny_pairs / "images"),
            "preprocess": Preprocessor(size=32, resize=32),
            "batch_size": BATCH,
            "seed": 5,
            "threads": 2,
            "original_fraction": 0.5 if captions == "mix" else 0.0,
        }
        return PairLoader(**(settings | arguments))

    return make


def batches(loader, start, stop, rows=None) -> list[dict]:
    return list(loader.batches(start, stop, rows))


def shown_pairs(loader, steps) -> list[int]:
    return np.concatenate([loader.pairs_at(step)[0] for step in steps]).tolist()


def assert_same(a: list[dict], b: list[dict]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            assert x[name].dtype == y[name].dtype
            np.testing.assert_array_equal(x[name], y[name], err_msg=name)


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
            "foil_mask": ((BATCH, 1), np.bool_),
        }


def test_worker_processes_load_the_same_from_any_start(make_loader, whole):
    assert_same(batches(make_loader(workers=2), 4, 15), whole[4:])


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
        for row, (index, caption) in enumerate(zip(*loader.pairs_at(step), strict=True)):
            pair = pairs[index]
            pixels = Preprocessor(size=32, resize=32).uint8(images.open(pair.image))
            np.testing.assert_array_equal(whole[step]["image"][row], pixels)
            text = tokenizer([pair.caption if caption else pair.negated])[0]
            np.testing.assert_array_equal(whole[step]["text"][2 * row], text[:16])
            assert not text[16:].any()
            shown.add(int(caption))
            assert whole[step]["foil_mask"][row].tolist() == [bool(pair.foils)]
            if pair.foils:
                foil = tokenizer([pair.foils[0]])[0]
                np.testing.assert_array_equal(whole[step]["text"][2 * row + 1], foil[:16])
    assert shown == {0, 1}


@pytest.mark.parametrize(("captions", "share"), [("negated", 0), ("original", 0), ("mix", 0.25)])
def test_the_mix_shows_its_share_of_originals(make_loader, captions, share):
    loader = make_loader(captions, original_fraction=share)
    chosen = [loader.pairs_at(step)[1] for step in range(200)]
    assert abs(np.mean(chosen) - share) < 0.03


def test_captions_of_each_kind(make_loader, pairs, tokenizer):
    for captions, wanted in (
        ("negated", [[p.negated for p in pairs]]),
        ("original", [[p.caption for p in pairs]]),
        ("mix", [[p.negated for p in pairs], [p.caption for p in pairs]]),
    ):
        examples = make_loader(captions, foils=0).examples
        assert len(examples.captions) == len(wanted)
        for column, texts in zip(examples.captions, wanted, strict=True):
            np.testing.assert_array_equal(examples.texts.padded(column, 24), tokenizer(texts))


def test_captions_and_foils_of_examples_lie_side_by_side(make_loader, pairs, tokenizer):
    examples = make_loader("mix", foils=2).examples
    texts = examples.texts_of(np.array([1, 0, 1]), np.array([0, 1, 1]))
    assert examples.foil_mask[[1, 0]].tolist() == [[True, False], [False, False]]
    foil = pairs[1].foils[0]
    expected = [pairs[1].negated, foil, "", pairs[0].caption, "", "", pairs[1].caption, foil, ""]
    np.testing.assert_array_equal(examples.texts.padded(texts, 24), tokenizer(expected))
    longest = int(
        (tokenizer([t for p in pairs for t in (p.caption, p.negated, *p.foils)]) > 0)
        .sum(axis=1)
        .max()
    )
    assert examples.longest == longest == examples.shown_lengths.max()


def test_unknown_captions(pairs, tokenizer):
    with pytest.raises(InputError, match=r"data\.captions: 'both' is none of negated, original"):
        tokenize_pairs(pairs, [], tokenizer, captions="both", foils=0)


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
        texts, loader.examples.texts.padded(loader.examples.captions[0], texts.shape[1])
    )
    assert all(batch["text"].any(axis=1).all() for batch in loaded), "padding needs an end token"


def test_a_batch_larger_than_the_data(make_loader):
    with pytest.raises(InputError, match=r"train\.batch_size=81 is larger than the 80 training"):
        make_loader(batch_size=81)
    (batch,) = batches(make_loader(batch_size=96, shuffle=False), 0, 1)  # validation pads
    assert batch["mask"].sum() == 80


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


def test_a_bad_image_is_replaced_by_the_next_readable_pair(make_loader, broken, whole, caplog):
    loader = make_loader(images=broken, max_bad_images=0.1)
    loaded = batches(loader, 0, 12)
    replaced = 0
    for step, batch in enumerate(loaded):
        for row, (index, caption) in enumerate(zip(*loader.pairs_at(step), strict=True)):
            texts = batch["text"][2 * row : 2 * row + 2]
            # Captions 6 and 7 belong to image 3, 8 and 9 to image 4, 42 and 43 to image 21.
            if index in (6, 7, 8, 9, 42, 43):
                index = 10 if index < 10 else 44
                replaced += 1
                clean = loader.load(index)
                assert (clean["pair"], clean["bad"]) == (index, -1)
                np.testing.assert_array_equal(batch["image"][row], clean["image"])
                shown = loader.examples.texts_of(np.array([index]), np.array([caption]))
                np.testing.assert_array_equal(texts, loader.examples.texts.padded(shown, 16))
                assert batch["foil_mask"][row] == loader.examples.foil_mask[index]
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
    assert_same(batches(make_loader(images=broken, max_bad_images=0.1, workers=2), 0, 12), loaded)


@pytest.mark.parametrize("shuffle", [True, False])
def test_cached_features_belong_to_the_same_pairs(make_loader, broken, caplog, shuffle):
    """Also where an image cannot be read: the same pair takes its place, or it is masked."""
    decoding = make_loader(images=broken, max_bad_images=0.1, shuffle=shuffle)
    names = decoding.examples.images
    unreadable = np.array([name in broken.broken for name in names])
    assert unreadable.sum() == 3
    numbers = np.where(unreadable, np.nan, np.arange(40))
    features = np.repeat(numbers[:, None], 2, axis=1).astype(np.float32)
    cached = dataclasses.replace(decoding, features=features, unreadable=unreadable)
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


def test_cached_features_from_any_start_and_in_shares(make_loader):
    features = np.arange(40, dtype=np.float32)[:, None] + np.zeros(3, np.float32)
    loader = make_loader(features=features, unreadable=np.zeros(40, bool))
    loaded = batches(loader, 0, 15)
    for step, batch in enumerate(loaded):
        expected = loader.examples.image_of[loader.pairs_at(step)[0]]
        np.testing.assert_array_equal(batch["feature"][:, 0], expected)
    assert_same(batches(loader, 7, 15), loaded[7:])
    share = batches(loader, 3, 5, np.arange(4, 9))
    np.testing.assert_array_equal(share[1]["feature"], loaded[4]["feature"][4:9])
    np.testing.assert_array_equal(share[1]["text"], loaded[4]["text"][8:18])


def test_packed_batches_hold_the_texts_of_padded_ones(make_loader, whole):
    packing = Packing(per_shard=BATCH, row_length=24, slots=12)  # two shards of caption and foil
    loader = make_loader(packing=packing)
    loaded = batches(loader, 0, 15)
    for batch, padded in zip(loaded, whole, strict=True):
        text = batch["text"]
        assert text["ids"].shape[0] % 2 == 0 and text["slots"].shape == (2, BATCH)
        rows = len(text["ids"]) // 2
        for i, expected in enumerate(padded["text"]):
            row, slot = divmod(int(text["slots"].ravel()[i]), packing.slots)
            row += i // BATCH * rows
            ids = text["ids"][row][text["segments"][row] == slot + 1]
            np.testing.assert_array_equal(ids, expected[: len(ids)])
            assert not expected[len(ids) :].any()
        np.testing.assert_array_equal(batch["foil_mask"], padded["foil_mask"])
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


WORKERS = """
import os, signal, sys, time
import numpy as np
from absl import flags
from negclip_jax.data.examples import Examples
from negclip_jax.data.images import ImageDirectory, Preprocessor
from negclip_jax.data.loader import PairLoader
from negclip_jax.data.packing import Ragged

def main():
    names = sorted(os.listdir(sys.argv[1]))
    each = np.arange(len(names))
    texts = Ragged(np.ones(8 * len(names), np.int32), np.arange(len(names) + 1) * 8)
    examples = Examples(names, each, texts, each[None], None, None)
    loader = PairLoader(
        examples=examples, images=ImageDirectory(sys.argv[1]),
        preprocess=Preprocessor(32, 32), batch_size=8, workers=2,
    )
    batches = loader.batches(0, 1000)
    next(batches)
    os.killpg(os.getpgid(0), signal.SIGTERM)  # as Slurm does, and Ctrl-C in a terminal
    time.sleep(0.5)
    for _ in range(20):
        next(batches)
    print("workers still load", flush=True)
    if sys.argv[2] == "close":
        batches.close()
    else:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    import signal
    flags.FLAGS.mark_as_parsed()
    signal.signal(signal.SIGTERM, lambda *_: None)
    main()
"""


@pytest.mark.parametrize("end", ["close", "kill"])
def test_worker_processes_live_exactly_as_long_as_the_run(tiny_pairs, tmp_path, end):
    script = tmp_path / "load.py"
    script.write_text(WORKERS)
    process = subprocess.Popen(
        [sys.executable, script, tiny_pairs / "images", end],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    # Returns when every process that inherited the pipes is gone: orphans would keep them open.
    out, err = process.communicate(timeout=60)
    assert out == "workers still load\n", err
    assert process.returncode == (0 if end == "close" else -9)
    assert "Traceback" not in err


def test_shared_memory_of_workers_is_given_back(make_loader):
    loaded = batches(make_loader(workers=1), 0, 3)
    assert all(type(x) is np.ndarray for batch in loaded for x in batch.values())
    assert not [x for x in gc.get_objects() if type(x).__name__ == "SharedMemoryArray"]


def test_what_grain_prints_of_the_source_is_short(make_loader):
    rows = loading._Rows(make_loader(), np.arange(BATCH), 10)
    assert len(repr(rows)) < 40 and "80 pairs" in repr(rows)
