"""Prepared pairs: the same as pairs in memory, and never what is damaged or of something else."""

import dataclasses
import json
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from negclip_jax.data import prepared
from negclip_jax.data.examples import tokenize_pairs
from negclip_jax.data.pairs import Pair, PairError, iter_pairs
from negclip_jax.data.tokenizer import load_tokenizer

SHOWN = {"caption_mode": "mix", "foils": 2}


def some_pairs(count: int = 300, *, ids: bool = True) -> list[Pair]:
    """Pairs of images in no order; some share an id with others, from the hundredth on."""
    made = []
    for i in range(count):
        image = f"{i * 7919 % 97:02d} é\n.jpg"
        image_id = f"id {i * 31 % 41}" if ids and i >= 100 and i % 3 else image
        foils = tuple(f"no {i} {k}" for k in range(i % 4))
        negated = f"{i} " + "and a dog " * (5 * (i % 50 == 7)) + "no cat"
        made.append(Pair(image, f"thing {i}", negated, foils, image_id=image_id))
    return made


def written(pairs, folder: Path, tokenizer, what: str = "it") -> prepared.Prepared:
    folder.mkdir()
    list(prepared.write(pairs, folder, what, tokenizer, **SHOWN))
    found = prepared.find(folder, what)
    assert found is not None
    return found


@pytest.mark.parametrize("ids", [True, False])
@pytest.mark.parametrize("small", [True, False])
def test_what_is_read_is_what_was_written(tokenizer, tmp_path, monkeypatch, ids, small):
    pairs = some_pairs(ids=ids)
    if small:  # many chunks, runs of names and blocks
        for name, value in (("_CHUNK", 16), ("_RUN", 40), ("_READ", 3), ("_LISTED", 10)):
            monkeypatch.setattr(prepared, name, value)
        monkeypatch.setattr(prepared, "_LONGEST_RUN", 60)
    kept = written(pairs, tmp_path / "kept", tokenizer)
    names = sorted({pair.image for pair in pairs})
    plain = tokenize_pairs(pairs, names, tokenizer, **SHOWN)
    assert list(kept.images) == names and len(kept.images) == len(names)
    assert kept.images[-1] == names[-1] and kept.images[5:9] == names[5:9]
    assert list(kept.images.only(np.array([3, 8]))) == [names[3], names[8]]
    np.testing.assert_array_equal(kept.image_of, plain.image_of)
    np.testing.assert_array_equal(kept.tokens.ids, plain.tokens.ids)
    np.testing.assert_array_equal(kept.tokens.offsets, plain.tokens.offsets)
    assert (kept.id_of is not None) == ids
    assert kept.texts == 4 and set(kept.losses.tolist()) == {0, 2}
    assert kept.lost == [[i, pairs[i].negated] for i in np.flatnonzero(kept.losses)]
    assert not [f for f in (tmp_path / "kept").iterdir() if f.name.startswith(".")]
    # Groups of a split by image: the parts of a graph of files and ids, also of some of the pairs.
    for rows in (np.arange(len(pairs)), np.arange(90, 260, 2)):
        nodes = [("file", name) for name in names]
        nodes += sorted({("id", pairs[i].image_id) for i in rows})
        edges = [[nodes.index(("file", pairs[i].image)), nodes.index(("id", pairs[i].image_id))]
                 for i in rows]  # fmt: skip
        graph = coo_array((np.ones(len(rows)), np.transpose(edges)), (len(nodes), len(nodes)))
        part = connected_components(graph, directed=False)[1]
        least = [part.tolist().index(part[file]) for file, _ in edges]
        assert kept.groups(rows).tolist() == (least if ids else kept.image_of[rows].tolist())


def test_a_worker_process_gets_a_path_not_the_tokens(tokenizer, tmp_path):
    kept = written(some_pairs(), tmp_path / "kept", tokenizer)
    for value in (kept.tokens, kept.images, kept.images.only(np.array([2, 1]))):
        copy = pickle.dumps(value)
        assert len(copy) < 1000
    assert list(pickle.loads(copy)) == [kept.images[2], kept.images[1]]
    again = pickle.loads(pickle.dumps(kept.tokens))
    np.testing.assert_array_equal(
        again.padded(np.arange(9), 24), kept.tokens.padded(np.arange(9), 24)
    )
    assert not isinstance(again.taken(np.arange(3)), prepared.MappedTokens)


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "tokens.u2 is damaged: its checksum": lambda f: flip(f / "tokens.u2", 1000),
    "names.u1 is damaged: its checksum": lambda f: flip(f / "names.u1", 0),
    "text_offsets.i8 is cut short": lambda f: (f / "text_offsets.i8").write_bytes(b"12345678"),
    "No such file": lambda f: (f / "losses.u1").unlink(),
    "head.json is damaged": lambda f: flip(f / "head.json", 11),
    "it is of other pairs": lambda f: None,
}


