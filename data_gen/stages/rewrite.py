"""Every draft is checked by all rules; a rejected one is written once more."""

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_gen import rules
from data_gen.stages.writers import Draft, Writer
from data_gen.work import Assignment, ImageItem, shuffled
from negclip_jax.common.provenance import content_hash
from negclip_jax.language.foils import affirm, foil, template_foils
from negclip_jax.language.grammar import NATURAL, Grammar
from negclip_jax.language.negation import ALONE


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
        # A statement about the object alone keeps nothing of its caption.
        alone = _is_statement(draft)
        return rules.check(
            draft.text,
            caption="" if alone else caption.text,
            obj=assignment.candidate.object,
            other_captions=[c.text for c in image.captions if alone or c.id != caption.id],
            max_tokens=self.max_tokens,
            count_tokens=self.count_tokens,
        )


@dataclass(frozen=True)
class RewriteStage:
    """Drafts, checks, and drafts again what was rejected.

    Attributes:
      tries: drafts of one caption, at most.
      foils: false captions of an accepted pair, at most.
      grammar: what foils are written with.
      foils_by: "edit": the caption changed as little as possible; "template": the template of the
        pair, where it has one, said of what is there.
      affirm: whether the second foil says that the absent object is there.
      labels: columns that are the same in every row (`pipeline`, `run_id`).
    """

    writer: Writer
    checker: Checker
    tries: int
    foils: int
    seed: int
    labels: Mapping[str, Any] = field(default_factory=dict)
    grammar: Grammar = NATURAL
    foils_by: str = "edit"
    affirm: bool = False

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
                row["foils"] = self._foils(assignment, draft, present)
                break
        return rows

    def _foils(self, assignment: Assignment, draft: Draft, present: Sequence[str]) -> list[str]:
        """Captions that are false: they negate something that is there, or affirm what is not."""
        caption, candidate = assignment.caption, assignment.candidate
        key = f"{self.seed}/{caption.id}"
        names = shuffled(present, self.seed, caption.id)
        if self.foils_by == "template" and draft.template is not None:
            about = (caption.text, candidate.object, names, draft.template, key, self.grammar)
            texts = list(itertools.islice(template_foils(*about), self.foils))
        else:
            found = (foil(caption.text, n, f"{key}/{n}", self.grammar) for n in names[: self.foils])
            texts = [text for text in found if text is not None]
        if self.affirm and self.foils > 1 and candidate.question is None:
            false = affirm(caption.text, candidate.object, key, _is_statement(draft))
            texts[1:] = [false, *texts[2:]]
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


def _is_statement(draft: Draft) -> bool:
    return draft.template is not None and draft.template.position == ALONE


def _by_stage(propose: str | None, verify: str | None, rewrite: str | None) -> dict:
    return {"propose": propose, "verify": verify, "rewrite": rewrite}
