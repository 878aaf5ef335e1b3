"""What the names of things mean, from WordNet 3.0 (`data/wordnet.tsv`): kinds and equal words.

For names outside COCO's categories: for those, the tables of `vocabulary` are the better ones.
Captions use a word mostly in its first sense; `senses=2` also takes the second one.
"""

from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

from negclip_jax.language import tables


class _Graph(NamedTuple):
    classes: tuple[str, ...]  # of each sense
    words: tuple[tuple[str, ...], ...]  # of each sense; a second sense of a word ends in "*"
    wider: tuple[list[int], ...]  # the senses directly above each one
    kinds: tuple[list[int], ...]  # and below
    senses: dict[str, list[int]]  # of each word, the first one first


@cache
def _graph() -> _Graph:
    rows = tables.rows("wordnet")  # 45,000 lines, a fifth of a second: not before it is needed
    words = tuple(tuple(text.split(", ")) for _, text, _ in rows)
    above = tuple([int(number) for number in wider.split()] for _, _, wider in rows)
    below: tuple[list[int], ...] = tuple([] for _ in rows)
    senses: dict[str, list[int]] = {}
    for i in range(len(rows)):
        for number in above[i]:
            below[number].append(i)
        for word in words[i]:
            own = senses.setdefault(word.removesuffix("*"), [])
            own.insert(len(own) if word.endswith("*") else 0, i)
    return _Graph(tuple(name for name, *_ in rows), words, above, below, senses)


def is_known(word: str) -> bool:
    """Whether a word, singular, names something that a photo can show."""
    return word.lower() in _graph().senses


@cache
def _unseen() -> frozenset[str]:
    every = (word for (words,) in tables.rows("unseen") for word in words.split())
    return frozenset(every) - tables.words("seen")


def is_unseen(word: str) -> bool:
    """Whether texts mostly use a word, singular, for an act, a state or the like: "trick"."""
    return word.lower() in _unseen()


def is_thing(word: str) -> bool:
    """Whether a word, singular, first of all names something with a place in a photo."""
    graph = _graph()
    if is_unseen(word):
        return False
    solid = ("animal", "artifact", "food", "object", "person", "phenomenon", "plant", "substance")
    return any(graph.classes[i] in solid for i in graph.senses.get(word.lower(), ())[:1])


def is_stuff(name: str) -> bool:
    """Whether a name of several words first of all names a substance: "tear gas"."""
    graph, name = _graph(), name.lower()
    first = [graph.senses.get(text, ())[:1] for text in (name, name.rpartition(" ")[2])]
    return " " in name and all(s and graph.classes[s[0]] == "substance" for s in first)


def is_person(word: str) -> bool:
    """Whether a word, singular, names people in all its senses."""
    graph = _graph()
    return all(graph.classes[i] == "person" for i in graph.senses.get(word.lower(), ()))


def wider(name: str) -> frozenset[str]:
    """Words, singular, for what the thing is directly a kind of; empty for an unknown name."""
    graph = _graph()
    above = (i for sense in graph.senses.get(name.lower(), ())[:1] for i in graph.wider[sense])
    return _words(graph, above, 1)


@cache
def kinds(name: str, senses: int = 1) -> frozenset[str]:
    """Words, singular, for a thing and all its kinds, each meant in its first `senses` senses."""
    graph = _graph()
    found = set(graph.senses.get(name.lower(), ())[:senses])
    queue = list(found)
    while queue:
        new = set(graph.kinds[queue.pop()]) - found
        found |= new
        queue += new
    return _words(graph, found, senses)


def _words(graph: _Graph, found: Iterable[int], senses: int) -> frozenset[str]:
    return frozenset(
        word.removesuffix("*")
        for i in found
        for word in graph.words[i]
        if senses > 1 or not word.endswith("*")
    )
