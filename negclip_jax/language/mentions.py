"""Where a text names an object: by itself, its plural, another word for it, or a kind of it."""

import re
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache

from negclip_jax.language import tables, wordnet
from negclip_jax.language.inflection import plural, singular, stem
from negclip_jax.language.names import object_name
from negclip_jax.language.text import Token, tokenize
from negclip_jax.language.vocabulary import (
    CATEGORIES,
    FRAME,
    STOP,
    concepts,
    is_participle,
    kinds,
    same,
    wider,
)

Span = tuple[int, int]  # first and last token

# Words around a word that make another thing of it: a hot dog is no dog, a bus stop no bus.
_OTHERS = {
    word: (frozenset(before.split()), frozenset(behind.split()))
    for word, before, behind in tables.rows("compounds")
}
# Before an animal or a vehicle these are no people: "a baby elephant", "a passenger train".
_AGES = tables.words("age")
_COLOURS = tables.words("colour")
_NO_THINGS = _COLOURS | FRAME  # at the end of a phrase: "dressed in red", "a close up"
_BEFORE_NOUNS = frozenset({"and", "or"}).union(
    *map(tables.words, ("determiner", "preposition", "number", "article", "place"))
)
_WITHOUT = ("-free", "less")
# What people do that hints at a thing, and names none: "a man skiing" may have skis.
_DOING = {name: words.split() for name, words in tables.rows("doings")}


@cache
def _verbs() -> frozenset[str]:
    return frozenset(map(stem, tables.words("verb")))  # `stem` reads WordNet: not on import


class _Forms:
    """The word sequences that name something, for a search over tokens."""

    def __init__(self, names: Iterable[str], stems: Iterable[str] = ()):
        forms = {form.lower() for name in names for form in (name, plural(name))}
        phrases = {tuple(form.split()) for form in forms}
        self.single = {phrase[0] for phrase in phrases if len(phrase) == 1}
        self.multiple: dict[str, list[tuple[str, ...]]] = {}
        for phrase in sorted(phrases, key=len, reverse=True):
            if len(phrase) > 1:
                self.multiple.setdefault(phrase[0], []).append(phrase)
        self.stems = frozenset(stems)
        self.starts = self.single | self.multiple.keys()

    def find(self, words: Sequence[str]) -> list[Span]:
        """The spans of words that name the thing, from left to right."""
        if not self.stems and self.starts.isdisjoint(words):  # nearly always
            without = (i for i, word in enumerate(words) if word.endswith(_WITHOUT))
            return [(i, i) for i in without if self._is_free_of(words[i])]
        spans, i = [], 0
        while i < len(words):
            length = self._match(words, i)
            if length:
                spans.append((i, i + length - 1))
            i += length or 1
        return spans

    def _match(self, words: Sequence[str], i: int) -> int:
        """How many words from the i-th on name the thing; 0 if they do not."""
        word = words[i]
        for phrase in self.multiple.get(word, ()):
            if tuple(words[i : i + len(phrase)]) == phrase:
                return len(phrase)
        if word in self.single:
            return int(not _is_other_thing(words, i))
        return int(self._is_free_of(word) or (bool(self.stems) and stem(word) in self.stems))

    def _is_free_of(self, word: str) -> bool:
        return any(word.endswith(end) and word.removesuffix(end) in self.single for end in _WITHOUT)


def _is_other_thing(words: Sequence[str], i: int) -> bool:
    """Whether the words around the i-th make another thing of it."""
    one = singular(words[i])
    follows = words[i + 1] if i + 1 < len(words) else ""
    before, behind = _OTHERS.get(one, ((), ()))
    if follows in behind or (i and words[i - 1] in before):
        return True
    things = concepts(follows)
    if one == "orange":  # the colour: "an orange cat", "orange and white"
        around = {*words[max(i - 2, 0) : i], *words[i + 1 : i + 3]}
        return bool(things) or not _COLOURS.isdisjoint(around)
    return one in _AGES and bool(things) and "person" not in things


@lru_cache(maxsize=100_000)
def _forms(obj: str, sense: str) -> _Forms:
    # "running" of a question is denied by "does not run".
    verbs = [stem(obj)] if re.fullmatch(r"\w+(ing|ed)", obj) else []
    if sense == "name":
        return _Forms([obj])
    if sense == "same":
        return _Forms(same(obj), verbs)
    known = kinds(obj) | _more_kinds(obj)
    if sense == "kind":
        return _Forms(known, verbs)
    if obj not in CATEGORIES:
        # The other thing that the word may mean, and what a shoe is called that may be a loafer.
        known |= wordnet.kinds(obj, senses=2) | wordnet.wider(obj)
    # "A ball" may be the tennis ball, but "a dog" is no hot dog.
    head = () if obj in _INDIVISIBLE else (obj.rpartition(" ")[2],)
    return _Forms({*known, *wider(obj), *head, *_DOING.get(obj, ())}, verbs)


