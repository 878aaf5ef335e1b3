"""The same sentence about another object, and the same sentence without its negation.

A text that denies one thing ("A cat lies on a sofa, with no dog in sight") has three twins: the
denial of another object, and both objects affirmed ("..., with a dog in sight"). Two of the four
are true of a photo, and no word but the object's name tells which. Texts by the grammar get theirs
from templates; the functions here find them in sentences that anybody wrote, and refuse every
sentence for which they are not sure.
"""

import itertools
import re
from typing import NamedTuple

from negclip_jax.language import tables
from negclip_jax.language.inflection import article, noun, singular
from negclip_jax.language.mentions import find_kinds, find_same
from negclip_jax.language.negation import Cue, find_cues, governs
from negclip_jax.language.text import Token, tokenize
from negclip_jax.language.vocabulary import FRAME, is_participle
from negclip_jax.language.wordnet import is_thing

_BE, _EXISTENCE, _FRONT, _ARTICLES = map(tables.words, ("be", "existence", "front", "article"))
_CLAUSE, _SIGHT = tables.words("clause_start"), tables.words("sight")
# "No dog nearby" is true of a photo with a dog at its other end.
_PLACED = {"nearby", "background", "foreground", "surrounding", "alone", "part", "focus", "main"}
_PLACED |= {"presence"}  # "no human presence"
_SCENE = FRAME | _BE | _EXISTENCE | _FRONT | _ARTICLES | {"there", "to", "can", "could"}
_SCENE -= _PLACED
_CONTRAST = {"instead", "just", "only", "nor", "either", "other", "else", "anywhere"}
_OPENS = {"with", "but", "and", "yet", "though", "although", "you", "do", "does", "did"}
_SINGULAR = {"is", "was", "isn't", "wasn't", "appears", "there's"}
_PLURAL = {"are", "were", "aren't", "weren't", "appear"}
_VOID = {"free", "devoid", "void"}
_WITHOUT = {"without", "lacking"} | _VOID
_THIRD = {"have": "has", "do": "does"}
_PLACES = tables.words("place") - {"by"}
_TO_ANOTHER = _PLACES | {"with", "by"}  # "a boy with a cap" may go on about the boy
_SETTLED = {
    *("sits", "stands", "lies", "sit", "stand", "lie", "parked", "seated", "stopped", "placed")
}
_NOT_PLACE = {
    *("and", "with", "that", "to", "for", "another", "other", "each", "himself", "herself"),
    *("themselves", "them"),
}
_NOT_PLACE |= (tables.words("pronoun") | tables.words("owner")) - {"the"} | _CLAUSE | _BE
_AWAY, _LONGEST = 2, 8  # words between a thing and its place, and of the place


class _Denial(NamedTuple):
    """Where a text denies its one object: the object is `tokens[first:last + 1]`."""

    tokens: list[Token]
    cue: Cue
    first: int
    last: int


def _denial(text: str, obj: str) -> _Denial | None:
    """The one denial of a text, if it says of the whole scene that the object is not there."""
    tokens = tokenize(text)
    cues, spans = find_cues(tokens), find_same(obj, tokens)
    if len(cues) != 1 or len(spans) != 1:
        return None
    (cue,), ((first, last),) = cues, spans
    end = next((i for i in range(max(cue.last, last) + 1, len(tokens)) if tokens[i].mark), None)
    begin = next((i for i in range(min(cue.first, first), 0, -1) if tokens[i].mark), 0)
    # "No dog, just a cat" contrasts; "a cat and other pets, with no dog in sight" does not.
    if _CONTRAST.intersection(token.word for token in tokens[begin : end and end + 1]):
        return None
    if cue.word in ("-free", "-less") or not governs(cue, tokens, first, last):
        return None
    if first > cue.last:
        behind, between = last, tokens[cue.last + 1 : first]
    else:
        behind, between = cue.last, tokens[last + 1 : cue.first]
    if not all(token.word in _SCENE for token in between):
        return None
    rest: list[Token] = []
    for before, token in itertools.pairwise(tokens[behind:]):
        ends = token.mark or token.word in _CLAUSE or token.word in ("and", "so")
        # What a "picture of" is of comes after it.
        if ends or (rest and token.word == "of" and before.word in _SIGHT):
            break
        rest.append(token)
    if not all(token.word in _SCENE for token in rest):
        return None
    # "A cake with no candles" is about the cake, "a cake, with no candles" about the photo.
    start = next((i for i in range(cue.first, 0, -1) if tokens[i].mark), 0)
    named = range(first, last + 1)
    opens = [t.word for i, t in enumerate(tokens[start : cue.first], start) if i not in named]
    apart = all(word in _SCENE | _OPENS for word in opens)
    return _Denial(tokens, cue, first, last) if rest or apart else None


def place_of(name: str, caption: str, sure: bool = True) -> str:
    """Where a caption says that a thing is: "in tall grass" for "a giraffe standing in tall grass".

    "" where it does not, or where what it says is not sure to be about the thing. `sure`: in "a boy
    with a cap sitting on a bench" it may be the boy who sits there.
    """
    tokens = tokenize(caption)
    for start, last in find_kinds(name, tokens)[:1]:
        near = range(last + 1, min(last + _AWAY + 2, len(tokens)))
        first = next((i for i in near if tokens[i].word in _PLACES), None)
        if first is None or any(t.mark for t in tokens[last + 1 : first + 1]):
            return ""
        between = [token.word for token in tokens[last + 1 : first]]
        if not all(is_participle(w) or w in _BE or w in _SETTLED for w in between):
            return ""
        if (
            sure
            and between
            and any(
                token.word in _TO_ANOTHER or is_participle(token.word) for token in tokens[:start]
            )
        ):
            return ""
        end = first + 1
        while end < len(tokens):
            word = tokens[end].word
            if tokens[end].mark or word in _NOT_PLACE or is_participle(word) or word.isdigit():
                break
            end += 1
        phrase = tokens[first:end]
        clean = end == len(tokens) or tokens[end].mark or tokens[end].word in ("and", "while", "as")
        if clean and 2 <= len(phrase) <= _LONGEST and is_thing(singular(phrase[-1].word)):
            return caption[phrase[0].start : phrase[-1].end]
    return ""


