"""A grammar of negations: templates with many cues and positions, and the filling of them.

A template (`data/templates.tsv`) rewrites a caption so that it also says that an object is absent.
Its text uses

- `{c}`: the caption, `{p}`: the caption where it must be a noun phrase ("a bus on a road"), `{o}`:
  the same after "picture of", or `{s}`: the caption where it must be a sentence ("a man is here");
  none of them in statements that stand alone,
- `{x}`, `{xs}`: the object after "no", singular and plural ("dog", "dogs"; "scissors"),
- `{a}`: the object with its article ("a dog", "an apple", "any broccoli"), `{some}` as the
  subject of a sentence ("a dog", "broccoli"),
- `{is}`, `{isnt}` agree with `{x}`, `{are}`, `{arent}` with `{xs}`.
"""

import hashlib
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple, TypeVar

from negclip_jax.language import tables
from negclip_jax.language.inflection import Noun, noun
from negclip_jax.language.negation import AFTER, ALONE, BEFORE

T = TypeVar("T")
STYLES = ("natural", "plain")


@dataclass(frozen=True)
class Template:
    """One way to negate."""

    name: str
    cue: str  # the word
    position: str  # to the caption
    style: str  # "natural" for captions that people wrote, "plain" for short ones, or "both"
    weight: int  # how often the natural style draws it
    text: str
    affirmed: str  # the same form saying that the object is there, "" where it has none

    @property
    def people(self) -> bool:
        """Whether it fits human objects only ("nobody"); the others fit any object."""
        return self.cue in ("nobody", "no one")

    def fits(self, caption: str, human: bool) -> bool:
        """Whether it would be grammatical with the caption and a (human) object."""
        return self._suits(shape_of(caption), human)

    def _suits(self, shape: "Shape", human: bool) -> bool:
        text = self.text
        return (
            (human or not self.people)
            and (shape.phrase or not ("{p}" in text or "{o}" in text))
            and (shape.sentence or "{s}" not in text)
            and not (shape.picture and "{o}" in text)
        )

    def fill(self, caption: str, obj: Noun) -> str:
        """The rewritten caption, in the caption's own style of capital letter and full stop."""
        return in_style(caption, self.text, **_spoken(obj).slots)

    def affirm(self, caption: str, obj: Noun) -> str:
        """The caption in the same form saying that the object is there; "" where it has none."""
        spoken = _spoken(obj).slots
        slots = obj.slots | {slot: spoken[slot] for slot in ("xs", "are")}  # there may be but one
        return self.affirmed and in_style(caption, self.affirmed, **slots)

    def contrast(self, there: str, absent: str, like: str = "", place: str | None = "") -> str:
        """That one object is there, at its place if that is told, and another is not.

        "A cat on a sofa, but no dog", "There is a cat in the picture, but no dog", in the style of
        the caption `like`. Without a place (None) as earlier versions wrote: "A cat, but no dog".
        """
        known = noun(there)
        thing = f"there {known.is_} {known.some} in the picture"
        if place is None:
            thing = _spoken(known).some
        elif place:
            thing = f"{known.some} {place}"
        elif "{o}" in self.text:
            thing = known.some
        return self.fill(in_style(like, "{thing}", thing=thing), noun(absent))


def _spoken(obj: Noun) -> Noun:
    """The forms in which one speaks of its absence: "no people in sight", not "no person"."""
    return Noun("people", "people", "any people", is_="are") if obj.many == "people" else obj


TEMPLATES = tuple(Template(*row[:4], int(row[4]), *row[5:]) for row in tables.rows("templates"))
BY_NAME = {template.name: template for template in TEMPLATES}
# Templates that are not for a text about two objects: "without any ovens around, a spoon" is what
# nobody writes, of two things that are exchanged one may be no human, and what is more than a
# spoon is not "just a spoon".
NOT_OF_TWO = tuple(
    t.name
    for t in TEMPLATES
    if t.people or t.text.startswith("with") or t.text.endswith((", just {p}", ", only {p}"))
)


class Shape(NamedTuple):
    """What decides which templates fit a caption."""

    phrase: bool  # surely a noun phrase about one thing
    sentence: bool  # surely a sentence: a finite verb outside relative clauses
    picture: bool  # said of the picture itself: "a close up view of a pizza"


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
_SEVERAL = re.compile(r"[.;:]\s")


THING = Shape(phrase=True, sentence=False, picture=False)  # of what `contrast` says is there


@lru_cache(maxsize=4096)
def shape_of(caption: str) -> Shape:
    """The shape of a caption."""
    one = not _SEVERAL.search(caption.strip())
    return Shape(
        phrase=one and not _VERB.search(caption),
        sentence=one and bool(_FINITE.search(caption)),
        picture=bool(_PICTURE.match(caption)),
    )


