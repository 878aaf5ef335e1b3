"""Captions that are false of a photo: they deny something that it shows."""

import re
from collections.abc import Iterator, Sequence

from negclip_jax.language import tables
from negclip_jax.language.grammar import NATURAL, Grammar, Template, in_style, pick
from negclip_jax.language.inflection import noun
from negclip_jax.language.mentions import find_kinds, mentioned
from negclip_jax.language.negation import AFTER, ALONE, find_cues
from negclip_jax.language.text import Token, tokenize
from negclip_jax.language.vocabulary import STOP, concepts, is_participle

_PREPOSITIONS, _DETERMINERS, _AMOUNTS = map(tables.words, ("place", "foil_determiner", "amount"))


def _third_person(base: str) -> str:
    if base.endswith(("s", "x", "ch", "sh", "o")):
        return f"{base}es"
    if base.endswith("y") and base[-2] not in "aeiou":
        return f"{base[:-1]}ies"
    return f"{base}s"


# Verbs of captions in the third person, with their base; only behind a noun are they verbs.
_BASES = {_third_person(base): base for base in tables.words("verb")}


def foil(caption: str, present: str, seed_key: str, grammar: Grammar = NATURAL) -> str | None:
    """A caption that is false of the photo: it negates something that the photo shows.

    Where the caption names the object, it is changed as little as possible ("a man with a dog" to
    "a man without a dog", "is riding a horse" to "is not riding a horse"), so that nothing but the
    negation tells it from the truth; "a man with a dog, with no dog in sight" would betray itself
    by its text alone. Where no such change is known, it is a statement about the object.

    None where the grammar holds out every way to say it. `caption` is affirmative and true of the
    photo, `present` is in it, singular; the same `seed_key` gives the same text.
    """
    if not mentioned(present, [caption]):
        rewritten = grammar.rewrite(caption, present, seed_key)
        return rewritten and rewritten[0]
    tokens = tokenize(caption)
    edits = [text for edit in _EDITS if (text := edit(caption, tokens, present)) is not None]
    if grammar.hold_out:
        banned = set(grammar.hold_out)
        edits = [t for t in edits if banned.isdisjoint(c.word for c in find_cues(tokenize(t)))]
    if edits and find_kinds(present, tokens):
        return pick(edits, seed_key, "edit")
    return grammar.statement(present, seed_key, caption)


def template_foils(
    caption: str,
    absent: str,
    present: Sequence[str],
    template: Template,
    seed_key: str,
    grammar: Grammar,
) -> Iterator[str]:
    """False captions in the words of a pair, so that no word tells them from the truth.

    Each object that is there is negated by the pair's own template, those first that the caption
    does not mention: "a dog without a dog" would be told apart by its text alone. For what it
    mentions, there are statements, and the two objects of the pair with their roles exchanged
    ("a cat" absent, "a dog" present: "a cat but no dog").

    `caption`, `absent` and `template` are the pair's; `present` comes in the order of choice.
    """
    fresh = [name for name in present if not mentioned(name, [caption])]
    for i, name in enumerate([*fresh, *(name for name in present if name not in fresh)]):
        known = noun(name)
        fits = template.fits(caption, known.human)
        if fits and (template.position == ALONE or name in fresh):
            yield template.fill(caption, known)
            continue
        base, position = (noun(absent).some, AFTER) if i % 2 else ("", ALONE)
        if options := grammar.fitting(position, base, known.human):
            yield grammar.draw(options, f"{seed_key}/{name}", "foil").fill(base, known)


def affirm(caption: str, absent: str, seed_key: str, alone: bool) -> str:
    """A false caption without a negation: that the absent object is there, beside the caption or
    `alone`.
    """
    form = pick(_AFFIRMED_ALONE if alone else _AFFIRMED, seed_key, "affirm")
    return in_style(caption, form, a=noun(absent).some)


_AFFIRMED = ("{c} with {a}", "{c} and {a}", "{c}, and there is {a}", "there is {a}", "{a}")
_AFFIRMED_ALONE = ("there is {a}", "{a}", "a picture of {a}")


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