@pytest.mark.parametrize("message", DAMAGE)
def test_what_is_damaged_or_foreign_is_named_and_not_used(tokenizer, tmp_path, caplog, message):
    folder = tmp_path / "kept"
    written(some_pairs(), folder, tokenizer)
    DAMAGE[message](folder)
    what = "other" if message.startswith("it is of") else "it"
    assert prepared.find(folder, what) is None
    assert f"prepared examples in {folder} cannot be used: " in caplog.text
    assert message in caplog.text and "they are made again" in caplog.text


@pytest.mark.parametrize("head", ["", "[]", "{", '{"checksum": "x"}', "{}"])
def test_a_head_of_anything_else_is_named(tokenizer, tmp_path, caplog, head):
    written(some_pairs(9), tmp_path / "kept", tokenizer)
    (tmp_path / "kept" / "head.json").write_text(head)
    assert prepared.find(tmp_path / "kept", "it") is None
    assert "they are made again" in caplog.text


def test_nothing_is_there(tmp_path, caplog):
    assert prepared.find(tmp_path, "it") is None and not caplog.text


def test_the_fingerprint_changes_with_all_that_decides(tokenizer, tiny_vocabulary, tmp_path):
    shorter = load_tokenizer(tiny_vocabulary, context_length=23)
    content = json.loads((tiny_vocabulary / "vocab.json").read_text())
    content["a"], content["b"] = content["b"], content["a"]
    (tmp_path / "vocab.json").write_text(json.dumps(content))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    other = load_tokenizer(tmp_path, context_length=24)
    prints = [
        prepared.fingerprint("x", tokenizer, **SHOWN),
        prepared.fingerprint("y", tokenizer, **SHOWN),
        prepared.fingerprint("x", shorter, **SHOWN),
        prepared.fingerprint("x", other, **SHOWN),
        prepared.fingerprint("x", tokenizer, caption_mode="mix", foils=1),
        prepared.fingerprint("x", tokenizer, caption_mode="negated", foils=2),
    ]
    assert len(set(prints)) == len(prints)
    same = load_tokenizer(tiny_vocabulary, context_length=24)
    assert prepared.fingerprint("x", same, **SHOWN) == prints[0]


def test_digests_are_of_the_content(tokenizer, tmp_path):
    pairs = some_pairs()
    digests = [written(pairs, tmp_path / str(i), tokenizer).digest for i in range(2)]
    changed = [dataclasses.replace(pairs[0], image_id="another"), *pairs[1:]]
    digests.append(written(changed, tmp_path / "2", tokenizer).digest)
    assert digests[0] == digests[1] != digests[2]


def test_few_pairs_are_in_memory_at_a_time(tokenizer, tmp_path, monkeypatch):
    for name, value in (("_CHUNK", 64), ("_RUN", 256), ("_READ", 64), ("_LONGEST_RUN", 512)):
        monkeypatch.setattr(prepared, name, value)
    peaks = []
    for count in (1_000, 6_000):
        made = (
            Pair(f"{i * 7919 % 100_003}.jpg", f"a {i}", f"no {i}", image_id=f"{i}")
            for i in range(count)
        )
        (tmp_path / str(count)).mkdir()
        tracemalloc.start()
        list(prepared.write(made, tmp_path / str(count), "it", tokenizer, **SHOWN))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0], peaks


def test_bad_records_leave_nothing_behind(tokenizer, tmp_path):
    path = tmp_path / "pairs.jsonl"
    lines = [json.dumps({"image": f"{i}.jpg", "caption": "a", "negated": "no"}) for i in range(9)]
    path.write_text("\n".join([*lines, '{"image": "../x", "negated": "n"}']))
    with pytest.raises(PairError, match=r"climbs out .*line 10.*the caption is missing"):
        list(prepared.write(iter_pairs(path), tmp_path, "it", tokenizer, **SHOWN))
    assert prepared.find(tmp_path, "it") is None
