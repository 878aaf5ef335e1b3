"""Inflection of object names: plural, singular, article, stem.

Irregular forms are in `data/nouns.tsv` and `data/articles.tsv`; any other name follows the regular
rules. Where several singulars are regular, it is the one that WordNet knows: "quiches" is from
"quiche" and "dishes" from "dish".
"""

import re
from dataclasses import dataclass
from functools import cache

from negclip_jax.language import tables, wordnet

_NOUNS = tables.rows("nouns")
MASS = frozenset(one for one, _, number in _NOUNS if number == "mass") | tables.words("mass")
_COUNTED = frozenset(one for one, _, number in _NOUNS if number == "counted")
# "Glasses" have no singular where they stand alone; "wine glasses" have one.
_ALONE = {many: one for one, many, number in _NOUNS if number == "alone"}
PLURAL_ONLY = _ALONE.keys() | {one for one, _, number in _NOUNS if number == "pair"}
PLURALS = {one: many for one, many, _ in _NOUNS if many} | {many: many for many in _ALONE}
_BY_PLURAL = {many: one for one, many in PLURALS.items()}
HUMANS = frozenset({"person", "people", "human"})
_MEN = re.compile(r"(?!german|human|roman|norman|brahman|caiman|ottoman|talisman|shaman)\w*man$")
_ARTICLES = {word: a for a, words in tables.rows("articles") for word in words.split()}
_COMPOUND = re.compile(r"(\w{3,})(shelf|knife|wife|child|leaf|wolf|person|foot|tooth)")
_RANK = re.compile(
    r"(\w+)(-(?:in-law|at-law|at-arms|in-chief|in-waiting|de-camp)|(?<=er)-(?:by|on|up))"
)
# Stuffs, whatever they are made of: "driftwood", "dinnerware", "sawdust".
_STUFF = re.compile(
    r"\w{2,}(wood|ware|wear|stuff|dust|meal|bread|grass|water|soil|flour|sauce|seed|paste|skin)"
)
_SAID = re.compile(r"([^aeiou][aeiou][^aeiou]{1,2}[aeiou])")  # letters that make a word: "NASA"
_VOWELS_SPOKEN = "AEFHILMNORSX"  # letters whose names begin with a vowel: "an RV", but "a UFO"

# Words in -s that are singular, and those in -ies that only lose an s.
_SINGULAR = re.compile(
    r"\w*(ss|us|is)|gas|lens|canvas|christmas|always|news|series|dais|as|was|has"
)
_IE = re.compile(r"(^|.*[^a-z])(tie|necktie|bowtie|hoodie|onesie|selfie|smoothie)s$")
# Regular plurals and the endings of their singulars: the first that gives a known word is right.
_ENDINGS = tuple(
    (re.compile(many), one)
    for many, one in (
        ("s$", ""), ("(?<=[sxzo])es$|(?<=[cs]h)es$", ""), ("ies$", "y"), ("ves$", "f"),
        ("ves$", "fe"), ("men$", "man"), ("i$", "us"), ("ae$", "a"),
        ("children$", "child"), ("feet$", "foot"), ("teeth$", "tooth"), ("people$", "person"),
        ("mice$", "mouse"), ("zzes$", "z"), ("ses$", "sis"), ("ices$", "ix"), ("ices$", "ex"),
        ("(?<=..)a$", "um"), ("(?<=..)a$", "on"), ("(?<=eau)x$", ""), ("i$", "o"),
    )
)  # fmt: skip
_VERBS = dict(tables.rows("verbs"))


@dataclass(frozen=True)
class Noun:
    """An object name with its forms.

    `one` and `many` are what follows "no"; `a` what follows "without"; `is_` and `are` the
    verbs that agree with `one` and with `many`.
    """

    one: str
    many: str
    a: str
    is_: str = "is"
    are: str = "are"
    human: bool = False

    @property
    def some(self) -> str:
        """How a caption names the object: "a dog", but "broccoli" and "scissors"."""
        return self.one if self.a.startswith("any ") else self.a

    @property
    def slots(self) -> dict[str, str]:
        """The noun's words under the names that templates use."""
        slots = {"x": self.one, "xs": self.many, "a": self.a, "some": self.some}
        slots |= {"is": self.is_, "are": self.are}
        return slots | {"isnt": f"{self.is_}n't", "arent": f"{self.are}n't"}


