"""A grammar of negations: templates with many cues and positions, and the filling of them.

A template rewrites a caption so that it also says that an object is absent. Its text uses

- `{c}`: the caption, `{p}`: the caption where it must be a noun phrase ("a bus on a road"), `{o}`:
  the same after "picture of", or `{s}`: the caption where it must be a sentence ("a man is here");
  none of them in statements that stand alone,
- `{x}`, `{xs}`: the object after "no", singular and plural ("dog", "dogs"; "scissors"),
- `{a}`: the object with its article ("a dog", "an apple", "any broccoli"), `{some}` as the
  subject of a sentence ("a dog", "broccoli"),
- `{is}`, `{isnt}` agree with `{x}`, `{are}`, `{arent}` with `{xs}`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from negclip_jax.language.nouns import Noun

AFTER, BEFORE, ALONE = "after", "before", "alone"


@dataclass(frozen=True)
class Template:
    """One way to negate: the `cue` word, its `position` to the caption, and the text.

    `people` templates ("nobody") fit human objects only, the others any object.
    """

    name: str
    cue: str
    position: str
    text: str
    people: bool = False

    def fits(self, caption: str, noun: Noun) -> bool:
        """Whether the filled template would be grammatical."""
        return self.suits(shape_of(caption), noun.human)

    def suits(self, shape: "Shape", human: bool) -> bool:
        """Whether it fits captions of this shape and objects that are, or are not, human."""
        slots = [slot for slot in ("{p}", "{o}", "{s}") if slot in self.text]
        return (
            (human or not self.people)
            and (shape.phrase or not {"{p}", "{o}"}.intersection(slots))
            and (shape.sentence or "{s}" not in slots)
            and not (shape.picture and "{o}" in slots)
        )

    def fill(self, caption: str, noun: Noun) -> str:
        """The rewritten caption, in the caption's own style of capital letter and full stop."""
        return in_style(caption, self.text, **noun.slots)


def in_style(caption: str, text: str, **slots: str) -> str:
    """The text with its slots filled, with capital letter and full stop where the caption has them.

    `{c}`, `{p}`, `{o}` and `{s}` stand for the caption as it reads inside a sentence.
    """
    base, capital, stop = _style(caption)
    filled = text.format(c=base, p=base, o=base, s=base, **slots)
    if capital:
        filled = filled[0].upper() + filled[1:]
    return f"{filled}." if stop else filled


class Shape(NamedTuple):
    """What decides which templates fit a caption."""

    phrase: bool  # surely a noun phrase about one thing
    sentence: bool  # surely a sentence
    picture: bool  # said of the picture itself


@lru_cache(maxsize=4096)
def shape_of(caption: str) -> Shape:
    """The shape of a caption."""
    return Shape(is_phrase(caption), is_sentence(caption), is_about_picture(caption))


def is_phrase(caption: str) -> bool:
    """Whether a caption is surely a noun phrase about one thing and not a sentence."""
    return not _VERB.search(caption) and not re.search(r"[.;:]\s", caption.strip())


def is_sentence(caption: str) -> bool:
    """Whether a caption is surely a sentence: it has a finite verb outside relative clauses."""
    return bool(_FINITE.search(caption)) and not re.search(r"[.;:]\s", caption.strip())


def is_about_picture(caption: str) -> bool:
    """Whether a caption speaks of the picture itself: "a close up view of a pizza"."""
    return bool(_PICTURE.match(caption))


def _style(caption: str) -> tuple[str, bool, bool]:
    """The caption for use inside a sentence, and whether it began and ended like one."""
    words = " ".join(caption.split())
    base = words.rstrip(" .,;:!")
    capital = base[:1].isupper()
    if re.match(r"[A-Z][a-z]|A\b", base):  # "TV on a table" and "I see" stay as they are
        base = base[0].lower() + base[1:]
    return base, capital, words.endswith(".")


