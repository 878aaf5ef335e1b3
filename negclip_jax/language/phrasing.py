"""Captions rewritten without a model: natural English, one negation, correct article and number.

`templates.TEMPLATES` covers many words and orders for a rendered world whose captions are short
noun phrases, and its output is pinned by that world's figures. The templates here fit captions
that people wrote about photos, phrase or sentence.
"""

import hashlib
from collections.abc import Collection, Sequence
from functools import cache
from typing import TypeVar

from negclip_jax.language.nouns import noun
from negclip_jax.language.templates import AFTER, ALONE, BEFORE, Shape, Template, parse, shape_of

T = TypeVar("T")
BEFORE_SHARE = 35  # percent of rewrites whose negation comes first

_AFTER = """
with-no | no | {p} with no {x}
with-no-many | no | {p} with no {xs}
picture-with-no | no | a picture of {o} with no {x}
picture-has-no | no | this picture of {o} has no {x} in it
but-no | no | {p}, but no {x}
no-in-sight | no | {c}, with no {x} in sight
no-many-in-sight | no | {c}, with no {xs} in sight
no-in-view | no | {c}, with no {x} in view
no-around | no | {c}, with no {xs} around
no-anywhere | no | {c}, with no {x} anywhere
no-sign-of | no | {c}, with no sign of {a}
there-is-no | no | {c}, but there {is} no {x}
there-are-no | no | {c}, and there {are} no {xs}
no-to-be-seen | no | {c}, but there {is} no {x} to be seen
no-is-visible | no | {c}, but no {x} {is} visible
no-can-be-seen | no | {c}, but no {x} can be seen
without | without | {p} without {a}
without-any | without | {p} without any {xs}
without-in-sight | without | {c}, without {a} in sight
without-in-picture | without | {c}, without {a} in the picture
without-any-around | without | {c}, without any {xs} around
but-not | not | {p}, but not {a}
is-not-visible | not | {c}, but {some} {is} not visible
are-not-there | not | {c}, but {xs} {are} not there
are-not-in-picture | not | {c}, but {xs} {are} not in the picture
does-not-show | not | this photo of {o} does not show {a}
does-not-include | not | {c}, but the picture does not include {a}
isnt-one | isn't | {c}, but there {isnt} {a}
arent-any | aren't | {c}, but there {arent} any {xs}
isnt-in-sight | isn't | {c}, and there {isnt} {a} in sight
doesnt-show | doesn't | {c}, but the picture doesn't show {a}
doesnt-have | doesn't | this photo of {o} doesn't have {a} in it
dont-see | don't | {c}, but you don't see {a}
cant-see | can't | {c}, but you can't see {a}
cannot-be-seen | cannot | {c}, but {xs} cannot be seen
never-one | never | {c}, with never {a} in sight
nowhere-to-be-seen | nowhere | {c}, but {some} {is} nowhere to be seen
nowhere-in-sight | nowhere | {c}, with {xs} nowhere in sight
there-are-none | none | {c}, and as for {xs}, there {are} none
absent-from | absent | {c}, but {xs} {are} absent from the picture
lacks | lacks | {c}, in a picture that lacks {a}
devoid-of | devoid | {c}, in a scene devoid of {xs}
free-of | free | {c}, in a scene free of {xs}
nobody-in-sight | nobody | {c}, with nobody in sight
nobody-around | nobody | {c}, and there is nobody around
nobody-there | nobody | {c}, but nobody is there
no-one-in-sight | no one | {c}, with no one in sight
no-one-seen | no one | {c}, but no one can be seen
no-one-around | no one | {p} with no one around
"""

