"""Several sources in one batch: exact shares, each in its own epochs, a function of the step."""

import dataclasses
import os
import pickle
import shutil
from fractions import Fraction

import numpy as np
import pytest
from tiny_tars import write_photos

from negclip_jax.common.decoding import ImageError
from negclip_jax.common.errors import InputError
from negclip_jax.data import mixture
from negclip_jax.data.examples import Examples, tokenize_pairs
from negclip_jax.data.images import ImageDirectory, Preprocessor
from negclip_jax.data.loader import CachedFeatures, PairLoader
from negclip_jax.data.mixture import MixedImages, Mixture, Source
from negclip_jax.data.packing import Joined, Packing, Ragged
from negclip_jax.data.records import JoinedNames, Pair
from negclip_jax.data.sources import open_images

BATCH = 16


def examples(count: int, length: int = 4, first_token: int = 1) -> Examples:
    """One caption each, of its own image; the first token says which of the source's it is."""
    ids = np.repeat(first_token + np.arange(count), length).astype(np.int32)
    tokens = Ragged(ids, np.arange(count + 1) * length)
    return Examples.of_captions([str(i) for i in range(count)], np.arange(count), tokens)


def mixed(*sources: tuple[int, str], batch_size: int = BATCH, seed: int = 0) -> Mixture:
    parts = [
        Source(f"s{i}", examples(count, first_token=1 + 1000 * i), Fraction(weight), 0.0)
        for i, (count, weight) in enumerate(sources)
    ]
    return Mixture(parts, batch_size, seed)


def test_shares_are_exact_at_every_step():
    made = mixed((500, "0.7"), (300, "0.2"), (90, "0.1"))
    counts = np.array([[made.count(s, step) for s in range(3)] for step in range(400)])
    assert (counts.sum(axis=1) == BATCH * np.arange(400)).all()
    wanted = np.arange(400)[:, None] * BATCH * np.array([0.7, 0.2, 0.1])
    assert (np.abs(counts - wanted) < 1).all()
    for step in (0, 7, 399):
        pairs, _, _ = made.pairs_at(step)
        found = np.bincount(made.source_of(pairs), minlength=3)
        following = np.array([made.count(s, step + 1) - made.count(s, step) for s in range(3)])
        assert np.array_equal(found, following)
    assert made.steps_per_epoch == 44  # 500 pairs, 11.2 of a batch


def test_far_steps_are_counted_without_rounding():
    made = mixed((500, "1/3"), (300, "2/3"))
    far = 10**15
    assert abs(made.count(0, far) - Fraction(far * BATCH, 3)) < 1
    assert made.count(0, far) + made.count(1, far) == far * BATCH


def test_each_source_goes_round_in_epochs_of_its_own():
    made = mixed((37, "0.3"), (400, "0.7"))
    seen, of_epoch, epoch = [], [], []
    for step in range(120):
        pairs = made.pairs_at(step)[0]
        assert len(set(pairs.tolist())) == BATCH  # no batch holds a pair twice
        own = pairs[pairs < 37].tolist()
        if set(own) & set(epoch):  # the next has begun, with this batch
            of_epoch.append(epoch)
            epoch = []
        epoch += own
        seen += own
    assert all(37 - 6 < len(set(epoch)) == len(epoch) for epoch in of_epoch) and len(of_epoch) > 10
    assert set(seen) == set(range(37)) and of_epoch[0] != of_epoch[1]


def test_a_batch_is_a_function_of_seed_and_step_alone():
    sources = (60, "0.4"), (200, "0.6")
    forwards = [mixed(*sources).pairs_at(step) for step in range(0, 90, 9)]
    made = mixed(*sources)
    for step, expected in reversed(list(zip(range(0, 90, 9), forwards, strict=True))):
        copied = pickle.loads(pickle.dumps(made))  # as a worker process has it
        for of in (made, copied):
            for a, b in zip(of.pairs_at(step), expected, strict=True):
                assert np.array_equal(a, b)
    other = mixed(*sources, seed=1).pairs_at(0)[0]
    assert not np.array_equal(other, forwards[0][0])
    # The order of a source does not depend on what is beside it.
    alone = mixed((60, "0.4"), (90, "0.6")).pairs_at(0)[0]
    assert np.array_equal(np.sort(alone[alone < 60]), np.sort(forwards[0][0][forwards[0][0] < 60]))


def test_sources_are_spread_over_the_batch():
    made = mixed((900, "1"), (900, "1"), batch_size=256)
    halves = [made.source_of(made.pairs_at(step)[0])[:128].sum() for step in range(40)]
    assert 50 < np.mean(halves) < 78 and min(halves) > 30


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (
            ((90, "1"), (90, "0.01")),
            r"s1 has 0\.99% of the examples, less than one of a",
        ),
        (((90, "1"), (8, "1")), r"s1 has 8 training pairs, and a batch may hold 9 of them"),
    ],
)
def test_sources_that_do_not_fit_a_batch(sources, message):
    with pytest.raises(InputError, match=message):
        mixed(*sources)


