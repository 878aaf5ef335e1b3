"""The rules that every rewritten caption must pass, whoever wrote it: LLM or template.

`check` gives all reasons against a rewrite, not the first, so that a report can say what a model
gets wrong. What rules cannot see (a wrong colour in a fluent sentence) is for a sample read by
people; `data_gen.audit` counts it.
"""

import itertools
from collections.abc import Callable, Sequence

from data_gen.answers import CHATTER, MARKUP, REFUSAL
from negclip_jax.language import tables
from negclip_jax.language.inflection import HUMANS, article, noun, plural, singular, stem
from negclip_jax.language.mentions import Span, find_kinds, find_same, mentioned
from negclip_jax.language.negation import PEOPLE, VERB, Cue, find_cues, governs
from negclip_jax.language.text import Token, tokenize
from negclip_jax.language.vocabulary import concepts, content, is_content, is_participle, related
from negclip_jax.language.wordnet import is_thing

REASONS = {
    "empty": "there is no text",
    "refusal": "the model refused",
    "markup": "tags, code, JSON or an address stand in it",
    "chatter": "something other than a caption was left in the answer",
    "unchanged": "it says what the caption says",
    "no_cue": "nothing in it negates",
    "object_missing": "it does not name the object",
    "out_of_scope": "it negates, but not the object",
    "affirmed": "it says that the object is there",
    "restricted": "it denies some of them only, or what one does: no red cars, no cars but one",
    "double_negation": "it negates more than once",
    "lost": "too little of the caption is left",
    "invented": "it names things that no caption mentions",
    "changed": "it changes a number, a colour, or men to women",
    "grammar": "article or number are wrong",
    "too_long": "CLIP would not read its end",
    "mentioned": "a caption of the photo mentions the object",
}
_QUANTITY, _OWNER, _MEN, _WOMEN = map(tables.words, ("quantity", "owner", "man", "woman"))
# "A castle" in a rewrite is a thing that the caption must have, "a backdrop" is none.
_COUNTED, _VAGUE = {"a", "an", "two", "three", "four"}, tables.words("vague")
_HAVING = {
    *("having", "wearing", "using", "holding", "carrying", "showing", "containing", "including"),
    *("featuring", "displaying", "needing"),
}
_SIDES = {"left", "right", "other", "far", "near", "opposite"}
_END = Token("", 0, 0, ".")
# What a rewrite has from its caption or not at all.
_PRECISE = (tables.words("colour") - {"bright", "dark"}) | (
    tables.words("number") - {"many", "several", "all", "both"}
)

KEPT = 0.5  # share of the caption's content words that must come back, in any form
NEW_THINGS = 1  # known things that a paraphrase may add


def check(
    rewrite: str,
    *,
    caption: str,
    obj: str,
    other_captions: Sequence[str] = (),
    max_tokens: int = 77,
    count_tokens: Callable[[str], int],
) -> list[str]:
    """All reasons against a rewrite of `caption` that should say that `obj` is absent.

    Args:
      rewrite: the text, after `clean`.
      obj: the absent object, singular, or what a question denies ("running", "wet").
      other_captions: the photo's other captions; the object must not be in them either, and what
        they name is not invented.
      count_tokens: CLIP tokens of a text, start and end token included.
    Returns:
      Keys of `REASONS` in its order; empty for a rewrite that is accepted.
    """
    tokens = tokenize(rewrite)
    if not tokens:
        return ["empty"]
    cues = find_cues(tokens)
    captions = (caption, *other_captions)
    found = _negation(tokens, cues, obj) | _faithfulness(tokens, captions, obj)
    if _denies_more(tokens, cues, obj, caption):
        found.add("lost")
    if REFUSAL.search(rewrite):
        found.add("refusal")
    for reason, pattern in (("chatter", CHATTER), ("markup", MARKUP)):
        # "the #41 bus" is the caption's own
        if any(match.group() not in caption for match in pattern.finditer(rewrite)):
            found.add(reason)
    for before, token in itertools.pairwise(tokens):
        word = rewrite[token.start : token.end]
        wrong = before.word in ("a", "an") and not token.mark and article(word) != before.word
        if wrong and f"{before.word} {word}".lower() not in caption.lower():
            found.add("grammar")
    if [token.word for token in tokens] == [token.word for token in tokenize(caption)]:
        found.add("unchanged")
    if count_tokens(rewrite) > max_tokens:
        found.add("too_long")
    if mentioned(obj, captions):
        found.add("mentioned")
    return [reason for reason in REASONS if reason in found]


