"""Statements from Parquet: what is read, what is refused, and which ones an example shows."""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from negclip_jax.data.examples import tokenize_pairs
from negclip_jax.data.packing import Packing
from negclip_jax.data.records import PairError
from negclip_jax.data.statements import POLARITIES, read_statements

FORMS = {"affirms": "there is {}", "denies": "no {}", "both": "a table, no {}"}


def statements(images) -> list[dict]:
    """Of each image each polarity and truth about three things, and two texts with its caption."""
    rows = []
    for image, name in enumerate(images):
        for thing, truth in itertools.product(range(3), (True, False)):
            for polarity, form in FORMS.items():
                rows.append(
                    {
                        "image": name,
                        "image_id": str(image),
                        "caption_id": None,
                        "unit": f"{image} {thing}",
                        "text": form.format(f"{thing}{'x' if truth else 'y'} {image}"),
                        "truth": truth,
                        "polarity": polarity,
                        "objects": [str(thing)],
                        "form": polarity,
                        "writer": "template",
                        "label": [],
                    }
                )
        for truth in (True, False):
            row = {"caption_id": "7", "text": f"{image} caption {truth}", "truth": truth}
            rows.append(rows[-1] | row | {"form": "caption"})
    return rows


def write(path, rows, **columns):
    pq.write_table(pa.Table.from_pylist(rows) if rows else pa.table(columns), path)
    return path


@pytest.fixture(scope="module")
def names(pairs):
    return sorted({pair.image for pair in pairs})


@pytest.fixture(scope="module")
def path(names, tmp_path_factory):
    # The last image has none; some are about an image without pairs.
    rows = statements([*names[:-1], "other.png"])
    np.random.default_rng(0).shuffle(rows)
    return write(tmp_path_factory.mktemp("statements") / "statements.parquet", rows)


@pytest.fixture(scope="module")
def known(path, names, tokenizer):
    return read_statements(
        path, names, tokenizer, true_texts=1, false_texts=3, truncated="drop_lost"
    )


def read(path, names, tokenizer, **options):
    options = {"true_texts": 1, "false_texts": 3, "truncated": "drop_lost"} | options
    return read_statements(path, names, tokenizer, **options)


def test_statements_lie_by_image(known, names, path, tokenizer, caplog):
    read(path, names, tokenizer)
    assert "statements about 39 of 40 images, 20 about images without pairs; 0 that" in caplog.text
    by_text = {row["text"]: row for row in pq.read_table(path).to_pylist()}
    ids = {tuple(tokenizer.encode_ragged([text])[0].tolist()): text for text in by_text}
    for image in range(40):
        rows = range(known.offsets[image], known.offsets[image + 1])
        assert len(rows) == (0 if image == 39 else 20)
        for row in rows:
            ends = known.tokens.offsets[known.text[row] :][:2]
            written = by_text[ids[tuple(known.tokens.ids[slice(*ends)].tolist())]]
            assert written["image"] == names[image]
            assert written["truth"] == known.truth[row]
            assert written["polarity"] == POLARITIES[known.polarity[row]]
            assert (written["caption_id"] is not None) == known.holds_caption[row]
    assert len(set(known.unit)) == 3 * 39 and len(set(known.form)) == 4


def test_what_an_example_shows(known):
    images, bits = np.arange(39).repeat(200), np.random.Philox(key=1).random_raw(39 * 200)
    chosen = known.choose(images, bits)
    assert chosen.shape == (39 * 200, 4) and (chosen >= 0).all()
    assert (known.truth[chosen] == [True, False, False, False]).all()
    assert known.holds_caption[chosen[:, 0]].any() and known.holds_caption[chosen[:, 1:]].any()
    polarity = known.polarity[chosen]
    for column in (0, 1):
        shares = np.bincount(polarity[:, column]) / len(polarity)
        np.testing.assert_allclose(shares, 1 / 3, atol=0.02)
    assert (np.sort(polarity[:, 1:], axis=1) == [0, 1, 2]).all(), "every polarity is denied once"
    of_unit, of_form = (x[chosen[:, 1]] == x[chosen[:, 0]] for x in (known.unit, known.form))
    assert of_unit.all() and of_form.all(), "the first is a minimal pair"
    # Whatever a text is like, its odds of being true are the same: no form tells.
    for kind in (known.polarity, known.holds_caption, known.form):
        counts = [np.bincount(kind[c].ravel().astype(int)) for c in (chosen[:, :1], chosen[:, 2:])]
        shares = [count / count.sum() for count in counts]
        np.testing.assert_allclose(*shares, atol=0.05)
    assert len(set(map(tuple, chosen[:200].tolist()))) > 100
    # Of each example alone, whichever batch it is in.
    some = np.array([5, 7, 300])
    np.testing.assert_array_equal(known.choose(images[some], bits[some]), chosen[some])


