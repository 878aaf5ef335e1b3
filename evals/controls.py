"""Controls: what rules that see no pixels, or no text, already reach.

A control scores the options of a benchmark's items from their file alone. It appears as a row
beside the models, so that a gain which a rule could have made is recognised as one. Its ties are
shared under both rules.
"""

import re
from collections.abc import Callable, Sequence

from evals.choices import Choice, Control
from evals.cues import AFTER, count_cues, find_cue, split_at_cue
from negclip_jax.language import tables


def _by_box(rule: Callable[[float, float, float, float], float]) -> Control:
    return lambda items: [[rule(*ref.box) for ref in item.images] for item in items]


# Rules over x, y, width, height of the boxes; the highest value is taken.
BOX_CONTROLS: dict[str, Control] = {
    "takes the smaller box": _by_box(lambda x, y, w, h: -w * h),
    "takes the box of taller shape": _by_box(lambda x, y, w, h: h / w),
    "takes the left-most box": _by_box(lambda x, y, w, h: -(x + w / 2)),
    "takes the top-most box": _by_box(lambda x, y, w, h: -(y + h / 2)),
}


def _by_text(count: Callable[[str], float]) -> Control:
    return lambda items: [[float(count(text)) for text in item.texts] for item in items]


# For benchmarks that let captions with and without negation compete.
POLARITY_CONTROLS: dict[str, Control] = {
    "prefers the negated text": _by_text(count_cues),
    "prefers the affirmed text": _by_text(lambda text: -count_cues(text)),
}
COMMA_CONTROL: dict[str, Control] = {
    "prefers the text with commas": _by_text(lambda text: text.count(","))
}

_WORD = re.compile(r"[a-z]+")
_CLAUSE = re.compile(r"[,;.]|\b(?:but|while|though|although|however|yet)\b", re.IGNORECASE)
# What NegBench's captions are made of besides the names of objects.
_FRAME = tables.words("negbench_frame")


def contradictions(items: Sequence[Choice]) -> list[list[float]]:
    """Solves a multiple-choice question from its captions alone: how many others each contradicts.

    The wrong options of NegBench agree with each other: for objects A (there) and N (not there)
    they say "N but not A", "N" and "not A", while the right one says otherwise. So each option is
    read as statements "W is there" / "W is not there" about the words that options share, and the
    one that contradicts most is taken. A dual encoder scores options one by one and cannot do
    that; whatever sees the options together can.
    """
    scores = []
    for item in items:
        claims = [_claims(text) for text in item.texts]
        scores.append([float(sum(_conflicts(mine, o) for o in claims)) for mine in claims])
    return scores


def _conflicts(mine: dict[str, bool], other: dict[str, bool]) -> int:
    return sum(there != other.get(word, there) for word, there in mine.items())


def _claims(text: str) -> dict[str, bool]:
    """Word to whether the text says that it is there."""
    claims: dict[str, bool] = {}
    for clause in _CLAUSE.split(text):
        cue = find_cue(clause)
        before, after = split_at_cue(clause)
        negated_before = cue is not None and cue.position == AFTER
        for part, there in ((before, not negated_before), (after, cue is None)):
            for word in _WORD.findall(part.lower()):
                if word not in _FRAME:
                    claims[word.removesuffix("s")] = there
    return claims
