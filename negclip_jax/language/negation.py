"""Where a text negates, and what: cues of negation, their scope, their position.

The lexicon is `data/negation.tsv`. A cue governs what follows it ("no dog"), or what precedes it
("the dog is missing"), or either ("does not show a dog", "a dog is not visible"). Governed is only
what stands close by, so that "a man not sitting beside a dog" denies the sitting and not the dog.
Rules over words, as in NegEx (Chapman et al., 2001): fast, and every decision can be explained.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from negclip_jax.language import tables
from negclip_jax.language.text import Token, tokenize
from negclip_jax.language.vocabulary import FRAME, concepts, is_content
from negclip_jax.language.wordnet import is_thing

AFTER, BEFORE, ALONE = "after", "before", "alone"

# What a cue may deny: a noun phrase after it, a verb phrase after it or the subject of an
# existence predicate, the subject before it, nothing but people.
NOUN, VERB, SUBJECT, PEOPLE = "noun", "verb", "subject", "people"


class _Entry(NamedTuple):
    """A row of the lexicon."""

    kind: str
    needs: frozenset[str]
    affirms: frozenset[str]
    family: str


_LEXICON = {
    word: _Entry(kind, frozenset(needs.split()), frozenset(affirms.split()), family)
    for word, kind, needs, affirms, family in tables.rows("negation")
}
_POSTED, _SIGN, _FREE = map(tables.words, ("posted", "sign", "free_of_nothing"))
_EXISTENCE, _SIGHT, _FRONT = map(tables.words, ("existence", "sight", "front"))
_BE, _ARTICLES, _DIRECT = map(tables.words, ("be", "article", "direct"))
_PHRASE, _CLAUSE = map(tables.words, ("phrase_start", "clause_start"))
_PREDICATE = _BE | tables.words("predicate")
_INVERSION = FRAME | _BE | _FRONT | _ARTICLES | _EXISTENCE | {"there", "to"}
# Words that may stand between a subject and what denies it.
_LIGHT = FRAME | _BE | _FRONT | _EXISTENCE | tables.words("light")


class Cue(NamedTuple):
    """A negation: its word in lower case, what it denies, and its place among the tokens.

    `family` is the word under which statistics count it ("isn't" under "not"); "" for none.
    """

    word: str
    kind: str
    first: int
    last: int
    family: str


def _entry(word: str) -> _Entry:
    return _LEXICON.get(word, _LEXICON["n't"])


def _names_thing(word: str) -> bool:
    return bool(concepts(word)) or is_thing(word)


def _lexical(tokens: Sequence[Token]) -> Iterator[Cue]:
    """The words of the lexicon among the tokens, whatever stands around them."""
    for i, token in enumerate(tokens):
        word, last = token.word, i
        if word.endswith("n't"):
            entry = _LEXICON["n't"]
        elif word.endswith("-free") and word not in _FREE:
            word, entry = "-free", _LEXICON["-free"]
        elif word.endswith("less") and word not in _FREE and _names_thing(word[:-4]):
            word, entry = "-less", _LEXICON["-less"]  # "hatless", but not "endless"
        elif word == "no" and i + 1 < len(tokens) and tokens[i + 1].word == "one":
            word, last, entry = "no one", i + 1, _LEXICON["no one"]
        else:
            entry = _LEXICON.get(word)
        if entry is None:
            continue
        after = tokens[i + 1].word if i + 1 < len(tokens) else ""
        if not entry.needs or after in entry.needs:
            yield Cue(word, entry.kind, i, last, entry.family)


def find_cues(tokens: Sequence[Token]) -> list[Cue]:
    """All negations from left to right, by what they mean: "neither ... nor" is one, and "no
    doubt", "nothing but", "no. 5" and "a no parking sign" are none.
    """
    found: list[Cue] = []
    for cue in _lexical(tokens):
        follows = [token.word for token in tokens[cue.first + 1 : cue.first + 3]]
        after = follows[0] if follows else ""
        if after in _POSTED and _SIGN.intersection(follows[1:]):
            continue
        affirms = after in _entry(cue.word).affirms
        numbered = cue.word == "no" and after.isdigit()
        if cue.kind and not affirms and not numbered and not (cue.word == "nor" and found):
            found.append(cue)
    return found


def negating_words(tokens: Sequence[Token]) -> list[Cue]:
    """All words of a known family that negate, from left to right, whatever they mean where they
    stand: for statistics that must not depend on rules of scope.

    "Free of" is one. None is the "no." of a number, nor what is quoted ("a 'no parking' sign").
    """
    found = []
    for cue in _lexical(tokens):
        after = tokens[cue.last + 1] if cue.last + 1 < len(tokens) else None
        number = cue.word == "no" and after and after.mark == "." and after.word[0].isdigit()
        quoted = tokens[cue.first].mark.endswith(("'", "’"))
        if cue.family and not number and not quoted:
            found.append(cue._replace(last=cue.last + (cue.word == "free")))
    return found


def governs(cue: Cue, tokens: Sequence[Token], first: int, last: int) -> bool:
    """Whether the cue says that the thing named by tokens first..last is absent."""
    if cue.word in ("-free", "-less"):
        return first <= cue.first <= last or first == cue.first
    if first > cue.last:
        return _follows(cue, tokens, first, last)
    return last < cue.first and _precedes(cue, tokens, last)


def _follows(cue: Cue, tokens: Sequence[Token], first: int, last: int) -> bool:
    between = tokens[cue.last + 1 : first]
    if len(between) > 8 or _modifies(tokens, last):
        return False
    words = [token.word for token in between]
    marks = [token.mark for token in tokens[cue.last + 1 : first + 1]]
    if _inverted(cue, words, marks):
        return True
    # "missing a leash", "none of the dogs", "absent a dog, the picture shows"
    takes_object = cue.word == "missing" or (_ARTICLES | {"of"}).intersection(words[:1])
    if cue.kind == SUBJECT and not takes_object:
        return False
    if cue.kind == PEOPLE and _BE.intersection(words[:1]):
        words = words[1:]  # "nobody is in a car"
    if _entry(cue.word).needs or (cue.kind in (VERB, PEOPLE) and _DIRECT.intersection(words[:1])):
        words = words[1:]
    if any(marks) and not _is_list(tokens, cue.last + 1, last):
        return False
    if cue.kind == NOUN and _PREDICATE.intersection(words):
        return False
    return len(words) <= 6 and not _PHRASE.intersection(words)


def _inverted(cue: Cue, words: Sequence[str], marks: Sequence[str]) -> bool:
    """ "Absent from the scene is a dog", "not pictured is a dog", "one thing is absent: a dog"."""
    if cue.kind not in (SUBJECT, VERB) and cue.word not in ("lacking", "absence"):
        return False
    if marks[0] == ":" and _ARTICLES.issuperset(words):
        return True
    marked = any(mark.strip(",") for mark in marks)
    return bool(_BE.intersection(words)) and not marked and _INVERSION.issuperset(words)


def _modifies(tokens: Sequence[Token], last: int) -> bool:
    """Whether the word only describes the next: the "dog" of "no dog collar"."""
    if last + 1 >= len(tokens) or tokens[last + 1].mark:
        return False
    after = tokens[last + 1].word
    return is_content(after) and bool(concepts(after))


def _is_list(tokens: Sequence[Token], first: int, last: int) -> bool:
    """Whether commas only separate what is denied: "no fork, knife or spoon"."""
    words = [token.word for token in tokens[first : last + 6]]
    marks = {token.mark for token in tokens[first : last + 1]} - {""}
    return marks == {","} and ("or" in words or "nor" in words) and not _CLAUSE.intersection(words)


def _precedes(cue: Cue, tokens: Sequence[Token], last: int) -> bool:
    if cue.kind not in (SUBJECT, VERB) and cue.word not in ("lacking", "free"):
        return False
    after = [token.word for token in tokens[cue.last + 1 : cue.last + 5]]
    if cue.kind == VERB and not _says_existence(after):
        return False
    has_object = _ARTICLES.intersection(after[:1]) and not tokens[cue.last + 1].mark
    if cue.word in ("missing", "lacking", "absent") and has_object:
        return False  # "a dog missing a leash", but "a dog is missing: a leash on a road"
    between = tokens[last + 1 : cue.first]
    if any(token.mark.strip(",") for token in tokens[last + 1 : cue.first + 1]):
        return False
    return len(between) <= 7 and all(t.word in _LIGHT or t.word.endswith("ly") for t in between)


def _says_existence(after: Sequence[str]) -> bool:
    for i, word in enumerate(after):
        if word in _EXISTENCE:
            return True
        if word in ("in", "within"):
            return bool(_SIGHT.intersection(after[i + 1 : i + 4]))
        if word not in _BE and word not in ("a", "to", "even") and not word.endswith("ly"):
            return False
    return False


def position(cue: Cue, tokens: Sequence[Token]) -> str:
    """Whether the text affirms something before the negation ("after"), behind it, or nothing."""
    first = cue.first
    after = [token.word for token in tokens[cue.last + 1 : cue.last + 5]]
    if cue.kind == SUBJECT or (cue.kind == VERB and _says_existence(after)):
        first = _clause_start(tokens, cue.first)
    if any(is_content(token.word) for token in tokens[:first]):
        return AFTER
    rest = tokens[_clause_end(tokens, cue.last) :]
    return BEFORE if any(is_content(token.word) for token in rest) else ALONE


def _clause_start(tokens: Sequence[Token], i: int) -> int:
    while i > 0:
        mark, before = tokens[i].mark, [token.word for token in tokens[max(i - 4, 0) : i]]
        as_for = mark == "," and "as" in before  # "as for dogs, there are none"
        if mark and mark != "-" and not as_for:
            return i
        i -= 1
        if tokens[i].word in _CLAUSE or tokens[i].word == "and":
            return i
    return 0


def _clause_end(tokens: Sequence[Token], i: int) -> int:
    for j in range(i + 1, len(tokens)):
        if tokens[j].word in _CLAUSE or tokens[j].mark.strip("-'"):
            return j
        follows = tokens[j + 1].word if j + 1 < len(tokens) else ""
        if tokens[j].word == "and" and follows in _ARTICLES:
            return j
        if tokens[j].word in _SIGHT and follows == "of":  # "no dog in this photo of a street"
            return j
    return len(tokens)


def cue_of(text: str) -> tuple[str, str] | None:
    """The first cue of negation and its position to what the text affirms, None without a cue.

    The cue is a word in lower case ("no", "without", "isn't"); the position is "before" ("no dog,
    just a bus"), "after" ("a bus with no dog") or "alone" ("there is no dog").
    """
    tokens = tokenize(text)
    cues = find_cues(tokens)
    return (cues[0].word, position(cues[0], tokens)) if cues else None