def test_an_image_with_too_few(known, path, names, tokenizer):
    assert (known.choose(np.array([39, 0]), np.array([1, 2], np.uint64))[0] == -1).all()
    most = read(path, names, tokenizer, true_texts=12, false_texts=12)
    chosen = most.choose(np.array([3]), np.array([9], np.uint64))[0]
    assert (chosen >= 0).sum() == 10 + 10 and len(set(chosen[chosen >= 0])) == 20
    assert (chosen[10:12] == -1).all() and (chosen[22:] == -1).all()


def test_the_opposite_is_known_of_another_image(names, tokenizer, tmp_path):
    """Of each text three images where it is true and two where it is false, and one without."""
    rows = []
    for image, name in enumerate(names[:6]):
        for thing in range(5):
            row = {"image": name, "text": f"thing {thing}", "truth": (image + thing) % 5 < 3}
            rows.append(row | {"polarity": "affirms"})
        rows.append({"image": name, "text": f"all {image}", "truth": True, "polarity": "affirms"})
    known = read(write(tmp_path / "shared.parquet", rows), names, tokenizer)
    images, bits = np.arange(7).repeat(300), np.random.Philox(key=2).random_raw(7 * 300)
    chosen = known.choose(images, bits)
    chance = np.random.Philox(key=3).random_raw(chosen.size).reshape(chosen.shape)
    opposite = known.opposites(chosen, chance)
    said = {(row["image"], row["text"]): row["truth"] for row in rows}
    texts = {tuple(tokenizer.encode_ragged([r["text"]])[0].tolist()): r["text"] for r in rows}
    met = set()
    for image, statement, other in zip(
        np.repeat(images, chosen.shape[1]), chosen.ravel(), opposite.ravel(), strict=True
    ):
        if statement < 0:
            assert other == -1
            continue
        ends = known.tokens.offsets[known.text[statement] :][:2]
        text = texts[tuple(known.tokens.ids[slice(*ends)].tolist())]
        if text.startswith("all"):
            assert other == -1, "nobody says that it is false of another image"
        else:
            assert said[names[other], text] != said[names[image], text] == known.truth[statement]
            met.add((text, said[names[other], text], other))
    # Every image takes part: of each thing all six, as the one where it is true or false.
    assert len(met) == 5 * 6
    assert (known.opposites(np.full(3, -1), np.arange(3, dtype=np.uint64)) == -1).all()


def test_opposites_of_one_part_only(names, tokenizer, tmp_path):
    """Training compares with no photo that validation holds out, and the reverse."""
    rows = [
        {"image": name, "text": "no dog", "truth": image % 2 == 0, "polarity": "denies"}
        for image, name in enumerate(names[:8])
    ]
    known = read(write(tmp_path / "parts.parquet", rows), names, tokenizer)
    statement = np.arange(8).repeat(50)
    chance = np.random.Philox(key=4).random_raw(len(statement))
    assert set(known.opposites(statement, chance)) == set(range(8))
    part = known.compared_among(np.array([0, 1, 2, 5, 5]))
    found = part.opposites(statement, chance)
    assert set(found[statement % 2 == 0]) == {1, 5} and set(found[statement % 2 == 1]) == {0, 2}
    alone = known.compared_among(np.array([1, 3])).opposites(statement, chance)
    assert (alone[statement % 2 == 1] == -1).all(), "it is true of none of them"
    nowhere = known.compared_among(np.array([len(names) - 1])).opposites(statement, chance)
    assert (nowhere == -1).all(), "nothing is said of this one"
    # Text rows, which come behind the photos, are compared among themselves as before.
    more = part.followed_by(known, first=100)
    assert set(more.opposites(8 + statement, chance)) == set(range(len(names), len(names) + 8))


