"""The answer "no" to a yes/no question as a clause: "Is the man wearing a hat?" -> "the man is not
wearing a hat", merged with a caption.

The second pipeline of NegationCLIP (arXiv 2501.10913) lets an LLM merge VQAv2 questions with
captions. These rules do it without a model for the questions whose grammar they recognise, about
people, actions and attributes, and leave the others alone.
"""

import hashlib
import re
from typing import NamedTuple

from negclip_jax.language import tables
from negclip_jax.language.grammar import in_style
from negclip_jax.language.inflection import singular
from negclip_jax.language.vocabulary import STOP, concepts, is_content, is_participle

_AUXILIARY = re.compile(
    r"(is|are|was|were|do|does|did|can|will|has|have)\s+(.+?)\s*\?*\s*", re.IGNORECASE
)
_ANYONE = {"anyone": "nobody", "anybody": "nobody", "someone": "no one", "somebody": "no one"}
_ANYONE["anything"] = "nothing"
_PRONOUNS, _DETERMINERS, _POINTING = map(tables.words, ("pronoun", "determiner", "pointing"))
_PREPOSITIONS, _ADJECTIVES = map(tables.words, ("preposition", "adjective"))
_NUMBERS = tables.words("number")
_OPINION = re.compile(
    r"\b(you (think|believe|know|say|like|want|expect|guess)|likely|probably|or|only|more than|"
    r"less than|enough|too|why|how|what|if|not|n't|better|supposed|possible)\b",
    re.IGNORECASE,
)


class Denial(NamedTuple):
    """The answer "no" as a clause, and the word that it denies."""

    clause: str
    focus: str


def merge_question(caption: str, question: str) -> str | None:
    """The caption with the answer "no" to a yes/no question, None if it cannot be said by rule.

    "A man rides a wave." and "Is the man wearing a hat?" give "A man rides a wave, and the man is
    not wearing a hat." The same two texts give the same caption.
    """
    denial = deny(question)
    if denial is None:
        return None
    joint = ", but {}" if _choice(caption + question) else ", and {}"
    if denial.clause.startswith("there ") and _choice(question + caption):
        rest = re.sub(r"^there (?:is|are|was|were) no ", "", denial.clause)
        if rest != denial.clause:
            return in_style(caption, "{c}, with no " + _escaped(rest))
    return in_style(caption, "{c}" + joint.format(_escaped(denial.clause)))


def deny(question: str) -> Denial | None:
    """The clause that answers "no", without its full stop; None for a question of another form.

    Unanswerable by rule are questions about opinions, choices ("a cat or a dog"), and those whose
    subject and predicate cannot be told apart.
    """
    match = _AUXILIARY.fullmatch(" ".join(question.split()))
    if match is None or _OPINION.search(match[2]):
        return None
    verb, words = match[1].lower(), match[2].split()
    if any(re.search(r"[^\w'’,-]", word) for word in words) or len(words) < 2:
        return None
    first = words[0].lower()
    if first == "there":
        return _deny_existence(verb, words[1:])
    if first in _ANYONE:  # "is anyone swimming"; verbs with "do" would need inflecting
        focus = None if verb in ("do", "does", "did") else _focus(words[1:])
        return Denial(f"{_ANYONE[first]} {verb} {' '.join(words[1:])}", focus) if focus else None
    if words[:2] == ["you", "see"] and verb in ("can", "do"):  # "can you see any people"
        focus = _head([word for word in words[2:] if word.lower() not in _DETERMINERS])
        return Denial(f"you cannot see {' '.join(words[2:])}", focus) if focus else None
    lower = [word.lower() for word in words]
    subject_alone = first in _POINTING and verb in ("do", "does", "did") and not concepts(lower[1])
    end = 1 if subject_alone else _subject_end(lower)
    if not 0 < end < len(words) or lower[end] in ("there", "and"):
        return None
    # "Does the dog have a collar" -> "the dog does not have a collar".
    focus, denied = _focus(words[end:]), "cannot" if verb == "can" else f"{verb} not"
    clause = f"{' '.join(words[:end])} {denied} {' '.join(words[end:])}"
    return Denial(clause, focus) if focus else None


def _deny_existence(verb: str, words: list[str]) -> Denial | None:
    """ "Is there any dog on the bed" -> "there is no dog on the bed"."""
    if words and words[0].lower() in ("a", "an", "any", "some"):
        words = words[1:]
    elif words and words[0].lower() in _NUMBERS | _DETERMINERS:
        return None
    focus = _head(words)
    return Denial(f"there {verb} no {' '.join(words)}", focus) if focus else None


def _subject_end(words: list[str]) -> int:
    """How many words belong to the subject; 0 if that cannot be told."""
    first = words[0]
    after = words[1]
    bare = after in _DETERMINERS | _PREPOSITIONS or is_participle(after) or len(words) == 2
    if first in _PRONOUNS and (first not in _POINTING or bare):
        return 1
    i = 1 if first in _DETERMINERS or first.endswith(("'s", "’s")) else 0
    while i < len(words) and (words[i] in _ADJECTIVES or words[i].endswith(("'s", "’s", "s'"))):
        i += 1
    if i >= len(words) - 1 or not is_content(words[i]) or is_participle(words[i]):
        return 0
    i += 1
    while i < len(words) - 1 and concepts(words[i]):  # "the fire hydrant", "the tennis player"
        i += 1
    if words[i] in _PREPOSITIONS:  # "the man on the left wearing a hat"
        later = [j for j in range(i + 2, len(words)) if is_participle(words[j])]
        return later[0] if later else i
    return i


def _focus(predicate: list[str]) -> str | None:
    """The word that the negation is about: what is worn, done or looked like."""
    words = [word.lower().strip(",") for word in predicate]
    if words[0] in _DETERMINERS:
        return _head(words[1:])
    if len(words) > 1 and (is_participle(words[0]) or words[0] in _PREPOSITIONS | {"have", "be"}):
        rest = words[1:]
        if words[0] in _PREPOSITIONS or rest[0] not in _PREPOSITIONS:
            return _head([word for word in rest if word not in _DETERMINERS]) or words[0]
    return next((word for word in words if is_content(word)), None)


def _head(words: list[str]) -> str | None:
    """The noun of a phrase: its last word before a preposition or verb, singular."""
    head = None
    for word in (word.lower().strip(",") for word in words):
        if head and (word in STOP or is_participle(word)):
            break
        head = word if is_content(word) else head
    return singular(head) if head else None


def _choice(text: str) -> int:
    return hashlib.blake2b(text.encode(), digest_size=1).digest()[0] % 2


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