_AFTER = """
with-no | no | {c} with no {x}
with-no-plural | no | {c} with no {xs}
and-no | no | {p} and no {x}
but-no | no | {p} but no {x}
no-in-sight | no | {c}, with no {x} in sight
there-is-no | no | {c}, but there {is} no {x}
there-are-no | no | {c}, but there {are} no {xs}
no-visible | no | {c}, and no {x} {is} visible
no-seen | no | {c}, and no {xs} can be seen
without-after | without | {c} without {a}
without-picture | without | {c}, without {a} in the picture
without-any | without | {c}, without any {xs}
not-a | not | {p}, not {a}
and-not | not | {p} and not {a}
but-not | not | {p}, but not {a}
is-not | not | {c}, and there {is} not {a}
isnt-after | isn't | {c}, but there {isnt} {a}
arent-after | isn't | {c}, and there {arent} any {xs}
isnt-there | isn't | {c}, and the {x} {isnt} there
doesnt-show | doesn't | {c}, but the picture doesn't show {a}
doesnt-have | doesn't | {c}, and it doesn't have {a}
dont-see | don't | {c}, and you don't see {a}
cant-see | can't | {c}, and you can't see {a}
cannot-see | cannot | {c}, but you cannot see {a}
cannot-be | cannot | {c}, but {xs} cannot be seen
hasnt-after | hasn't | {c}, and it hasn't got {a}
lacks-after | lacks | {c}, but the picture lacks {a}
lacks-which | lacks | {p}, which lacks {a}
lacking-after | lacking | {c}, lacking {a}
missing-after | missing | {c}, but the {x} {is} missing
absent-after | absent | {c}, and the {x} {is} absent
none-after | none | {c}, and as for {xs}, there {are} none
nowhere-after | nowhere | {c}, and the {x} {is} nowhere
free-after | free | {p} free of {xs}
minus-after | minus | {p} minus the {x}
nobody-after | nobody | {c}, with nobody there
nobody-but | nobody | {c}, but there is nobody
no-one-after | no one | {c}, with no one in sight
"""

_BEFORE = """
no-just | no | no {x}, just {p}
no-only | no | no {xs}, only {p}
no-here | no | no {x} here: {c}
no-sight-before | no | with no {x} in sight, {c}
there-is-no-before | no | there {is} no {x}; {c}
no-visible-before | no | no {xs} {are} visible: {c}
without-before | without | without {a}, {c}
without-there | without | without any {xs} there, {c}
not-just | not | not {a}, just {p}
not-before | not | there {is} not {a}; {c}
isnt-before | isn't | there {isnt} {a}; {c}
isnt-there-before | isn't | the {x} {isnt} there: {c}
doesnt-before | doesn't | the picture doesn't show {a}; {c}
dont-before | don't | you don't see {a}: {c}
cant-before | can't | you can't see {a}: {c}
cannot-before | cannot | you cannot see {a}; {c}
hasnt-before | hasn't | the picture hasn't got {a}: {c}
lacks-before | lacks | the picture lacks {a}; {c}
lacking-before | lacking | lacking {a}, {c}
missing-before | missing | the {x} {is} missing: {c}
absent-before | absent | the {x} {is} absent; {c}
none-before | none | as for {xs}, there {are} none; {c}
nowhere-before | nowhere | the {x} {is} nowhere: {c}
nobody-before | nobody | nobody there: {c}
no-one-before | no one | with no one in sight, {c}
"""

_ALONE = """
no-alone | no | no {x}
there-is-no-alone | no | there {is} no {x}
there-are-no-alone | no | there {are} no {xs}
no-picture | no | no {x} in the picture
no-seen-alone | no | no {xs} can be seen
picture-no | no | a picture with no {x}
picture-without | without | a picture without {a}
without-alone | without | without any {xs}
not-alone | not | not {a}
is-not-alone | not | there {is} not {a}
isnt-alone | isn't | there {isnt} {a}
isnt-there-alone | isn't | the {x} {isnt} there
arent-alone | isn't | there {arent} any {xs}
doesnt-alone | doesn't | the picture doesn't show {a}
dont-alone | don't | you don't see {a}
cant-alone | can't | you can't see {a}
cannot-alone | cannot | you cannot see {a}
hasnt-alone | hasn't | the picture hasn't got {a}
lacks-alone | lacks | the picture lacks {a}
lacking-alone | lacking | a picture lacking {a}
missing-alone | missing | the {x} {is} missing
absent-alone | absent | the {x} {is} absent
none-alone | none | as for {xs}, there {are} none
nowhere-alone | nowhere | the {x} {is} nowhere
free-alone | free | a picture free of {xs}
minus-alone | minus | a picture minus the {x}
nobody-alone | nobody | there is nobody
no-one-alone | no one | no one is there
"""