def test_what_is_known_to_be_where(names, tokenizer, tmp_path):
    def says(image, text, truth, polarity, objects, caption_id=None):
        return locals() | {"image": names[image]}

    rows = [
        says(0, "no dog", True, "denies", ["dog"]),
        says(0, "a dog", False, "affirms", ["dog"]),
        says(1, "a dog", True, "affirms", ["dog"]),
        says(1, "no cat", False, "denies", ["cat"]),
        says(2, "a cat, no dog", True, "both", ["cat", "dog"]),
        says(2, "a cat", True, "affirms", ["cat"]),
        says(3, "no cat, it says", True, "denies", ["cat"], "7"),
        says(3, "nothing", True, "denies", []),
        says(4, "no pets", True, "denies", ["cat", "dog"]),
    ]
    known = read(write(tmp_path / "objects.parquet", rows), names, tokenizer)
    image, thing, is_there = known.presence()
    dog, cat = known.object[0], known.object[3]
    assert dog != cat and min(dog, cat) >= 0 and (known.object[[4, 7, 8]] == -1).all()
    found = set(zip(image.tolist(), thing.tolist(), is_there.tolist(), strict=True))
    assert found == {(0, dog, False), (1, dog, True), (1, cat, True), (2, cat, True)}
    assert len(image) == len(found)
    for row in rows:
        del row["objects"]
    without = read(write(tmp_path / "without.parquet", rows), names, tokenizer)
    assert (without.object == -1).all() and not len(without.presence()[0])


def test_texts_beyond_the_positions_are_left_out(names, tokenizer, tmp_path, caplog):
    rows = statements(names[:1])
    rows[0]["text"] = "no " + "x" * 40
    long = write(tmp_path / "long.parquet", rows)
    assert len(read(long, names, tokenizer).text) == 19
    assert "1 that are longer than 24 tokens are left out" in caplog.text
    assert len(read(long, names, tokenizer, truncated="keep").text) == 20


def test_all_problems_come_in_one_error(names, tokenizer, tmp_path):
    rows = statements(names[:1])[:9]
    for row, change in enumerate(
        [
            {"image": "../a.png"},
            {"image": None},
            {"text": " "},
            {"text": None},
            {"truth": None},
            {"polarity": "neither"},
            {"text": "x" * 100_001},
        ]
    ):
        rows[row] |= change
    rows.append(rows[8] | {"truth": not rows[8]["truth"]})
    with pytest.raises(PairError) as error:
        read(write(tmp_path / "bad.parquet", rows), names, tokenizer)
    for part in (
        "has 8 problems: ",
        "the image is missing (1): row 1",
        "the text is missing (1): row 3",
        "the truth is missing (1): row 4",
        "the image name climbs out of the image directory (1): row 0",
        "the text is empty (1): row 2",
        "the text is longer than 100,000 characters (1): row 6",
        "the polarity is none of affirms, denies, both (1): row 5",
        "the text is true and false of one image (1): row 9",
        "nothing was read.",
    ):
        assert part in str(error.value), part


def test_files_that_hold_no_statements(names, tokenizer, tmp_path):
    with pytest.raises(PairError, match="There is no file of statements at"):
        read(tmp_path / "none.parquet", names, tokenizer)
    rows = statements(["other.png"])
    with pytest.raises(PairError, match="no statement about an image of the pairs"):
        read(write(tmp_path / "a.parquet", rows), names, tokenizer)
    without = [{k: v for k, v in row.items() if k != "truth"} for row in rows]
    with pytest.raises(PairError, match='has no column "truth"; it has: image, image_id'):
        read(write(tmp_path / "b.parquet", without), names, tokenizer)
    words = [row | {"truth": "yes"} for row in rows]
    with pytest.raises(PairError, match=r'wrong type of column "truth" \(string\).*is a boolean'):
        read(write(tmp_path / "c.parquet", words), names, tokenizer)
    with pytest.raises(PairError, match="holds no statements"):
        empty = {k: pa.array([], pa.bool_() if k == "truth" else pa.string()) for k in rows[0]}
        read(write(tmp_path / "d.parquet", [], **empty), names, tokenizer)