@cache
def noun(name: str) -> Noun:
    """The forms of an object name, in lower case but for names ("Christmas tree", "LED light").

    Raises ValueError for an empty name.
    """
    name = " ".join(name.split())
    if not name:
        raise ValueError("an object needs a name, got an empty one")
    named = {form for text in (name, _split(name)[1]) for form in (text, text.lower())}
    is_stuff = singular(name) == name and (
        _STUFF.fullmatch(_split(name)[1]) or wordnet.is_stuff(name)
    )
    if name not in _COUNTED and (named & MASS or is_stuff):
        return Noun(name, name, f"any {name}", are="is")
    if named & PLURAL_ONLY:
        return Noun(name, name, f"any {name}", is_="are")
    return Noun(name, plural(name), f"{article(name)} {name}", human=name in HUMANS)


def _split(name: str) -> tuple[str, str, str]:
    """What stands before the word that is inflected, the word, and what stands behind it."""
    head, of, tail = name.partition(" of ")  # "glasses of water"
    before, _, last = head.rpartition(" ")
    if rank := _RANK.fullmatch(last):  # "sisters-in-law"
        last, of = rank[1], rank[2] + of
    return before and f"{before} ", last, of + tail


def article(name: str) -> str:
    """'a' or 'an', by sound: an apple, an hour, a unicorn, a ewe, an RV."""
    first = re.match(r"[^\W_]*", name).group()
    word = first.lower()
    if f"={word}" in _ARTICLES:
        return _ARTICLES[f"={word}"]
    is_word = len(first) > 2 and wordnet.is_known(singular(word))
    if (
        len(first) > 1 and first.isupper() and not is_word and not _SAID.match(word)
    ):  # letter by letter
        return "an" if first[0] in _VOWELS_SPOKEN else "a"
    for end in range(len(word), 0, -1):
        if word[:end] in _ARTICLES:
            return _ARTICLES[word[:end]]
    return "an" if name[0].lower() in "aeiou" else "a"


@cache
def plural(name: str) -> str:
    """Plural of a name by its main word: 'wine glasses', 'glasses of water', 'LEDs'."""
    before, word, behind = _split(name)
    if word in PLURALS:
        many = PLURALS[word]
    elif word.isupper():
        many = f"{word}s"
    elif compound := _COMPOUND.fullmatch(word):
        many = compound[1] + PLURALS[compound[2]]
    elif _MEN.match(word):
        many = f"{word[:-2]}en"
    elif re.fullmatch(r"\w+(fish|craft)", word):
        many = word
    elif re.search(r"(s|x|z|ch|sh)$", word):
        many = f"{word}es"
    elif re.search(r"[^aeiou]y$", word):
        many = f"{word[:-1]}ies"
    else:
        many = f"{word}s"
    return f"{before}{many}{behind}"


@cache
def singular(name: str) -> str:
    """Singular of a name by its main word: 'wine glasses' -> 'wine glass'; others as they are."""
    before, word, behind = _split(name)
    if name in PLURAL_ONLY:
        return name
    if (before or behind) and word in _ALONE:  # "wine glasses", not those on a nose
        return f"{before}{_ALONE[word]}{behind}"
    return f"{before}{_singular(word)}{behind}"


def _singular(word: str) -> str:
    if word in _BY_PLURAL:
        return _BY_PLURAL[word]
    if word in MASS or word in PLURALS or word in PLURAL_ONLY or len(word) < 3:
        return word
    if _SINGULAR.fullmatch(word) or word[-1] not in "sniexa":
        return word
    if word[-1] in "xai" and wordnet.is_known(word):  # "box", "sofa", "taxi"
        return word
    if _IE.match(word) or re.fullmatch(r"[A-Z]{2,}s", word):
        return word[:-1]
    for many, ending in _ENDINGS:
        one, found = many.subn(ending, word)
        if found and wordnet.is_known(one):
            return one
    if word.endswith("os") and wordnet.is_known(word):  # "rhinoceros"
        return word
    if word.endswith("ies"):
        return f"{word[:-3]}y"
    if re.search(r"(ss|x|zz|ch|sh|bus|gas|lens)es$", word):
        return word[:-2]
    return word[:-1] if word.endswith("s") else word


@cache
def stem(word: str) -> str:
    """What a word shares with its other forms: "riding", "rides" and "ride" -> "rid".

    A key for comparison, not a word. Suffixes of verbs and plurals are cut, a doubled consonant
    is made single and a final e goes (steps 1a, 1b and 5a of Porter, 1980, made cruder).
    """
    word = word.replace("’", "'").removesuffix("'s").removesuffix("'")
    word = _VERBS.get(word, word)
    base = singular(word)
    for suffix in ("ing", "ed"):
        cut = base.removesuffix(suffix)
        if cut != base and len(cut) > 2 and re.search(r"[aeiouy]", cut):
            base = cut[:-1] if re.search(r"([bdgklmnprtv])\1$", cut) else cut
            break
    return base.rstrip("e") if len(base) > 3 else base
