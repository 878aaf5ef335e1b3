"""Inflection of object names: plural, singular, article, stem.

Irregular forms are in `data/nouns.tsv` and `data/articles.tsv`; any other name follows the regular
rules ("red star" -> "a red star", "red stars").
"""

import re
from dataclasses import dataclass
from functools import cache

from negclip_jax.language import tables

_NOUNS = tables.rows("nouns")
MASS = frozenset(one for one, _, number in _NOUNS if number == "mass")
# "Glasses" have no singular where they stand alone; "wine glasses" have one.
_ALONE = {many: one for one, many, number in _NOUNS if number == "alone"}
PLURAL_ONLY = _ALONE.keys() | {one for one, _, number in _NOUNS if number == "pair"}
PLURALS = {one: many for one, many, _ in _NOUNS if many} | {many: many for many in _ALONE}
_BY_PLURAL = {many: one for one, many in PLURALS.items()}
HUMANS = frozenset({"person", "people", "human"})
_MEN = re.compile(r"(?!german|human|roman|caiman|talisman|shaman)\w*man$")
_ARTICLES = {word: a for a, words in tables.rows("articles") for word in words.split()}

# Words in -s that are singular, and those in -ies that only lose an s.
_SINGULAR = re.compile(
    r"\w*(ss|us|is)|gas|lens|canvas|christmas|always|news|series|dais|as|was|has"
)
_IE = re.compile(r"(^|.*[^a-z])(movie|cookie|brownie|pie|tie|necktie|bowtie|hoodie|smoothie)s$")
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
        return {
            "x": self.one,
            "xs": self.many,
            "a": self.a,
            "some": self.some,
            "is": self.is_,
            "are": self.are,
            "isnt": f"{self.is_}n't",
            "arent": f"{self.are}n't",
        }


@cache
def noun(name: str) -> Noun:
    """The forms of an object name, lower case. Raises ValueError for an empty name."""
    name = " ".join(name.split())
    if not name:
        raise ValueError("an object needs a name, got an empty one")
    last = name.rpartition(" ")[2]
    if last in MASS:
        return Noun(name, name, f"any {name}", are="is")
    if last in PLURAL_ONLY:
        return Noun(name, name, f"any {name}", is_="are")
    return Noun(name, plural(name), f"{article(name)} {name}", human=name in HUMANS)


def article(name: str) -> str:
    """'a' or 'an', by sound: an apple, an hour, a unicorn, a ewe."""
    name = name.lower()
    first = re.match(r"[a-z0-9]*", name).group()
    if f"={first}" in _ARTICLES:
        return _ARTICLES[f"={first}"]
    for end in range(len(first), 0, -1):
        if first[:end] in _ARTICLES:
            return _ARTICLES[first[:end]]
    return "an" if name[0] in "aeiou" else "a"


def plural(name: str) -> str:
    """Plural of a name by its last word: 'wine glass' -> 'wine glasses'."""
    head, _, last = name.rpartition(" ")
    if last in PLURALS:
        many = PLURALS[last]
    elif _MEN.match(last):
        many = f"{last[:-2]}en"
    elif re.search(r"(s|x|z|ch|sh)$", last):
        many = f"{last}es"
    elif re.search(r"[^aeiou]y$", last):
        many = f"{last[:-1]}ies"
    else:
        many = f"{last}s"
    return f"{head} {many}".strip()


@cache
def singular(name: str) -> str:
    """Singular of a name by its last word: 'wine glasses' -> 'wine glass'; others as they are."""
    head, _, last = name.rpartition(" ")
    if head and last in _ALONE:  # "wine glasses", not those on a nose
        return f"{head} {_ALONE[last]}"
    return f"{head} {_singular(last)}".strip()


def _singular(word: str) -> str:
    if word in _BY_PLURAL:
        return _BY_PLURAL[word]
    if word in MASS or len(word) < 3 or _SINGULAR.fullmatch(word):
        return word
    if word.endswith("men"):
        return f"{word[:-2]}an"
    if _IE.match(word):
        return word[:-1]
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