def _negation(tokens: Sequence[Token], cues: Sequence[Cue], obj: str) -> set[str]:
    """What is wrong with what is denied: cue, scope, number of negations."""
    found = set()
    if not cues:
        found.add("no_cue")
    if len(cues) > 1:
        found.add("double_negation")
    named = find_same(obj, tokens)
    denied = [span for span in named if any(governs(cue, tokens, *span) for cue in cues)]
    implied = obj in HUMANS and any(cue.kind == PEOPLE for cue in cues)  # "nobody" names people
    rest = [span for span in find_kinds(obj, tokens) if span not in denied]
    if not named and not implied:
        found.add("object_missing")
    elif cues and not denied and not implied:
        found.add("out_of_scope")
    if rest and (denied or implied or not cues):
        found.add("affirmed")
    if any(_restricts(cue, tokens, span) for span in denied for cue in cues):
        found.add("restricted")
    if any(_disagrees(tokens, span, obj) for span in named):
        found.add("grammar")
    return found


def _restricts(cue: Cue, tokens: Sequence[Token], span: Span) -> bool:
    """Whether a cue that governs the object leaves some of it, or denies what is done with it."""
    first, last = span
    if not governs(cue, tokens, first, last) or first <= cue.last:
        return False
    before, behind = tokens[first - 1], [token.word for token in tokens[last + 1 : last + 4]]
    done = (token.word for token in tokens[cue.last + 1 : first])
    if any(is_participle(word) and word not in _HAVING for word in done):
        return True  # "without looking at the cars", but "without wearing a hat"
    if behind[:1] in (["on"], ["at"]) and behind[1:2] == ["the"] and _SIDES.issuperset(behind[2:]):
        return True  # "no cars on the left"
    if cue.last + 1 < first and (
        before.word in _QUANTITY  # "not many cars", "no other cars"
        or (cue.kind == VERB and before.word in _OWNER)  # "does not open his umbrella"
        # "no red cars", but "no trees, cars or buses" is a list
        or (cue.word in ("no", "without") and not tokens[first].mark and is_content(before.word))
    ):
        return True
    return bool(behind) and (
        behind[0] in ("except", "besides", "save")
        or behind[:2] in (["other", "than"], ["apart", "from"], ["but", "one"])
    )


def _denies_more(tokens: Sequence[Token], cues: Sequence[Cue], obj: str, caption: str) -> bool:
    """Whether the object is denied together with what the caption says: "no bench or fountain"."""
    own = set(content(caption)) - set(content(obj))
    for first, last in find_same(obj, tokens):
        before = next((c for c in cues if c.last < first and governs(c, tokens, first, last)), None)
        if before is not None:
            listed = [token.word for token in tokens[before.last + 1 : last + 4]]
            ors = [i for i, word in enumerate(listed) if word in ("or", "nor")]
            if any(
                own.intersection(listed[max(i - 2, 0) : i] + listed[i + 1 : i + 3]) for i in ors
            ):
                return True
    return False


def _disagrees(tokens: Sequence[Token], span: Span, obj: str) -> bool:
    """Whether article or verb around a named object are wrong: "a umbrella", "no dogs is"."""
    first, last = span
    head = tokens[last].word
    before = tokens[first - 1].word if first else ""
    after = "".join(token.word for token in tokens[last + 1 : last + 2] if not token.mark)
    one = singular(head)
    invariant = plural(one) == one
    many = not invariant and head == plural(one)
    if before in ("a", "an") and (many or noun(obj).a.startswith("any ")):
        return True
    if not many and head == plural(one) + "s":  # "mooses"
        return True
    if before != "no" or invariant:
        return False
    there = [token.word for token in tokens[max(first - 3, 0) : first - 1]]
    wrong = ("is", "isn't", "was") if many else ("are", "aren't", "were")
    return after in wrong or (there[:1] == ["there"] and there[-1] in wrong)


def _faithfulness(tokens: Sequence[Token], captions: Sequence[str], obj: str) -> set[str]:
    """Whether the rewrite keeps the caption and adds nothing but the object."""
    found = set()
    own, absent = content(captions[0]), content(obj)
    words = [token.word for token in tokens]
    new = [word for word in words if is_content(word)]
    kept = sum(_among(word, new) for word in own)
    if own and kept < KEPT * len(own):
        found.add("lost")
    known = [*(word for text in captions for word in content(text)), *absent]
    stems = {stem(word) for word in known}
    added = [
        word
        for word in dict.fromkeys(new)
        if stem(word) not in stems and concepts(word) and not _among(word, known)
    ]
    heads = {
        token.word
        for before, token, after in zip(tokens, tokens[1:], [*tokens[2:], _END], strict=False)
        if before.word in _COUNTED and (after.mark or not is_content(after.word))
    }
    fresh = [w for w in heads & set(new) - _VAGUE if stem(w) not in stems and is_thing(singular(w))]
    if len(added) > NEW_THINGS or any(not _among(word, known) for word in fresh):
        found.add("invented")
    said = {token.word for text in (*captions, obj) for token in tokenize(text)}
    if set(words) & _PRECISE - said:
        found.add("changed")
    for sex, other in ((_MEN, _WOMEN), (_WOMEN, _MEN)):
        if sex & set(words) and not sex & said and other & said - set(words):
            found.add("changed")
    return found


def _among(word: str, others: Sequence[str]) -> bool:
    return word in others or any(related(word, other) for other in others)