def test_only_what_training_reads_is_needed(names, tokenizer, tmp_path):
    needed = ("image", "text", "truth", "polarity")
    rows = [{k: row[k] for k in needed} for row in statements(names[:2])]
    read_back = read(write(tmp_path / "few.parquet", rows), names, tokenizer)
    assert (read_back.unit == -1).all() and not read_back.holds_caption.any()
    chosen = read_back.choose(np.array([0]), np.array([3], np.uint64))
    assert (chosen >= 0).all()


@pytest.fixture(scope="module")
def make(make_loader, pairs, names, tokenizer, known):
    """Function of arguments to a loader whose examples show a foil and statements."""
    examples = tokenize_pairs(
        pairs, names, tokenizer, caption_mode="mix", foils=1, statements=known
    )
    sizes = (examples.planned_lengths, 12 * examples.texts, 2)
    packing = Packing.suited_to(*sizes, int(examples.tokens.lengths.max()))

    def make(**arguments):
        return make_loader(**({"examples": examples, "packing": packing} | arguments))

    return make


def texts_of(batch, row: int, texts: int = 6) -> list[tuple]:
    """Token ids of each text of one example of a packed batch."""
    packed, found = batch["text"], []
    per_row = packed["ends"].shape[1]
    shards, each = packed["slots"].shape
    for number in range(row * texts, (row + 1) * texts):
        shard, place = divmod(number, each)
        slot = packed["slots"][shard, place] + shard * len(packed["ids"]) // shards * per_row
        line, within = divmod(slot, per_row)
        inside = packed["segments"][line] == within + 1
        found.append(tuple(packed["ids"][line][inside].tolist()))
    return found


def test_batches_hold_the_chosen_statements(make, known):
    loader = make()
    assert loader.examples.texts == 1 + 1 + 4
    for step in (0, 9):
        (batch,) = loader.batches(step, step + 1)
        pairs, _, bits = loader.pairs_at(step)
        chosen = known.choose(loader.examples.image_of[pairs], bits)
        for row in range(12):
            wanted = []
            for statement in chosen[row]:
                ends = known.tokens.offsets[known.text[statement] :][:2]
                ids = known.tokens.ids[slice(*ends)] if statement >= 0 else None
                wanted.append(None if ids is None else tuple(ids.tolist()))
            shown = [ids if len(ids) > 2 else None for ids in texts_of(batch, row)[2:]]
            assert shown == wanted
            assert batch["truth"][row, 2:].tolist() == [
                0 if s < 0 else 1 if known.truth[s] else -1 for s in chosen[row]
            ]
            assert batch["holds_caption"][row, 2:].tolist() == [
                bool(s >= 0 and known.holds_caption[s]) for s in chosen[row]
            ]
    first, second = (loader.pairs_at(step) for step in (0, 6))
    assert not set(first[2]) & set(second[2]), "each epoch shows others"


def test_any_start_and_any_share_give_the_same_statements(make):
    from tiny_batches import assert_same, batches

    whole = batches(make(), 0, 9)
    flat = [{**batch.pop("text"), **batch} for batch in batches(make(), 5, 9)]
    assert_same(flat, [{**batch.pop("text"), **batch} for batch in whole[5:]])
    shares = [batches(make(), 5, 9, rows) for rows in np.split(np.arange(12), 2)]
    for step in range(4):
        for name in ("ids", "segments", "ends"):
            joined = np.concatenate([share[step]["text"][name] for share in shares])
            np.testing.assert_array_equal(joined, flat[step][name], err_msg=name)


def test_an_example_that_takes_anothers_place_shows_no_statements(make, tiny_pairs):
    from negclip_jax.data.loader import CachedFeatures

    unreadable = np.arange(40) == 20
    features = np.zeros((40, 3), np.float32)
    cached = CachedFeatures(features, unreadable)
    loader = make(cached=cached, max_bad_images=0.1)
    for step, batch in enumerate(loader.batches(0, 6)):
        replaced = unreadable[loader.examples.image_of[loader.pairs_at(step)[0]]]
        assert not batch["truth"][replaced, 2:].any()
        assert (batch["truth"][:, 0] == 1).all()
