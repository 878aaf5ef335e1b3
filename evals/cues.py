"""Which word negates, and where it stands: "no dog" before the noun, "the dog is gone" after it.

Statistics over the words of `negclip_jax.language.negation`, without its rules of scope: the cue is
the first negating word of a text, and it stands before the noun if what follows it in its clause
names anything.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from negclip_jax.language import tables
from negclip_jax.language.negation import negating_words
from negclip_jax.language.text import tokenize

BEFORE, AFTER, INSTEAD = "before the noun", "after the noun", "instead of the noun"
NONE = "none"

# A place ("not in the kitchen") is no name of what is absent, so that it ends the clause too.
_CLAUSE_END = tables.words("clause_end")
# Words that name nothing: what may stand between a cue that follows its noun and the clause's end.
_EMPTY = tables.words("names_nothing")
# "is missing", "is absent" follow their noun; "missing a wheel", "absent any people" do not.
_OBJECT = tables.words("object_start")


@dataclasses.dataclass(frozen=True)
class Cue:
    """A negating word (`word` as in the report) and its position to the noun that it negates."""

    word: str
    position: str


def find_cue(text: str) -> Cue | None:
    """The first negation of a text; None where it has none."""
    tokens = tokenize(text)
    found = negating_words(tokens)
    if not found:
        return None
    word = found[0].family
    rest = tokens[found[0].last + 1 :]
    if word in ("nobody", "nothing"):
        return Cue(word, INSTEAD)
    if word == "absent":
        has_object = rest and not rest[0].mark and rest[0].word in _OBJECT
        return Cue(word, BEFORE if has_object else AFTER)
    for token in rest:
        if token.word in _CLAUSE_END or set(token.mark) & set(".,;:!?"):
            break
        if token.word not in _EMPTY and not token.word.isdigit():
            return Cue(word, BEFORE)
    return Cue(word, AFTER)


def split_at_cue(text: str) -> tuple[str, str]:
    """What stands before and after the first negating word; all before where there is none."""
    tokens = tokenize(text)
    for cue in negating_words(tokens):
        return text[: tokens[cue.first].start], text[tokens[cue.last].end :]
    return text, ""


def count_cues(text: str) -> int:
    """How many negating words a text has."""
    return len(negating_words(tokenize(text)))


# Group columns that `cue_columns` makes, with how the report describes them.
_TITLES = {
    "cue": "by the negating word (of the right text, else of a wrong one)",
    "position": "by where the negating word stands",
    "negated": "by which texts negate",
}


def cue_columns(items: Sequence[tuple[Sequence[str], int]]) -> dict[str, list[str]]:
    """Columns `cue`, `position` and `negated` for items given as texts and index of the right one.

    An item with one text has that text as right. Empty if no text of any item negates.
    """
    rows = []
    for texts, answer in items:
        cues = [find_cue(text) for text in texts]
        right = cues.pop(answer if len(cues) > 1 else 0)
        wrong = next(filter(None, cues), None)
        shown = right or wrong or Cue(NONE, NONE)
        where = ["right"] * bool(right) + ["wrong"] * bool(wrong)
        rows.append((shown.word, shown.position, " and ".join(where) or NONE))
    columns = {name: [row[i] for row in rows] for i, name in enumerate(_TITLES)}
    return columns if any(cue != NONE for cue in columns["cue"]) else {}


def cue_breakdowns(columns: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Those of `cue_columns` that are worth a drawing, with their titles.

    None where fewer than a twentieth of the items negate; no column whose value is always the same.
    """
    cues = columns.get("cue", ())
    if sum(cue != NONE for cue in cues) < len(cues) / 20:
        return {}
    return {name: text for name, text in _TITLES.items() if len(set(columns.get(name, ()))) > 1}
