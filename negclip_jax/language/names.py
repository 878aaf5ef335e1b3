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
_PORTION = re.compile(r"[\w-]+(?: [\w-]+)? of [\w-]+(?: [\w-]+)?")
# Of these the thing itself is what a photo shows: scissors, furniture.
_SOME_OF = re.compile(
    r"^(?:pairs?|couple|pieces?|groups?|bunch|bits?|lots?|lot|plenty|variety|set|number) of "
    r"(?=[\w'’-]+(?: [\w'’-]+)?$)", re.I
)  # fmt: skip
_QUALITY = re.compile(r"\w+(?:ful|ous|ible|able|less|ness|ity|ly)")  # "beautiful", "quickly"


def object_name(text: str) -> str | None:
    """The name of one thing: singular, the usual word of several; None where it names none.

    "A Sofa." gives "couch", "wine glasses" "wine glass", "Christmas Trees" "Christmas tree", "led
    lights" "LED light". Nothing is named by sentences, lists, more than four words, actions,
    abstract things, and what nearly every photo has.
    """
    bare = _LEAD.sub("", " ".join(text.split()).strip(" .,;:!?\"'“”‘’`*_()[]"), count=1)
    bare = _LEAD.sub("", _SOME_OF.sub("", bare), count=1)
    if not _NAME.fullmatch(bare):
        return None
    mixed = not bare.isupper()  # "PA speaker", but "DOG HOUSE"
    name = singular(" ".join(_spelled(word, mixed) for word in bare.split(" ")))
    head = name.partition(" of ")[0].rpartition(" ")[2]
    # "One-way sign", "forget-me-not": what hyphens hold together is no sentence.
    words = {w for w in name.lower().split(" ") if len(w) > 1 and STOP.issuperset(w.split("-"))}
    words -= {w for w in words if w.count("-") > 1}  # "two-by-four"
    words -= {"can"} if re.search(r" can$|^can of ", name) else set()  # "trash can"
    sentence = words - {"of"} or (" of " in name and not _PORTION.fullmatch(name))
    short = len(name) < 3 and not (name == "tv" or name.isupper() or wordnet.is_thing(name))  # "ox"
    # "A wedding ceremony", but a car alarm: an alarm may be a device.
    unseen = wordnet.is_unseen(head) and not wordnet.is_known(head)
    if short or sentence or name in ABSTRACT or head in _NEVER or unseen:
        return None
    if is_participle(head) and not (wordnet.is_thing(head) or wordnet.is_thing(name)):
        return None
    if _QUALITY.fullmatch(head) and not (wordnet.is_known(head) or concepts(head)):
        return None
    known = name.lower()
    return name if head in PLURAL_ONLY or canonical(known) == known else canonical(known)


def _spelled(word: str, stands_out: bool = False) -> str:
    """A word in lower case unless it is a name, or letters that spell nothing: "RV", "LEDs".

    `stands_out`: whether other words beside it are not in capitals, so that its own mean something.
    """
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
    spells = not stands_out and (concepts(low) or wordnet.is_known(low))
    return word if letters and not spells and plain != "tv" else low