def _more_kinds(obj: str) -> frozenset[str]:
    """WordNet's words for kinds of a thing, without those that mostly mean something else."""
    found = frozenset().union(*map(wordnet.kinds, same(obj) if obj not in CATEGORIES else [obj]))
    if obj == "person":  # "a red", "a monitor" and "a second" are people too
        found = frozenset(w for w in found if _AGENT.search(w) and wordnet.is_person(w))
        found = frozenset(w for w in found if concepts(w) <= {"person"})
    if obj in CATEGORIES:  # a "hot dog" is no sandwich, a "toilet bowl" no bowl
        found -= wider(obj) | (CATEGORIES.keys() - {obj})
        found = frozenset(n for n in found if not _is_other_thing(n.split(), n.count(" ")))
    return found


_AGENT = re.compile(
    r"(er|or|ist|ian|eer|ess|man|woman|mother|father|smith|wright|ant|ent|ee|mate|herd)$"
)
_INDIVISIBLE = {
    "hot dog", "teddy bear", "traffic light", "fire hydrant", "cell phone", "stop sign",
}  # fmt: skip


def find_same(obj: str, tokens: Sequence[Token]) -> list[Span]:
    """Where tokens name the object itself: its name, plural or an equal word."""
    return _forms(obj, "same").find([token.word for token in tokens])


def find_kinds(obj: str, tokens: Sequence[Token]) -> list[Span]:
    """Where tokens name the object or a kind of it: a "kitten" for "cat"."""
    return _forms(obj, "kind").find([token.word for token in tokens])


@cache
def _first_words() -> dict[str, list[str]]:
    """The words that a name of a category or of a kind of it begins with, to the categories."""
    found: dict[str, list[str]] = {}
    for name in CATEGORIES:
        for word in _forms(name, "kind").starts:
            found.setdefault(word, []).append(name)
    return found


_TOWARDS = {"at", "for", "into", "toward", "towards"}


def named_things(caption: str) -> dict[str, str]:
    """What a caption names, with the words for it: {"person": "men", "street": "street"}.

    COCO's categories by their names and kinds of them ("a vehicle" may be no car), other things by
    the nouns that phrases end in. A word of several senses may mean something else.
    """
    tokens = tokenize(caption)
    words = [token.word for token in tokens]
    found, spans = {}, set()
    for name in sorted({name for word in words for name in _first_words().get(word, ())}):
        for first, last in _forms(name, "kind").find(words):
            found.setdefault(name, " ".join(words[first : last + 1]))
            spans.update(range(first, last + 1))
    # Phrases: content words in a row behind a determiner, a preposition or a mark. A verb at the
    # end is none of it: "the children ride".
    phrase: list[int] = []
    for i in range(len(tokens) + 1):
        inside = i < len(tokens) and not (words[i] in STOP or is_participle(words[i]))
        if phrase and not (inside and not tokens[i].mark):
            while len(phrase) > 1 and stem(words[phrase[-1]]) in _verbs():
                phrase.pop()
            first, last = phrase[0], phrase[-1]
            begins = not first or tokens[first].mark or words[first - 1] in _BEFORE_NOUNS
            # "Two dogs looking up at a camera": it is not in the photo.
            poses = words[last] == "camera" and words[max(first - 2, 0)] in _TOWARDS
            if begins and not poses and last not in spans and words[last] not in _NO_THINGS:
                pair = " ".join(words[max(first, last - 1) : last + 1])
                for text in dict.fromkeys((pair, words[last])):  # "clock tower", not any tower
                    name = object_name(text) if wordnet.is_thing(singular(text)) else None
                    if name is not None:
                        found.setdefault(name, text)
                        break
            phrase = []
        if inside:
            phrase.append(i)
    return found


def named_categories(caption: str) -> set[str]:
    """COCO's categories that a caption names by their own name: a "vehicle" may be no car."""
    words = _words(caption)
    return {name for name in CATEGORIES if _forms(name, "name").find(words)}


def mentioned(obj: str, captions: Iterable[str]) -> bool:
    """Whether any caption may be speaking of the object, by any word, also a wider one.

    Errs on the side of yes: an object that is mentioned is never said to be absent.
    """
    forms = _forms(obj, "wider")
    return any(forms.find(_words(text)) for text in captions)


@lru_cache(maxsize=10_000)
def _words(text: str) -> list[str]:
    return [token.word for token in tokenize(text)]
