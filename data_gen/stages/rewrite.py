"""Every draft is checked by all rules; a rejected one is written once more."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_gen import rules
from data_gen.grammar import foil
from data_gen.stages.writers import Draft, Writer
from data_gen.work import Assignment, ImageItem, shuffled
from negclip_jax.common.provenance import content_hash


@dataclass(frozen=True)
class Checker:
    """The rules with what they need to know of the run.

    Attributes:
      count_tokens: CLIP tokens of a text, start and end token included.
      max_tokens: CLIP's context length.
      enforce: False accepts everything and records the reasons all the same.
    """

    count_tokens: Callable[[str], int]
    max_tokens: int
    enforce: bool

    def reasons(self, draft: Draft, image: ImageItem, assignment: Assignment) -> list[str]:
        """All reasons against a draft; without a usable text, its problem alone."""
        if draft.problem is not None:
            return [draft.problem]
        caption = assignment.caption
        return rules.check(
            draft.text,
            caption=caption.text,
            obj=assignment.candidate.object,
            other_captions=[c.text for c in image.captions if c.id != caption.id],
            max_tokens=self.max_tokens,
            count_tokens=self.count_tokens,
        )


@dataclass(frozen=True)
class RewriteStage:
    """Drafts, checks, and drafts again what was rejected.

    Attributes:
      tries: drafts of one caption, at most.
      foils: false captions of an accepted pair, at most.
      labels: columns that are the same in every row (`pipeline`, `run_id`).
    """

    writer: Writer
    checker: Checker
    tries: int
    foils: int
    seed: int
    labels: Mapping[str, Any] = field(default_factory=dict)

    async def run(
        self, image: ImageItem, assignments: Sequence[Assignment], present: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Rows of the table of pairs, one a draft. `present`: objects known to be in the photo."""
        if not assignments:
            return []
        drafts = await self.writer.first(image, assignments)
        rows = await asyncio.gather(
            *(self._settle(image, a, d, present) for a, d in zip(assignments, drafts, strict=True))
        )
        return [row for drafts in rows for row in drafts]

    async def _settle(
        self, image: ImageItem, assignment: Assignment, draft: Draft, present: Sequence[str]
    ) -> list[dict[str, Any]]:
        rows = []
        for attempt in range(self.tries):
            if attempt:
                draft = await self.writer.again(assignment, attempt, draft)
            reasons = self.checker.reasons(draft, image, assignment)
            usable = draft.problem is None and bool(draft.text)
            accepted = usable and not (reasons and self.checker.enforce)
            row = self._row(image, assignment, draft, attempt, reasons, accepted)
            rows.append(row)
            if accepted:
                row["foils"] = self._foils(assignment, present)
                break
        return rows

    def _foils(self, assignment: Assignment, present: Sequence[str]) -> list[str]:
        """Captions that negate something that is there."""
        caption = assignment.caption
        texts = []
        for name in shuffled(present, self.seed, caption.id)[: self.foils]:
            texts.append(foil(caption.text, name, f"{self.seed}/{caption.id}/{name}"))
        return list(dict.fromkeys(texts))

    def _row(
        self,
        image: ImageItem,
        assignment: Assignment,
        draft: Draft,
        attempt: int,
        reasons: list[str],
        accepted: bool,
    ) -> dict[str, Any]:
        caption, candidate, verdict = assignment.caption, assignment.candidate, assignment.verdict
        cue, position = rules.cue_of(draft.text) or (None, None)
        identity = [caption.id, candidate.object, candidate.question, attempt]
        return {
            "pair_id": content_hash(identity)[:16],
            "image_id": image.image_id,
            "file_name": image.file_name,
            "caption_id": caption.id,
            "caption": caption.text,
            "object": candidate.object,
            "question": candidate.question,
            "negated_caption": draft.text or None,
            "foils": [],
            "rewriter": draft.rewriter,
            "cue": cue,
            "cue_position": position,
            "clip_tokens": self.checker.count_tokens(draft.text) if draft.text else None,
            "attempt": attempt,
            "accepted": accepted,
            "reasons": reasons,
            "p_no": verdict.p_no,
            "mass": verdict.mass,
            "keys": _by_stage(candidate.key, verdict.key, draft.key),
            "models": _by_stage(candidate.model, verdict.model, draft.model),
            "prompt_ids": _by_stage(candidate.prompt_id, verdict.prompt_id, draft.prompt_id),
            **self.labels,
        }


def _by_stage(propose: str | None, verify: str | None, rewrite: str | None) -> dict:
    return {"propose": propose, "verify": verify, "rewrite": rewrite}
