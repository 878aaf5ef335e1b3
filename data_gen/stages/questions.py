"""Pipeline vqa: yes/no questions whose answer "no" negates a person, an action or a trait."""

import re
from collections.abc import Sequence
from dataclasses import replace

from data_gen.rules import cue_of, mentioned
from data_gen.work import Candidate, ImageItem
from negclip_jax.language.questions import deny
from negclip_jax.language.vocabulary import content

_YES_NO = re.compile(
    r"(is|are|was|were|does|do|did|can|could|has|have|will|would|isn't|aren't)\b[^?]{3,120}\?",
    re.IGNORECASE,
)


class VQAProposer:
    """The questions that VQAv2 asks about an image."""

    async def propose(self, image: ImageItem) -> list[Candidate]:
        return [Candidate("", "vqa", question=question.text) for question in image.questions]


def focus(question: str) -> str | None:
    """What the answer "no" denies: "Is the man wearing a hat?" gives "hat".

    From the grammar of the question where that is known, else its last content word. Not usable,
    hence None: other questions, choices ("a cat or a dog"), and questions that negate themselves.
    """
    text = " ".join(question.split())
    if not _YES_NO.fullmatch(text) or " or " in text.lower() or cue_of(text):
        return None
    denial = deny(text)
    if denial is not None:
        return denial.focus
    words = content(text)
    return words[-1] if words else None


def filtered_questions(candidates: Sequence[Candidate], captions: Sequence[str]) -> list[Candidate]:
    """The candidates with their focus, and a reason on those not worth asking.

    "unusable" (no yes/no question), "duplicate" and "mentioned" (a caption says it already).
    """
    kept: list[Candidate] = []
    seen: set[str] = set()
    for candidate in candidates:
        if candidate.reject_reason is None:
            name = focus(candidate.question or "")
            reason = None
            if name is None:
                reason = "unusable"
            elif candidate.question.lower() in seen:
                reason = "duplicate"
            elif mentioned(name, captions):
                reason = "mentioned"
            seen.add((candidate.question or "").lower())
            candidate = replace(candidate, object=name or "", reject_reason=reason)
        kept.append(candidate)
    return kept
