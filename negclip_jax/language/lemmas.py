"""Words of captions, cut to stems that compare, and what belongs to no caption's content."""

import re
from functools import cache

from negclip_jax.language.nouns import singular
from negclip_jax.language.senses import concepts
from negclip_jax.language.word_classes import FRAME, ING_NOUNS, STOP

WORD = re.compile(r"[a-z0-9]+(?:['’][a-z]+)*(?:-[a-z0-9]+)*", re.IGNORECASE)

_IRREGULAR = {
    "ate": "eat", "eaten": "eat", "sat": "sit", "stood": "stand", "held": "hold", "lay": "lie",
    "laid": "lie", "lying": "lie", "laying": "lie", "lies": "lie", "ran": "run", "rode": "ride",
    "ridden": "ride", "wore": "wear", "worn": "wear", "flew": "fly", "flown": "fly",
    "drove": "drive", "driven": "drive",
    "took": "take", "taken": "take", "made": "make", "caught": "catch",
    "threw": "throw", "thrown": "throw", "hung": "hang", "kept": "keep", "left": "leave",
    "gotten": "get", "slept": "sleep", "swung": "swing", "spread": "spread", "cut": "cut",
    "tied": "tie", "tying": "tie", "t.v": "tv", "skis": "ski",
}  # fmt: skip


def words(text: str) -> list[str]:
    """The words of a text in lower case; "isn't" and "black-and-white" are one each."""
    return WORD.findall(text.lower())


@cache
def stem(word: str) -> str:
    """What a word shares with its other forms: "riding", "rides" and "ride" -> "rid".

    A key for comparison, not a word. Suffixes of verbs and plurals are cut, a doubled consonant
    is made single and a final e goes (steps 1a, 1b and 5a of Porter, 1980, made cruder).
    """
    word = word.replace("’", "'").removesuffix("'s").removesuffix("'")
    word = _IRREGULAR.get(word, word)
    base = singular(word)
    for suffix in ("ing", "ed"):
        cut = base.removesuffix(suffix)
        if cut != base and len(cut) > 2 and re.search(r"[aeiouy]", cut):
            base = cut[:-1] if re.search(r"([bdgklmnprtv])\1$", cut) else cut
            break
    return base.rstrip("e") if len(base) > 3 else base


@cache
def is_content(word: str) -> bool:
    """Whether a word says something about what the photo shows."""
    return word not in STOP and word not in FRAME and len(word) > 1 and "n't" not in word


def is_participle(word: str) -> bool:
    """Whether a word in -ing is a form of a verb: "riding", but not "building" or "king"."""
    known = word in ING_NOUNS or " " in word or concepts(word)
    return word.endswith("ing") and len(word) > 4 and not known


def content(text: str) -> list[str]:
    """The words of a text that say something about what the photo shows."""
    return [word for word in words(text) if is_content(word)]


@cache
def related(first: str, second: str) -> bool:
    """Whether two words say about the same: one stem, one thing, or one inside the other."""
    a, b = stem(first), stem(second)
    things, others = concepts(first), concepts(second)
    if a == b or things & others:
        return True
    if things and others:  # "car" is no "carpet"
        return False
    short, long = sorted((a, b), key=len)
    return len(short) > 2 and (long.startswith(short) or (len(short) > 4 and short[:5] == long[:5]))
