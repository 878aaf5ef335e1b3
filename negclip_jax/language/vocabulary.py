"""What words mean: closed classes, synonyms, and which words are content.

The thesaurus is small: COCO's 80 categories (`data/categories.tsv`) with every word by which a
caption may mention them, and other things of everyday scenes (`data/things.tsv`), grouped by
sameness alone, a few with kinds (`data/kinds.tsv`). `mentions` asks WordNet as well. Rules need
different answers, so three relations are told apart:

- *same*: "sofa" and "couch". "No sofa" says "no couch", and the other way round.
- *kind*: "kitten" of "cat". A kitten is a cat, but "no kitten" does not say "no cat".
- *wider*: "computer" for "laptop". Mentioning it hints at the laptop and proves nothing.
"""

from functools import cache

from negclip_jax.language import tables
from negclip_jax.language.inflection import singular, stem
from negclip_jax.language.text import WORD

STOP = tables.words("stop")
FRAME = tables.words("frame")
ABSTRACT = tables.words("abstract")
_ING_NOUNS = tables.words("ing_noun")

# COCO's categories with all other words that mention them.
CATEGORIES = {
    name: frozenset(" ".join(columns).split()) for name, *columns in tables.rows("categories")
}
_SAME = {name: frozenset((name, *same.split())) for name, same, *_ in tables.rows("categories")}
_WIDER = {name: frozenset(wider.split()) for name, *_, wider in tables.rows("categories")}
_THINGS = [tuple(line.split(", ")) for (line,) in tables.rows("things")]
_KINDS = {name: frozenset(words.split(", ")) for name, words in tables.rows("kinds")}
_EQUAL = {word: frozenset(group) for group in _THINGS for word in group}
_EQUAL |= {name: group for name, group in _SAME.items() if len(group) > 1}
_CANONICAL = {word: name for name, group in _SAME.items() for word in group}
_CANONICAL |= {word: group[0] for group in _THINGS for word in group if word not in CATEGORIES}


@cache
def same(name: str) -> frozenset[str]:
    """The words, singular, that mean exactly this thing; the name is one of them."""
    return _EQUAL.get(name, frozenset()) | {name}


@cache
def kinds(name: str) -> frozenset[str]:
    """Words, singular, that prove the thing is there: the same, and kinds of it."""
    more = CATEGORIES.get(name, frozenset()) | _KINDS.get(name, frozenset())
    return same(name) | (more - wider(name))


def wider(name: str) -> frozenset[str]:
    """Words, singular, that may stand for the thing and may stand for another."""
    return _WIDER.get(name, frozenset())


def canonical(name: str) -> str:
    """One name for all that mean the same: "sofa" -> "couch", "road" -> "street"."""
    return _CANONICAL.get(name, name)


@cache
def _things() -> dict[str, frozenset[str]]:
    """Every known word, singular, with the names of the things it may stand for."""
    table: dict[str, set[str]] = {}
    for name in CATEGORIES:
        for word in kinds(name) | wider(name):
            table.setdefault(word, set()).add(name)
    for group in _THINGS:
        for word in group:
            table.setdefault(word, set()).add(group[0])
    return {word: frozenset(names) for word, names in table.items()}


def concepts(word: str) -> frozenset[str]:
    """The things that a word, singular or plural, may stand for; empty if none is known."""
    table = _things()
    return table.get(word) or table.get(singular(word)) or frozenset()


@cache
def is_content(word: str) -> bool:
    """Whether a word says something about what the photo shows."""
    return word not in STOP and word not in FRAME and len(word) > 1 and "n't" not in word


def is_participle(word: str) -> bool:
    """Whether a word in -ing is a form of a verb: "riding", but not "building" or "king"."""
    known = word in _ING_NOUNS or " " in word or concepts(word)
    return word.endswith("ing") and len(word) > 4 and not known


def content(text: str) -> list[str]:
    """The words of a text, in lower case, that say something about what the photo shows."""
    return [word for word in WORD.findall(text.lower()) if is_content(word)]


@cache
def related(first: str, second: str) -> bool:
    """Whether two words say about the same: one stem, one thing, or one inside the other."""
    a, b = stem(first), stem(second)
    things, others = concepts(first), concepts(second)
    if a == b or things & others:
        return True
    if things and others:  # "car" is no "carpet"
        return False
    short, long = sorted((a, b), key=len)
    return len(short) > 2 and (long.startswith(short) or (len(short) > 4 and short[:5] == long[:5]))