def of_scene(text: str, obj: str) -> str:
    """The text with what it denies at its end denied of the whole scene, if it was of one thing.

    "A man on a bench without a dog" may have a dog behind the bench; it becomes "... without a dog
    in sight", and so does "without a dog nearby". A text of another form is returned as it is.
    """
    tokens = tokenize(text)
    cues, spans = find_cues(tokens), find_same(obj, tokens)
    if len(cues) != 1 or len(spans) != 1 or _denial(text, obj) is not None:
        return text
    (cue,), ((first, last),) = cues, spans
    between = {token.word for token in tokens[cue.last + 1 : first]}
    behind = [token.word for token in tokens[last + 1 :]]
    if cue.word not in ("no", "without") or behind not in ([], ["nearby"]) or between - _ARTICLES:
        return text
    scene = f"{text[: tokens[last].end]} in sight{text[tokens[-1].end :]}"
    return scene if _denial(scene, obj) is not None else text


def exchanged(text: str, obj: str, other: str) -> str | None:
    """The text saying of `other` what it says of `obj`; None where that is not sure to be English.

    The text denies, of the whole scene, that `obj` is there; names are singular.
    """
    found = _denial(text, obj)
    if found is None:
        return None
    tokens, _, first, last = found
    new, head = noun(other), tokens[last].word
    many = singular(head) != head
    around = {t.word for t in tokens[max(first - 3, 0) : first]}
    around |= {t.word for t in tokens[last + 1 : last + 2]}
    verb = new.are if many else new.is_
    if (around & _SINGULAR and verb != "is") or (around & _PLURAL and verb != "are"):
        return None
    words, start = (new.many if many else new.one), tokens[first].start
    if first and tokens[first - 1].word in ("a", "an"):
        words, start = (new.many if many else new.a), tokens[first - 1].start
    return _put(text, start, tokens[last].end, words)


def affirmed(text: str, obj: str) -> str | None:
    """The text saying that `obj` is there, in the same words otherwise; None as in `exchanged`."""
    found = _denial(text, obj)
    if found is None:
        return None
    tokens, cue, first, last = found
    known, head = noun(obj), tokens[last].word
    name = text[tokens[first].start : tokens[last].end]
    counted = singular(head) == head and not known.a.startswith("any ")
    some = f"{article(name)} {name}" if counted else name
    start, end = tokens[cue.first].start, tokens[cue.last].end
    between = [token.word for token in tokens[cue.last + 1 : first]]
    edited = ""
    after = tokens[cue.last + 1] if cue.last + 1 < len(tokens) else tokens[cue.last]
    bare = [word for word in between if word not in ("a", "an", "any", "single", "visible")]
    if cue.word == "no" and not bare and first > cue.last:
        edited = _put(text, start, tokens[last].end, some)
    elif cue.word == "no" and bare in (["sign", "of"], ["trace", "of"]):
        edited = _put(text, start, tokens[last].end, f"{some} in sight")
    elif bare == (["of"] if cue.word in _VOID else []) and cue.word in _WITHOUT:
        edited = _put(text, start, tokens[last].end, f"with {some}")
    elif cue.word.endswith("n't") or cue.word in ("not", "cannot"):
        if between and between[-1] == "the":
            return None
        if cue.word == "not" and between[:1] in (["a"], ["an"], ["any"]) and not bare:
            edited = _put(text, start, tokens[last].end, some)  # "not a single dog in sight"
        elif between and between[-1] in ("any", "a", "an"):
            text = _put(text, tokens[first - 1].start, tokens[last].end, some)
        before = tokens[cue.first - 1].word if cue.first else ""
        if cue.word in ("doesn't", "don't") or (cue.word == "not" and before in ("does", "do")):
            if cue.word == "not":
                start = tokens[cue.first - 1].start
            verb = after.word
            if cue.word == "doesn't" or before == "does":
                verb = _THIRD.get(verb, f"{verb}s")
            edited = _put(text, start, after.end, verb)
        elif cue.word == "not":
            if before in _BE:
                edited = text[: start - 1] + text[end:]
            elif not edited:
                return None
        elif cue.word in ("can't", "cannot"):
            edited = _put(text, start, end, "can")
        else:
            edited = _put(text, start, end, {"won't": "will"}.get(cue.word, cue.word[:-3]))
    elif cue.word == "nowhere":
        edited = text[:start] + text[end + 1 :]
    elif cue.word in ("absent", "missing") and first < cue.first:
        here = after.word == "from"
        edited = _put(text, start, after.end if here else end, "present in" if here else "present")
    else:
        return None
    # "But there is no dog" becomes "and there is a dog": what stood before is no contrast.
    clause = min(cue.first, first)
    for token in tokens[max(clause - 4, 0) : clause]:
        if token.word in ("but", "yet"):
            edited = _put(edited, token.start, token.end, "and")
    return None if find_cues(tokenize(edited)) else edited


def _put(text: str, start: int, end: int, words: str) -> str:
    """The text with other words from `start` to `end`, with a capital where there was one."""
    begins = start == 0 or text[start - 2] in ".!?"  # elsewhere "TV" has capitals of its own
    if begins and re.match(r"[A-Z][a-z]|[A-Z]\b", text[start:end]):
        words = words[:1].upper() + words[1:]
    return text[:start] + words + text[end:]