PAIRS = {  # of two forms: a foil and a negated caption, or neither
    "negated": [
        Pair(f"{i:03d}.png", f"a {i}", f"no {i}", (f"f {i}",), image_id="x") for i in range(20)
    ],
    "plain": [
        Pair(f"{i:03d}.png", f"plain caption {i}", None, image_id="x") for i in range(20, 40)
    ],
}


@pytest.fixture(scope="module")
def loader(tokenizer, tiny_pairs):
    """A loader of a negated source with foils and originals, and of a plain one."""
    names = {name: [pair.image for pair in pairs] for name, pairs in PAIRS.items()}
    images, first = JoinedNames([(f"{name}:", x) for name, x in names.items()]), 0
    sources = []
    for name, pairs in PAIRS.items():
        mode = "negated" if name == "negated" else "original"
        foils = 1 if name == "negated" else 0
        own = tokenize_pairs(
            pairs, names[name], tokenizer, caption_mode=mode, foils=foils, with_original=True
        )
        own = dataclasses.replace(own, images=images, image_of=own.image_of + first)
        sources.append(Source(name, own, Fraction(1), 0.0))
        first += len(pairs)
    made = Mixture(sources, 8, 3)
    return PairLoader(
        examples=made,
        images=MixedImages(dict.fromkeys(PAIRS, ImageDirectory(tiny_pairs / "images"))),
        preprocess=Preprocessor(size=32, resize=32),
        batch_size=8,
        seed=3,
        threads=2,
        packing=Packing.suited_to(made.planned_lengths, 8 * made.texts, 4, made.longest),
    )


def test_texts_of_sources_that_show_different_numbers_of_them(loader, tokenizer):
    made = loader.examples
    assert made.texts == 3  # negated, foil, original; the plain ones have empty texts behind them
    batch = next(dataclasses.replace(loader, packing=None).batches(0, 1))
    pairs = loader.pairs_at(0)[0]
    text = batch["text"].reshape(8, 3, -1)
    everything = PAIRS["negated"] + PAIRS["plain"]
    for row, number in enumerate(pairs.tolist()):
        pair = everything[number]
        is_plain = pair.negated is None
        wanted = [pair.caption] if is_plain else [pair.negated, pair.foils[0], pair.caption]
        wanted += [""] * (3 - len(wanted))
        ids, offsets = tokenizer.encode_ragged(wanted)
        for place in range(3):
            expected = ids[offsets[place] : offsets[place + 1]]
            assert text[row, place, : len(expected)].tolist() == expected.tolist()
        assert batch["truth"][row].tolist() == ([1, 0, 0] if is_plain else [1, -1, 0])
    assert batch["source"].tolist() == (pairs >= 20).astype(int).tolist()
    originals = made.tokens.taken(made.original_index_N)
    expected = Ragged(*tokenizer.encode_ragged([pair.caption for pair in everything]))
    assert np.array_equal(originals.ids, expected.ids)


def same(a: dict, b: dict) -> bool:
    flat = lambda x: x | x["text"] if isinstance(x["text"], dict) else x  # noqa: E731
    a, b = flat(a), flat(b)
    return all(np.array_equal(a[k], b[k]) for k in a if k != "text")


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_load_parts_of_the_same_batches(loader, processes):
    whole = list(loader.batches(3, 6))
    parts = np.arange(8).reshape(processes, -1)
    divided = [list(loader.batches(3, 6, rows)) for rows in parts]
    for step, batch in enumerate(whole):
        for name in ("image", "source", "truth"):
            joined = np.concatenate([part[step][name] for part in divided])
            assert np.array_equal(joined, batch[name])
    assert same(next(loader.batches(5, 6)), whole[2])  # resumed


@pytest.mark.slow
def test_worker_processes_and_kept_features_change_nothing(loader):
    whole = list(loader.batches(0, 3))
    by_workers = list(dataclasses.replace(loader, workers=1).batches(0, 3))
    assert all(same(a, b) for a, b in zip(whole, by_workers, strict=True))
    features = np.arange(40, dtype=np.float32)[:, None] * np.ones((1, 4), np.float32)
    unreadable = np.zeros(40, bool)
    cached = dataclasses.replace(loader, cached=CachedFeatures(features, unreadable))
    for step, batch in enumerate(cached.batches(0, 3)):
        pairs = loader.pairs_at(step)[0]
        assert np.array_equal(batch["feature"][:, 0], loader.examples.image_of[pairs])
        assert np.array_equal(batch["text"]["ids"], whole[step]["text"]["ids"])


def test_the_first_batch_of_a_mixture_may_be_every_batch(loader):
    (first,) = loader.batches(0, 1)
    for batch in dataclasses.replace(loader, repeats_first=True).batches(3, 6):
        assert same(batch, first)