def in_style(caption: str, text: str, **slots: str) -> str:
    """The text with its slots filled, with capital letter and full stop where the caption has them.

    `{c}`, `{p}`, `{o}` and `{s}` stand for the caption as it reads inside a sentence.
    """
    words = " ".join(caption.split())
    base = words.rstrip(" .,;:!")
    capital = base[:1].isupper()
    if re.match(r"[A-Z][a-z]|A\b", base):  # "TV on a table" and "I see" stay as they are
        base = base[0].lower() + base[1:]
    filled = text.format(c=base, p=base, o=base, s=base, **slots).rstrip()
    if words.isupper() and " " in words:  # "A MAN ON A SOFA": all of it
        filled = filled.upper()
    if capital:
        filled = filled[0].upper() + filled[1:]
    return f"{filled}." if words.endswith(".") else filled


def pick(options: Sequence[T], seed_key: str, purpose: str) -> T:
    """One of the options, drawn evenly by the hash of key and purpose."""
    return options[_number(seed_key, purpose) % len(options)]


def _number(seed_key: str, purpose: str) -> int:
    digest = hashlib.blake2b(f"{purpose}:{seed_key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def held_out(names: Iterable[str]) -> tuple[Template, ...]:
    """The templates with one of these names or cue words.

    Raises ValueError for a name that is neither.
    """
    names = set(names)
    cues = {t.cue for t in TEMPLATES}
    if unknown := sorted(names - cues - BY_NAME.keys()):
        raise ValueError(
            f"cannot hold out {', '.join(unknown)}: neither a cue nor a template. "
            f"Cues: {', '.join(sorted(cues))}. "
            f"Templates: {', '.join(BY_NAME)}"
        )
    return tuple(t for t in TEMPLATES if t.name in names or t.cue in names)


@dataclass(frozen=True)
class Grammar:
    """The templates that may be used, and how often their negation comes first."""

    # "natural", for captions that people wrote about photos, or "plain", with more words and
    # orders, for short captions such as "a red star and a moon".
    style: str = "natural"
    hold_out: tuple[str, ...] = ()  # template names and cue words that are never used
    before: float = 0.35  # share of rewrites with the negation before the caption, where one fits
    statements: float = 0.0  # share of captions replaced by a statement about the object alone

    def __post_init__(self):
        """Raises ValueError for an unknown style or name, or if nothing can be written."""
        if self.style not in STYLES:
            raise ValueError(f"style is {self.style!r}; choose one of: {', '.join(STYLES)}")
        held_out(self.hold_out)
        if not any(self.fitting(position, "", False) for position in (AFTER, BEFORE, ALONE)):
            raise ValueError("every template is held out; nothing can be written")

    def fitting(
        self, position: str, caption: str, human: bool, shape: Shape | None = None
    ) -> tuple[Template, ...]:
        """The templates at a position that can say of a caption that a (human) object is absent.

        `shape`: of the caption, where it is known.
        """
        return _fitting(self.style, self.hold_out, position, shape or shape_of(caption), human)

    def rewrite(
        self,
        caption: str,
        obj: str,
        seed_key: str,
        avoid: Collection[str] = (),
        shape: Shape | None = None,
    ) -> tuple[str, Template] | None:
        """The caption rewritten so that it also says that the object is absent.

        Returns the text, in the caption's style of capital letter and full stop, and its template;
        None where every template that fits is held out. The same `seed_key` gives the same text.
        `avoid`: template names not to be used, unless no other fits. `shape`: of the caption, where
        it is known.
        """
        known = noun(obj)
        sides = [AFTER, BEFORE, ALONE]
        if _number(seed_key, "side") % 100 < round(100 * self.before):
            sides = [BEFORE, AFTER, ALONE]
        if self.statements and _number(seed_key, "statement") % 100 < round(100 * self.statements):
            sides = [ALONE, *sides[:2]]
        options = [self.fitting(side, caption, known.human, shape) for side in sides]
        for banned, weight in ((frozenset(avoid), 1), (frozenset(avoid), 0), (frozenset(), 0)):
            # A form that nobody writes comes behind another place of the negation.
            least = weight if self.style == "natural" else 0
            for fit in options:
                if left := [t for t in fit if t.name not in banned and t.weight >= least]:
                    template = self.draw(left, seed_key, "template")
                    return template.fill(caption, known), template
        return None

    def statement(self, obj: str, seed_key: str, like: str = "") -> str | None:
        """A sentence about the object alone: "there is no dog in the picture", styled as `like`.

        None where every template for it is held out.
        """
        known = noun(obj)
        fit = self.fitting(ALONE, "", known.human)
        return self.draw(fit, seed_key, "alone").fill(like, known) if fit else None

    def draw(self, templates: Sequence[Template], seed_key: str, purpose: str) -> Template:
        """One of the templates by the hash of key and purpose: in the natural style by weight."""
        if self.style == "natural" and any(t.weight for t in templates):
            templates = [t for t in templates for _ in range(t.weight)]
        return pick(templates, seed_key, purpose)


@cache
def _fitting(
    style: str, hold_out: tuple[str, ...], position: str, shape: Shape, human: bool
) -> tuple[Template, ...]:
    banned = held_out(hold_out)
    return tuple(
        t
        for t in TEMPLATES
        if t.position == position
        and t.style in (style, "both")
        and t not in banned
        and t._suits(shape, human)
    )


NATURAL = Grammar()
