"""Names of things as people and models write them, under one spelling each."""

import re

from negclip_jax.language import tables, wordnet
from negclip_jax.language.inflection import PLURAL_ONLY, singular
from negclip_jax.language.vocabulary import ABSTRACT, STOP, canonical, concepts, is_participle

# "A blue sky" is nothing to look for either, but a traffic light is.
_NEVER = ABSTRACT - tables.words("concrete_head")
# Words of letters, or of capitals and digits: "MP3 player", "3D printer".
_WORD = r"(?:[A-Z]+\d+|\d+[A-Z]+|St\.|[^\W\d_]+(?:['’][^\W\d_]*)?)"
_NAME = re.compile(rf"{_WORD}(?:[ -]{_WORD}){{0,3}}")
_LEAD = re.compile(r"^(?:an?|the|some|any|no|one|two|three|several|many|other|another)\s+", re.I)
_CAPITALS = {
    word.lower(): word for _, words in tables.rows("capitals") for word in words.split()
}  # fmt: skip
# A glass of water, a piece of cake; "a dog of the neighbours" is a sentence.
_PORTION = re.compile(r"\w+(?: \w+)? of \w+(?: \w+)?")
_QUALITY = re.compile(r"\w+(?:ful|ous|ible|able|less|ness|ity|ly)")  # "beautiful", "quickly"


def object_name(text: str) -> str | None:
    """The name of one thing: singular, the usual word of several; None where it names none.

    "A Sofa." gives "couch", "wine glasses" "wine glass", "Christmas Trees" "Christmas tree", "led
    lights" "LED light". Nothing is named by sentences, lists, more than four words, actions,
    abstract things, and what nearly every photo has.
    """
    bare = _LEAD.sub("", " ".join(text.split()).strip(" .,;:!?\"'“”‘’`*_()[]"), count=1)
    if not _NAME.fullmatch(bare):
        return None
    name = singular(" ".join(map(_spelled, bare.split(" "))))
    head = name.partition(" of ")[0].rpartition(" ")[2]
    # "One-way sign", "mother-in-law": what hyphens hold together is no sentence.
    parts = re.split(r"[ -]", re.sub(r"\b(?:one|two|three|four)-|-\w{2,3}(?=-)", "", name))
    words = {word.lower() for word in parts if len(word) > 1}  # "t-shirt"
    words -= {"can"} if name.endswith(" can") else set()  # "trash can"
    sentence = words & (STOP - {"of"}) or (" of " in name and not _PORTION.fullmatch(name))
    short = len(name) < 3 and not (name == "tv" or name.isupper() or wordnet.is_thing(name))  # "ox"
    if short or sentence or name in ABSTRACT or head in _NEVER:
        return None
    if is_participle(head) and not (wordnet.is_thing(head) or wordnet.is_thing(name)):
        return None
    if _QUALITY.fullmatch(head) and not (wordnet.is_known(head) or concepts(head)):
        return None
    known = name.lower()
    return name if head in PLURAL_ONLY or canonical(known) == known else canonical(known)


def _spelled(word: str) -> str:
    """A word in lower case unless it is a name, or letters that spell nothing: "RV", "LEDs"."""
    low = word.lower()
    owner, mark, rest = re.match(r"([^'’]*)(['’]?)(.*)", word).groups()
    if mark and rest == "s":
        return f"{_spelled(owner)}{mark}{rest}"  # "Rubik's cube", "bird's nest"
    if re.search(r"[a-z][A-Z]|\d|\.", word):  # "GoPro", "MP3", "St. Bernard"
        return word
    plain = low if low in _CAPITALS else low.removesuffix("s")
    if plain in _CAPITALS:
        return _CAPITALS[plain] + low[len(plain) :]
    letters = re.fullmatch(r"[A-Z]{2,4}s?", word)
    return word if letters and not (wordnet.is_known(low) or concepts(low)) else low