_BEFORE = """
no-just | no | no {x}, just {p}
no-only | no | no {xs}, only {p}
no-here-just | no | no {x} here, just {p}
no-visible-only | no | no {x} {is} visible, only {p}
no-is-visible-but | no | no {x} {is} visible, but {s}
no-is-in-sight-but | no | no {x} {is} in sight, but {s}
no-in-sight-before | no | with no {x} in sight, {s}
there-is-no-in | no | there {is} no {x} in this picture of {o}
there-are-no-in | no | there {are} no {xs} in this photo of {o}
no-seen-in | no | no {x} can be seen in this photo of {o}
no-in-picture | no | no {x} in the picture: {c}
there-are-no-here | no | there {are} no {xs} here: {c}
without-before | without | without {a} in sight, {s}
without-any-before | without | without any {xs} around, {s}
picture-without | without | a picture without {a}: {c}
not-just | not | not {a}, just {p}
is-not-in | not | there {is} not {a} in this picture of {o}
are-not-in | not | {xs} {are} not in this picture of {o}
isnt-in | isn't | there {isnt} {a} in this picture of {o}
arent-here | aren't | there {arent} any {xs} here: {c}
doesnt-show-before | doesn't | the picture doesn't show {a}: {c}
dont-see-in | don't | you don't see {a} in this photo of {o}
cant-see-in | can't | you can't see {a} in this picture of {o}
cannot-be-seen-in | cannot | {xs} cannot be seen in this photo of {o}
nowhere-but | nowhere | {some} {is} nowhere to be seen, but {s}
nowhere-in | nowhere | {xs} {are} nowhere to be seen in this picture of {o}
absent-from-this | absent | {xs} {are} absent from this photo of {o}
devoid-before | devoid | a scene devoid of {xs}: {c}
nobody-just | nobody | nobody in sight, just {p}
nobody-but | nobody | nobody is around, but {s}
nobody-in | nobody | there is nobody in this picture of {o}
no-one-in | no one | no one is visible in this photo of {o}
no-one-before | no one | with no one in sight, {s}
"""

_ALONE = """
there-is-no-alone | no | there {is} no {x} in the picture
no-visible-alone | no | no {x} {is} visible
no-many-alone | no | there {are} no {xs} in this photo
picture-with-no-alone | no | a picture with no {x}
without-alone | without | a photo without {a}
not-in-picture-alone | not | {some} {is} not in the picture
isnt-alone | isn't | there {isnt} {a} in the picture
doesnt-alone | doesn't | the picture doesn't show {a}
cant-alone | can't | you can't see {a} in the picture
nowhere-alone | nowhere | {some} {is} nowhere to be seen
absent-alone | absent | {xs} {are} absent from the picture
nobody-alone | nobody | there is nobody in the picture
no-one-alone | no one | no one can be seen
"""

GRAMMAR: tuple[Template, ...] = (
    *parse(_AFTER, AFTER),
    *parse(_BEFORE, BEFORE),
    *parse(_ALONE, ALONE),
)


def rewrite_by_template(
    caption: str, obj: str, seed_key: str, avoid: Collection[str] = ()
) -> tuple[str, str]:
    """The caption rewritten so that it also says that the object is absent.

    Args:
      caption: affirmative, one line.
      obj: the object's name, singular.
      seed_key: the same key gives the same text.
      avoid: template ids not to be used, unless no other fits.
    Returns:
      The text, in the caption's style of capital letter and full stop, and the template's id.
    """
    sides = (AFTER, BEFORE)
    if _number(seed_key, "side") % 100 < BEFORE_SHARE:
        sides = (BEFORE, AFTER)
    known = noun(obj)
    options = [_fitting(side, shape_of(caption), known.human) for side in sides]
    for banned in (frozenset(avoid), frozenset()):
        for fit in options:
            if left := [t for t in fit if t.name not in banned]:
                template = pick(left, seed_key, "template")
                return template.fill(caption, known), template.name
    raise AssertionError("templates with {c} fit every caption")


def state_absence(obj: str, seed_key: str, like: str = "") -> str:
    """A sentence about the object alone: "there is no dog in the picture", styled as `like`."""
    fit = _fitting(ALONE, shape_of(""), noun(obj).human)
    return pick(fit, seed_key, "alone").fill(like, noun(obj))


def pick(options: Sequence[T], seed_key: str, purpose: str) -> T:
    """One of the options, drawn evenly by the hash of key and purpose."""
    return options[_number(seed_key, purpose) % len(options)]


def _number(seed_key: str, purpose: str) -> int:
    digest = hashlib.blake2b(f"{purpose}:{seed_key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


@cache
def _fitting(position: str, shape: Shape, human: bool) -> tuple[Template, ...]:
    return tuple(t for t in GRAMMAR if t.position == position and t.suits(shape, human))
