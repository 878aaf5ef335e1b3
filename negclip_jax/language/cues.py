"""Where a text negates, and what: cues of negation, their scope, their position.

A cue governs what follows it ("no dog"), or what precedes it ("the dog is missing"), or either
("does not show a dog", "a dog is not visible"). Governed is only what stands close by, so that
"a man not sitting beside a dog" denies the sitting and not the dog. Rules over words, as in NegEx
(Chapman et al., 2001): fast, and every decision can be explained.
"""

from collections.abc import Sequence
from typing import NamedTuple

from negclip_jax.language.lemmas import WORD, is_content
from negclip_jax.language.senses import concepts
from negclip_jax.language.word_classes import FRAME, word_set

AFTER, BEFORE, ALONE = "after", "before", "alone"

# What a cue may govern: a noun phrase after it, a verb phrase after it or the subject of an
# existence predicate, the subject before it, nothing but people.
NOUN, VERB, SUBJECT, PEOPLE = "noun", "verb", "subject", "people"
LEXICON = {
    "no": NOUN, "without": NOUN, "sans": NOUN, "minus": NOUN, "neither": NOUN, "nor": NOUN,
    "absence": NOUN, "lack": NOUN, "lacks": NOUN, "lacked": NOUN, "lacking": NOUN,
    "devoid": NOUN, "void": NOUN, "bereft": NOUN, "free": NOUN, "empty": NOUN, "clear": NOUN,
    "unoccupied": NOUN, "unaccompanied": NOUN, "uninhabited": NOUN, "unattended": NOUN,
    "not": VERB, "cannot": VERB, "never": VERB, "nothing": VERB,
    "nowhere": SUBJECT, "none": SUBJECT, "missing": SUBJECT, "absent": SUBJECT,
    "nobody": PEOPLE, "noone": PEOPLE, "no-one": PEOPLE,
}  # fmt: skip
# These negate only before these words: "empty of people", but "an empty room".
_NEEDS = {
    "devoid": {"of"}, "void": {"of"}, "bereft": {"of"}, "empty": {"of"}, "clear": {"of"},
    "free": {"of", "from"}, "unoccupied": {"by"}, "unaccompanied": {"by"}, "uninhabited": {"by"},
    "unattended": {"by"},
}  # fmt: skip
# These affirm before these words, or belong to a sign: "no doubt", "nothing but", "no parking".
_AFFIRMS = {
    "no": word_set("doubt matter wonder less fewer sooner"),
    "not": word_set("only just merely simply to unlike"),
    "nothing": {"but", "except"},
}
# "A no parking sign" says nothing of the photo.
_POSTED = word_set("parking smoking entry stopping turn exit trespassing swimming fishing peddling")
_SIGN = word_set("sign signs zone zones area areas signpost signposts")
_FREE = word_set("hands-free care-free duty-free free-range toll-free")  # of nothing
_EXISTENCE = word_set("""
visible present seen found there included shown featured pictured depicted apparent evident
noticeable here anywhere part spotted noticed around located observed captured displayed
available nearby shows see
""")
_SIGHT = word_set("sight view image picture photo photograph scene frame shot")
_BE = word_set("is are was were be being been")
_FRONT = word_set("in from on within at of among throughout the this that our")
# Between a cue and what it governs, these mean that another phrase has begun.
_PHRASE = word_set("""
but and while where which who whose that although though yet as when because however instead
with within near beside next by behind below above under over around along across through
against among between on in at into onto inside outside to for during after before just only it
he she they we you i there here featuring showing
""")
_DIRECT = word_set("with in on at of for")  # "not in a car", but not "not near a car"
_PREDICATE = _BE | word_set("can could may might will would do does did has have had stands sits")
_CLAUSE = word_set("""
but while where which who whose although though yet as when because however instead just only
featuring showing leaving
""")
_ARTICLES = word_set("a an any the its their his her one two three some")
_INVERSION = FRAME | _BE | _FRONT | _ARTICLES | _EXISTENCE | {"there", "to"}


class Token(NamedTuple):
    """A word in lower case without "'s", its place, and the punctuation before it."""

    word: str
    start: int
    end: int
    mark: str