# Anything that might be a finite verb. Too many words match ("bananas"): a phrase taken for a
# sentence only loses it some templates, a sentence taken for a phrase gives bad grammar.
_VERB = re.compile(
    r"\b(are|can|could|did|do|had|have|may|must|will|would|were|\w+n't|[a-z]*[^su\W]s)\b"
    r"|^(?!(an?|the|one)\b)|^an?\b.{0,20}\b(group|couple|bunch|pair|number|lot|few|crowd|herd)\b",
    re.IGNORECASE,
)

_FINITE = re.compile(
    r"^(?:(?!\b(?:that|which|who|where|whose|when|as|while|what|how)\b).)*"
    r" (?:is|are|was|were|has|have)\b",
    re.IGNORECASE | re.DOTALL,
)
_PICTURE = re.compile(
    r"\s*((an?|the|this) )?([\w-]+ ){0,3}"
    r"(picture|photo|photograph|image|view|shot|scene|close[- ]?up|collage|portrait)s?\b",
    re.IGNORECASE,
)

_PEOPLE = {"nobody", "no one"}


def parse(table: str, position: str) -> list[Template]:
    """Templates from lines "name | cue | text"."""
    rows = [row.split(" | ") for row in table.strip().splitlines()]
    return [Template(name, cue, position, text, cue in _PEOPLE) for name, cue, text in rows]


TEMPLATES: tuple[Template, ...] = (
    *parse(_AFTER, AFTER),
    *parse(_BEFORE, BEFORE),
    *parse(_ALONE, ALONE),
)

# Words that negate; a caption that holds one is not rewritten (one negation is enough).
NEGATION = re.compile(
    r"\b(no|not|non|none|nor|neither|never|nobody|nothing|nowhere|without|cannot|lack(s|ed|ing)?|"
    r"missing|absent|absence|free of|minus|devoid|except|excluding|\w+n['\u2019]t)\b",
    re.IGNORECASE,
)


def select(hold_out: Iterable[str] = ()) -> tuple[Template, ...]:
    """The templates left when some are held out by template name or by cue word.

    Raises ValueError for a name that is neither, and when nothing is left.
    """
    held = held_out(hold_out)
    kept = tuple(t for t in TEMPLATES if t not in held)
    if not kept:
        raise ValueError("every template is held out; nothing can be written")
    return kept


def held_out(names: Iterable[str]) -> tuple[Template, ...]:
    """The templates with one of these names or cue words. Raises ValueError as `select`."""
    names = set(names)
    known = {t.name for t in TEMPLATES} | {t.cue for t in TEMPLATES}
    if unknown := sorted(names - known):
        raise ValueError(
            f"cannot hold out {', '.join(unknown)}: neither a cue nor a template. "
            f"Cues: {', '.join(sorted({t.cue for t in TEMPLATES}))}. "
            f"Templates: {', '.join(t.name for t in TEMPLATES)}"
        )
    return tuple(t for t in TEMPLATES if t.name in names or t.cue in names)


def by_name(name: str) -> Template:
    """The template of that name. Raises KeyError if there is none."""
    return _BY_NAME[name]


def fitting(
    templates: Sequence[Template], position: str, caption: str, noun: Noun
) -> list[Template]:
    """The templates at a position that can say of the caption that the object is absent."""
    return [t for t in templates if t.position == position and t.fits(caption, noun)]


_BY_NAME = {t.name: t for t in TEMPLATES}