def test_a_bad_image_is_replaced_within_its_source(loader):
    pairs = loader.pairs_at(0)[0]
    bad = np.zeros(40, bool)
    bad[loader.examples.image_of[pairs[:2]]] = True
    cached = CachedFeatures(np.arange(40, dtype=np.float32)[:, None], bad)
    replaced = dataclasses.replace(loader, cached=cached, max_bad_images=0.5)
    batch = next(replaced.batches(0, 1))
    image = batch["feature"][:, 0].astype(int)
    assert not bad[image].any() and np.array_equal(image >= 20, pairs >= 20)
    assert np.array_equal(batch["source"], pairs >= 20)


def test_images_of_several_sources(tiny_pairs, tmp_path):
    names = sorted(os.listdir(tiny_pairs / "images"))[:6]
    (tmp_path / "folder").mkdir()
    for name in names[:2]:
        shutil.copy(tiny_pairs / "images" / name, tmp_path / "folder" / name)
    write_photos(tmp_path / "t.tar", tiny_pairs / "images", reversed(names[1:4]))
    sources = {"f": str(tmp_path / "folder"), "t": f"wds:{tmp_path}/t.tar"}
    images = MixedImages({name: open_images(spec) for name, spec in sources.items()})
    called = [f"t:{names[1]}", f"f:{names[1]}", f"f:{names[0]}", f"t:{names[3]}"]
    files = [(tiny_pairs / "images" / name.partition(":")[2]).read_bytes() for name in called]
    assert [images.read(name) for name in called] == files
    assert images.open(called[0]).size == images.open(called[1]).size
    assert images.identities(called) == [images.identity(name) for name in called]
    assert images.missing([*called, "f:x", f"t:{names[0]}"]) == ["f:x", f"t:{names[0]}"]
    assert [called[i] for i in images.storage_order(called)] == [called[i] for i in (3, 0, 1, 2)]
    with pytest.raises(ImageError, match="no source"):
        images.open("other:x")


def test_joined_texts_and_names():
    a, b = (
        Ragged(np.arange(10), np.array([0, 3, 3, 10])),
        Ragged(np.arange(90, 95), np.array([0, 5])),
    )
    joined, copied = Joined([a]).followed_by(Joined([b])), a.followed_by(b)
    index = np.array([3, 0, 2, 1, 3])
    assert np.array_equal(joined.taken(index).ids, copied.taken(index).ids)
    assert np.array_equal(joined.padded(index, 8), copied.padded(index, 8))
    assert np.array_equal(joined.lengths_of(index), copied.lengths_of(index)) and len(joined) == 4
    names = JoinedNames([("a:", ["x", "y"]), ("", []), ("b:", ["z"])])
    assert list(names) == ["a:x", "a:y", "b:z"] == names[0:3] == [names[i] for i in range(3)]
    assert names[1:] == ["a:y", "b:z"] and names[::-2] == ["b:z", "a:x"] and names[-1] == "b:z"


def test_sources_are_read_from_lines_and_semicolons():
    text = "\n coco: pairs=a.jsonl images='my photos' weight=7\n\n"
    text += (
        "plain:pairs=wds:cc-{0..9}.tar#x weight=0.3 original_fraction=0.5; c: pairs=c weight=1/3"
    )
    assert mixture.parse(text) == {
        "coco": {"pairs": "a.jsonl", "images": "my photos", "weight": 7},
        "plain": {
            "pairs": "wds:cc-{0..9}.tar#x",
            "weight": Fraction(3, 10),
            "original_fraction": 0.5,
        },
        "c": {"pairs": "c", "weight": Fraction(1, 3)},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: pairs=x weight=0", r"a has the weight '0'; write a number above 0"),
        ("a: pairs=x weight=-1", "a has the weight '-1'"),
        ("a: pairs=x weight=nan", "a has the weight 'nan'"),
        ("a: pairs=x weight=inf", "a has the weight 'inf'"),
        ("a: pairs=x", "a has no weight"),
        ("a: weight=1", r"a has no pairs=\.\.\."),
        ("a: pairs=x weight=1; a: pairs=y weight=1", "names a twice"),
        (
            "a: pairs=x pears=y weight=1",
            r"a has 'pears=y' \(no such key\): .*keys pairs, image",
        ),
        ("a: pairs=x pairs=y weight=1", r"a has 'pairs=y' \(twice\)"),
        ("pairs=x weight=1", r"cannot read 'pairs=x': a source begins with a name and a colon"),
        ("text: pairs=x weight=1", "cannot read 'text:'"),
        ("../a: pairs=x weight=1", r"cannot read '\.\./a:'"),
        ("a: pairs='x weight=1", "cannot be read: no closing quotation"),
        ("a: pairs=x weight=1 original_fraction=2", "original_fraction=2: write 0 to 1"),
        (" ; ", "names no source"),
    ],
)
def test_sources_that_cannot_be_read(text, message):
    with pytest.raises(InputError, match=message) as caught:
        mixture.parse(text)
    assert "\n" not in str(caught.value)