class Cue(NamedTuple):
    """A negation: its word in lower case, what it governs, and its place among the tokens."""

    word: str
    kind: str
    first: int
    last: int


def tokenize(text: str) -> list[Token]:
    """The words of a text with their places."""
    tokens, end = [], 0
    for match in WORD.finditer(text):
        start = match.start()
        mark = text[end:start].strip()
        end = match.end()
        word = match.group().lower().replace("’", "'").removesuffix("'s")
        tokens.append(Token(word, start, end, mark))
    return tokens


def find_cues(tokens: Sequence[Token]) -> list[Cue]:
    """All negations from left to right; "neither ... nor" is one."""
    found: list[Cue] = []
    for i, token in enumerate(tokens):
        word = token.word
        kind = LEXICON.get(word)
        after = tokens[i + 1].word if i + 1 < len(tokens) else ""
        if after in _POSTED and any(token.word in _SIGN for token in tokens[i + 2 : i + 3]):
            continue
        if word.endswith("n't"):
            found.append(Cue(word, VERB, i, i))
        elif word.endswith("-free") and word not in _FREE:
            found.append(Cue("-free", SUBJECT, i, i))
        elif word == "no" and after == "one":
            found.append(Cue("no one", PEOPLE, i, i + 1))
        elif kind and _negates(word, after) and not (word == "nor" and found):
            found.append(Cue(word, kind, i, i))
    return found


def _negates(word: str, after: str) -> bool:
    """Whether a word of the lexicon negates before this next word."""
    if word == "no" and after.isdigit():
        return False  # "bus no. 5"
    return after not in _AFFIRMS.get(word, ()) and (word not in _NEEDS or after in _NEEDS[word])


def governs(cue: Cue, tokens: Sequence[Token], first: int, last: int) -> bool:
    """Whether the cue says that the thing named by tokens first..last is absent."""
    if cue.word == "-free":
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
    if cue.kind == SUBJECT and not _takes_object(cue, words):
        return False
    if cue.kind == PEOPLE and _BE.intersection(words[:1]):
        words = words[1:]  # "nobody is in a car"
    if cue.word in _NEEDS or (cue.kind in (VERB, PEOPLE) and _DIRECT.intersection(words[:1])):
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
    if not _BE.intersection(words) or any(mark.strip(",") for mark in marks):
        return False
    return all(word in _INVERSION for word in words)


def _takes_object(cue: Cue, words: Sequence[str]) -> bool:
    """ "missing a leash", "none of the dogs", "absent a dog, the picture shows"."""
    return cue.word == "missing" or words[:1] == ["of"] or bool(_ARTICLES.intersection(words[:1]))


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
    if cue.word in ("missing", "lacking", "absent") and _ARTICLES.intersection(after[:1]):
        return False  # "a dog missing a leash"
    between = tokens[last + 1 : cue.first]
    if any(token.mark.strip(",") for token in tokens[last + 1 : cue.first + 1]):
        return False
    return len(between) <= 7 and all(_is_light(token.word) for token in between)


def _says_existence(after: Sequence[str]) -> bool:
    for i, word in enumerate(after):
        if word in _EXISTENCE:
            return True
        if word in ("in", "within"):
            return bool(_SIGHT.intersection(after[i + 1 : i + 4]))
        if word not in _BE and word not in ("a", "to", "even") and not word.endswith("ly"):
            return False
    return False


def _is_light(word: str) -> bool:
    """Words that may stand between a subject and what denies it."""
    return (
        word in FRAME or word in _BE or word in _FRONT or word in _EXISTENCE
        or word in ("can", "could", "there", "to", "seems", "remains", "however", "a", "any", "or",
                    "though", "yet", "still", "also")
        or word.endswith("ly")
    )  # fmt: skip


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
        mark = tokens[i].mark
        if mark and mark != "-" and not _as_for(tokens, i):
            return i
        i -= 1
        if tokens[i].word in _CLAUSE or tokens[i].word == "and":
            return i
    return 0


def _as_for(tokens: Sequence[Token], i: int) -> bool:
    return tokens[i].mark == "," and any(token.word == "as" for token in tokens[max(i - 4, 0) : i])


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
