"""Which word negates, and where it stands: "no dog" before the noun, "the dog is gone" after it.

Rules over words, without a parser: the cue is the first negating word of a text, and it stands
before the noun if what follows it in its clause names anything.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

BEFORE, AFTER, INSTEAD = "before the noun", "after the noun", "instead of the noun"
NONE = "none"

# Cue as it is reported: how it is written. Earlier rows win where two match at one place.
_CUES = {
    "nobody": r"nobody|no[ -]?one",
    "nothing": r"nothing|none",
    "neither": r"neither|nor",
    "never": r"never",
    "without": r"without|w/o",
    "not": r"cannot|not|\w+n ?['’] ?t",
    "no": r"no(?! ?\. ?\d)",  # not "no. 12"
    "lacks": r"lack(?:s|ed|ing)?|devoid|free of|minus|absence|exclud(?:es|ed|ing)|except",
    "absent": r"absent|missing|nowhere",
}
_CUE = re.compile(
    r"(?<![\w'’-])(?:" + "|".join(f"(?P<c{i}>{p})" for i, p in enumerate(_CUES.values())) + r")\b",
    re.IGNORECASE,
)
# A place ("not in the kitchen") is no name of what is absent, so that it ends the clause too.
_CLAUSE_END = re.compile(
    r"[.,;:!?]|\b(?:but|and|while|though|although|yet|however|in|on|at|from|near|within|inside|"
    r"under|behind|beside|among|anywhere)\b",
    re.IGNORECASE,
)
# Words that name nothing: what may stand between a cue that follows its noun and the clause's end.
_EMPTY_WORDS = """
a an the any some this that these those it its there here of to by with for as is are was were be
been being do does did has have had can could will would present visible seen see shown show shows
included include includes pictured depicted featured found evident noticeable noticeably visibly
obviously apparent apparently actually really fully completely even clearly around nearby all part
"""
_EMPTY = frozenset(_EMPTY_WORDS.split())
# "is missing", "is absent" follow their noun; "missing a wheel", "absent any people" do not.
_OBJECT = re.compile(r"\s+(?:an?|any|its|his|her|their|one)\b", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Cue:
    """A negating word (`word` as in the report) and its position to the noun that it negates."""

    word: str
    position: str


def find_cue(text: str) -> Cue | None:
    """The first negation of a text; None where it has none."""
    found = _CUE.search(text)
    if found is None:
        return None
    word = list(_CUES)[int(found.lastgroup[1:])]
    if word in ("nobody", "nothing"):
        return Cue(word, INSTEAD)
    if word == "absent":
        return Cue(word, BEFORE if _OBJECT.match(text, found.end()) else AFTER)
    clause = _CLAUSE_END.split(text[found.end() :], maxsplit=1)[0]
    names = [w for w in re.findall(r"[a-z]+", clause.lower()) if w not in _EMPTY]
    return Cue(word, BEFORE if names else AFTER)


def split_at_cue(text: str) -> tuple[str, str]:
    """What stands before and after the first negating word; all before where there is none."""
    found = _CUE.search(text)
    return (text[: found.start()], text[found.end() :]) if found else (text, "")


def count_cues(text: str) -> int:
    """How many negating words a text has."""
    return len(_CUE.findall(text))


# Group columns that `cue_columns` makes, with the sentence that the report gives them.
_SENTENCES = {
    "cue": "by the negating word (of the right text, else of a wrong one)",
    "position": "by where the negating word stands",
    "negated": "by which texts negate",
}


def cue_columns(items: Sequence[tuple[Sequence[str], int]]) -> dict[str, list[str]]:
    """Columns `cue`, `position` and `negated` for items given as texts and index of the right one.

    An item with one text has that text as right. Empty if no text of any item negates.
    """
    columns: dict[str, list[str]] = {name: [] for name in _SENTENCES}
    for texts, answer in items:
        cues = [find_cue(text) for text in texts]
        right = cues[answer] if len(cues) > 1 else cues[0]
        wrong = [cue for i, cue in enumerate(cues) if cue and i != answer and len(cues) > 1]
        shown = right or (wrong[0] if wrong else None)
        columns["cue"].append(shown.word if shown else NONE)
        columns["position"].append(shown.position if shown else NONE)
        where = ("right and wrong" if wrong else "right") if right else "wrong" if wrong else NONE
        columns["negated"].append(where)
    return columns if any(cue != NONE for cue in columns["cue"]) else {}


def cue_breakdowns(columns: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Those of `cue_columns` that are worth a drawing, with their sentences.

    None where fewer than a twentieth of the items negate; no column whose value is always the same.
    """
    cues = columns.get("cue", ())
    if sum(cue != NONE for cue in cues) < len(cues) / 20:
        return {}
    return {name: text for name, text in _SENTENCES.items() if len(set(columns.get(name, ()))) > 1}
