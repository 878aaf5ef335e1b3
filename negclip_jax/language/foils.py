"""Captions that are false of a photo: they deny something that it shows."""

import re
from collections.abc import Sequence

from negclip_jax.language.cues import Token, tokenize
from negclip_jax.language.lemmas import is_participle
from negclip_jax.language.mentions import find_kinds, mentioned
from negclip_jax.language.phrasing import pick, rewrite_by_template, state_absence
from negclip_jax.language.senses import concepts
from negclip_jax.language.word_classes import STOP, word_set

_PREPOSITIONS = word_set("on in at near beside behind under inside outside next by")
_DETERMINERS = word_set("a an the his her its their")
_AMOUNTS = word_set("some two three four several many")
# Verbs of captions in the third person, with their base; only behind a noun are they verbs.
_VERBS = word_set("""
stand sit walk ride hold play lay lie look eat rest pose run jump hang lean wait drive fly wear
carry drink sleep swim surf ski skate throw catch hit swing cross travel graze float watch cut
stare talk show display contain feature use cook prepare smile perform enjoy serve
""")


def _third_person(base: str) -> str:
    if base.endswith(("s", "x", "ch", "sh", "o")):
        return f"{base}es"
    if base.endswith("y") and base[-2] not in "aeiou":
        return f"{base[:-1]}ies"
    return f"{base}s"


_BASES = {_third_person(base): base for base in _VERBS}


def foil(caption: str, present: str, seed_key: str) -> str:
    """A caption that is false of the photo: it negates something that the photo shows.

    Where the caption names the object, it is changed as little as possible ("a man with a dog" to
    "a man without a dog", "is riding a horse" to "is not riding a horse"), so that nothing but the
    negation tells it from the truth; "a man with a dog, with no dog in sight" would betray itself
    by its text alone. Where no such change is known, it is a statement about the object.

    Args:
      caption: affirmative and true of the photo.
      present: name of an object that is in the photo, singular.
      seed_key: the same key gives the same text.
    """
    if not mentioned(present, [caption]):
        return rewrite_by_template(caption, present, seed_key)[0]
    tokens = tokenize(caption)
    edits = [text for edit in _EDITS if (text := edit(caption, tokens, present)) is not None]
    if edits and find_kinds(present, tokens):
        return pick(edits, seed_key, "edit")
    return state_absence(present, seed_key, caption)


def _without(caption: str, tokens: Sequence[Token], present: str) -> str | None:
    """ "With a dog" to "without a dog", also in a list: "without a fork, a knife and a dog"."""
    for first, _ in find_kinds(present, tokens):
        for i in range(first - 1, max(first - 12, 0), -1):
            if tokens[i].word == "with":
                before = tokens[i - 1].word
                if before.endswith("ed") or not concepts(before):
                    break  # "filled with apples", "laden with"
                article = tokens[i + 1]
                if article.word in _AMOUNTS:
                    return _cut(caption, tokens[i].start, article.end, "without any")
                return _cut(caption, tokens[i].start, tokens[i].end, "without")
            if tokens[i].word in STOP - _DETERMINERS - _AMOUNTS - {"and"}:
                break
    return None


def _deny_existence(caption: str, tokens: Sequence[Token], present: str) -> str | None:
    """ "There is a dog" to "there is no dog"."""
    match = re.search(
        r"\bthere (?:is|are)(?P<some>(?: an?| some| several| many| two| three| a few| a lot of)?) ",
        caption,
        re.IGNORECASE,
    )
    return match and _cut(caption, match.start("some"), match.end("some"), " no")


def _deny_action(caption: str, tokens: Sequence[Token], present: str) -> str | None:
    """ "Is riding", "riding", "rides", "on a horse" to "is not riding", "not riding" and so on."""
    for i in range(1, len(tokens)):
        before, token = tokens[i - 1], tokens[i]
        if token.mark or not concepts(before.word):
            continue
        follows = tokens[i + 1] if i + 1 < len(tokens) else token
        if token.word in ("is", "are") and follows.word not in STOP - _PREPOSITIONS:
            return _cut(caption, token.end, token.end, " not")
        if token.word in _BASES:
            return _cut(caption, token.start, token.end, f"does not {_BASES[token.word]}")
        if is_participle(token.word) or token.word in _PREPOSITIONS:
            return _cut(caption, token.start, token.start, "not ")
    return None


def _cut(text: str, start: int, end: int, replacement: str) -> str:
    return text[:start] + replacement + text[end:]


_EDITS = (_without, _deny_existence, _deny_action)
