"""Text rows: pairs and statements about things that no photo needs to show."""

import collections
import re

import pyarrow.parquet as pq
import pytest

from data_gen.cli import main
from negclip_jax.data.examples import stand_in_text
from negclip_jax.data.pairs import read_pairs
from negclip_jax.language.inflection import noun, singular
from negclip_jax.language.mentions import mentioned
from negclip_jax.language.negation import find_cues
from negclip_jax.language.text import tokenize

NOUNS = [
    *("lantern", "an accordion", "walruses", "chess board", "scissors"),
    *("telescope", "cactus", "harp", "kayak", "broccoli"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    (folder / "nouns.txt").write_text("\n".join(NOUNS))
    command = ["nouns", f"--nouns={folder / 'nouns.txt'}", "--rows=300", "--seed=3"]
    for name in ("a", "b"):
        assert main([*command, f"--to={folder / name}"]) == 0
    return folder


def test_the_same_command_writes_the_same(folder):
    for name in ("pairs.jsonl", "statements.parquet"):
        assert (folder / "a" / name).read_bytes() == (folder / "b" / name).read_bytes()


def test_all_that_is_said_follows_from_what_is_listed(folder):
    pairs = read_pairs(folder / "a" / "pairs.jsonl")
    listed = {pair.image: stand_in_text(pair.image) for pair in pairs}
    assert len(listed) == len(pairs) > 290
    names = ["lantern", "accordion", "walrus", "chess board", "scissors", *NOUNS[5:]]
    for pair in pairs:
        text = listed[pair.image]
        assert 2 <= sum(noun(name).some in text for name in names) <= 3
        assert pair.object in names and not mentioned(pair.object, [text])
        assert mentioned(pair.object, [pair.negated]) and find_cues(tokenize(pair.negated))
        assert not find_cues(tokenize(pair.caption))
    said = pq.read_table(folder / "a" / "statements.parquet").to_pylist()
    assert len(said) > 2000
    truths = collections.Counter(row["truth"] for row in said)
    assert truths[True] == truths[False]
    for row in said:
        for name, label in zip(row["objects"], row["label"], strict=True):
            state = "present" if noun(name).some in listed[row["image"]] else "absent"
            assert label == f"{name}={state}@text"
    # Each noun is as often there as not, in so far as chance would have it.
    for name in names:
        tells = [row["truth"] for row in said if row["objects"] == [name]]
        assert 0.35 < sum(tells) / len(tells) < 0.65


def test_nouns_of_captions(shared_data, tmp_path, capsys):
    captions = shared_data / "coco" / "captions.json"
    assert main(["nouns", f"--captions={captions}", f"--to={tmp_path}", "--rows=40"]) == 0
    assert "--config.data.text_nouns=" in capsys.readouterr().out
    texts = [stand_in_text(p.image) for p in read_pairs(tmp_path / "pairs.jsonl")]
    things = {thing for text in texts for thing in re.split(r", | and ", text)}
    assert len(texts) >= 39 and len(things) > 40
    for thing in things:  # "an elephant", where the captions say "elephants"
        name = re.sub("^an? ", "", thing)
        assert noun(name).some == thing, thing
        assert not thing.startswith("a") or singular(name) == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("anvil\nharp\n", r"2 nouns; text rows need 8 or more"),
        ("anvil\nrunning very fast\n", r"line 2: 'running very fast' is no noun"),
        ("a/b\n", r"line 1: 'a/b' is no noun"),
        (None, r"cannot be read as a list of nouns"),
    ],
)
def test_bad_lists(tmp_path, capsys, text, message):
    path = tmp_path / "nouns.txt"
    if text is not None:
        path.write_text(text)
    assert main(["nouns", f"--nouns={path}", f"--to={tmp_path / 'to'}"]) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert re.search(message, error)
    assert main(["nouns", f"--to={tmp_path / 'to'}"]) == 2


@pytest.mark.parametrize("rows", [0, -3])
def test_no_row_is_an_error(folder, tmp_path, capsys, rows):
    command = ["nouns", f"--nouns={folder / 'nouns.txt'}", f"--rows={rows}", f"--to={tmp_path}"]
    assert main(command) == 2
    assert f"--rows={rows}" in capsys.readouterr().err and not list(tmp_path.iterdir())
