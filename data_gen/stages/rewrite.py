"""Drafts by an LLM or the grammar of templates; each is checked by all rules, or made once more."""

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from data_gen import rules
from data_gen.answers import clean, numbered, numbered_schema
from data_gen.engines.probe import Capabilities, Engine
from data_gen.prompts import STYLES, Prompt, quoted
from data_gen.records import Assignment, ImageItem, chance, shuffled
from negclip_jax.common.provenance import content_hash
from negclip_jax.language.foils import affirm, foil, template_foils
from negclip_jax.language.grammar import (
    NATURAL,
    NOT_OF_TWO,
    THING,
    Grammar,
    Template,
)
from negclip_jax.language.negation import ALONE, cue_of
from negclip_jax.language.questions import merge_question
from negclip_jax.language.twins import of_scene, place_of


@dataclass(frozen=True, slots=True)
class Draft:
    """A rewritten caption before it is checked; `problem` says why there is no usable text.

    `template` is the grammar's, where it wrote the text.
    """

    text: str
    rewriter: str
    key: str | None = None
    model: str | None = None
    prompt_id: str | None = None
    problem: str | None = None
    template: Template | None = None
    is_statement: bool = False  # about objects alone, without the caption


class Writer(Protocol):
    """Writes drafts."""

    async def first(self, image: ImageItem, assignments: Sequence[Assignment]) -> list[Draft]:
        """A draft for each assignment of one image."""

    async def again(self, assignment: Assignment, attempt: int, former: Draft) -> Draft:
        """Another draft; `attempt` counts from 1."""


@dataclass(frozen=True, kw_only=True)
class LLMWriter:
    """One request for all captions of an image (`many`), or one for each caption.

    `one`: name of the prompt for a single caption.
    """

    engine: Engine
    can: Capabilities
    prompts: Mapping[str, Prompt]
    many: bool
    one: str
    max_tokens: int
    temperature: float
    top_p: float
    seed: int

    async def first(self, image: ImageItem, assignments: Sequence[Assignment]) -> list[Draft]:
        about_objects = all(a.candidate.question is None for a in assignments)
        if self.many and about_objects and len(assignments) > 1:
            return await self._all(assignments)
        return list(await asyncio.gather(*(self._one(a, 0) for a in assignments)))

    async def again(self, assignment: Assignment, attempt: int, former: Draft) -> Draft:
        return await self._one(assignment, attempt)

    async def _all(self, assignments: Sequence[Assignment]) -> list[Draft]:
        rows = [
            f"{i}. Caption: {quoted(a.caption.text)} Absent: {quoted(a.candidate.object)} "
            f"Way: {self._style(a, 0)}"
            for i, a in enumerate(assignments, 1)
        ]
        request = self.can.request(
            "rewrite",
            self.prompts["rewrite_many"].fill(lines="\n".join(rows)),
            max_tokens=self.max_tokens * len(rows),
            schema=numbered_schema(len(rows)) if self.can.schema else None,
            temperature=self.temperature,
            top_p=self.top_p,
        )
        result = await self.engine.generate(request)
        items = None if result.error else numbered(result.text, len(rows))
        about = {
            "key": request.key,
            "model": self.can.model,
            "prompt_id": self.prompts["rewrite_many"].id,
        }
        drafts = [
            None if item is None else Draft(clean(item), "llm", **about)
            for item in items or [None] * len(rows)
        ]
        # Those that could not be read, perhaps all of them, are asked for alone.
        left = [a for a, draft in zip(assignments, drafts, strict=True) if draft is None]
        alone = iter(await asyncio.gather(*(self._one(a, 0) for a in left)))
        return [draft or next(alone) for draft in drafts]

    async def _one(self, assignment: Assignment, attempt: int) -> Draft:
        candidate, caption = assignment.candidate, quoted(assignment.caption.text)
        stage, prompt = "rewrite", self.prompts[self.one]
        if candidate.question is not None:
            stage, prompt = "merge", self.prompts["merge"]
            messages = prompt.fill(caption=caption, question=quoted(candidate.question))
        else:
            published = prompt.name == "rewrite_caption"  # it names the object inside a sentence
            name = candidate.object if published else quoted(candidate.object)
            style = self._style(assignment, attempt)
            messages = prompt.fill(caption=caption, object=name, style=style)
        request = self.can.request(
            stage,
            messages,
            max_tokens=self.max_tokens,
            sample=attempt,
            temperature=self.temperature,
            top_p=self.top_p,
        )
        result = await self.engine.generate(request)
        problem = result.error or ("truncated" if result.finish_reason == "length" else None)
        text = "" if result.error else clean(result.text)
        return Draft(text, "llm", request.key, self.can.model, prompt.id, problem)

    def _style(self, assignment: Assignment, attempt: int) -> str:
        return shuffled(STYLES, self.seed, assignment.caption.id)[attempt % len(STYLES)]


@dataclass(frozen=True)
class TemplateWriter:
    """The grammar of `language.grammar`: no model, always correct in form, less natural."""

    seed: int
    grammar: Grammar = NATURAL

    async def first(self, image: ImageItem, assignments: Sequence[Assignment]) -> list[Draft]:
        return [self._write(a, ()) for a in assignments]

    async def again(self, assignment: Assignment, attempt: int, former: Draft) -> Draft:
        return self._write(assignment, (former.rewriter.removeprefix("template:"),))

    def _write(self, assignment: Assignment, avoid: tuple[str, ...]) -> Draft:
        caption, candidate = assignment.caption, assignment.candidate
        key = f"{self.seed}/{caption.id}/{candidate.question or candidate.object}"
        if candidate.question is None:
            base, there = caption.text, assignment.there
            of_two = there is not None and self.grammar.style == "natural"
            about = ((*avoid, *NOT_OF_TWO), THING) if of_two else (avoid, None)
            written = self.grammar.rewrite(base, candidate.object, key, *about)
            if written is None:
                return Draft("", "template", problem="held_out")
            text, template = written
            if of_two and template.position != ALONE:
                text = template.contrast(there, candidate.object, base, place_of(there, base))
            holds_caption = not of_two and template.position != ALONE
            name = f"template:{template.name}"
            return Draft(text, name, template=template, is_statement=not holds_caption)
        text = merge_question(caption.text, candidate.question)
        return Draft(text or "", "template:merge", problem=None if text else "unmergeable")


@dataclass(frozen=True)
class MixedWriter:
    """A `share` of the captions, chosen by a hash, goes to the grammar, the others to an LLM."""

    llm: Writer
    template: Writer
    share: float
    seed: int

    def _for(self, assignment: Assignment) -> Writer:
        low = chance(self.seed, "writer", assignment.caption.id) < self.share
        return self.template if low else self.llm

    async def first(self, image: ImageItem, assignments: Sequence[Assignment]) -> list[Draft]:
        drafts: dict[int, Draft] = {}
        for writer in (self.template, self.llm):
            places = [i for i, a in enumerate(assignments) if self._for(a) is writer]
            written = await writer.first(image, [assignments[i] for i in places])
            drafts.update(zip(places, written, strict=True))
        return [drafts[i] for i in range(len(assignments))]

    async def again(self, assignment: Assignment, attempt: int, former: Draft) -> Draft:
        return await self._for(assignment).again(assignment, attempt, former)


@dataclass(frozen=True)
class RewriteStage:
    """Drafts, checks, and drafts again what was rejected.

    Attributes:
      count_tokens: CLIP tokens of a text, start and end token included.
      max_tokens: CLIP's context length.
      enforce: False accepts everything but markup and records the reasons all the same.
      tries: drafts of one caption, at most.
      foils: false captions of an accepted pair, at most.
      labels: columns that are the same in every row (`pipeline`, `run_id`).
      grammar: what foils are written with.
      foils_by: "edit": the caption changed as little as possible; "template": the template of the
        pair, where it has one, said of what is there.
      affirm: whether the second foil says that the absent object is there.
    """

    writer: Writer
    count_tokens: Callable[[str], int]
    max_tokens: int
    enforce: bool
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
        """The rows of one caption: its first draft, and further ones until one is accepted."""
        caption, candidate, verdict = assignment.caption, assignment.candidate, assignment.verdict
        rows = []
        for attempt in range(self.tries):
            if attempt:
                draft = await self.writer.again(assignment, attempt, draft)
            if draft.rewriter == "llm" and candidate.question is None and self.enforce:
                draft = replace(draft, text=of_scene(draft.text, candidate.object))
            reasons = self.reasons(draft, image, assignment)
            usable = draft.problem is None and bool(draft.text)
            # What is no sentence at all is in no file that the published script wrote either.
            accepted = usable and not (reasons and (self.enforce or "markup" in reasons))
            cue, position = cue_of(draft.text) or (None, None)
            identity = [caption.id, candidate.object, candidate.question, attempt]
            by_stage = {"propose": candidate, "verify": verdict, "rewrite": draft}
            rows.append(
                {
                    "pair_id": content_hash(identity)[:16],
                    "image_id": image.image_id,
                    "file_name": image.file_name,
                    "caption_id": caption.id,
                    "caption": caption.text,
                    "object": candidate.object,
                    "question": candidate.question,
                    "negated_caption": draft.text or None,
                    "foils": self._foils(assignment, draft, present) if accepted else [],
                    "rewriter": draft.rewriter,
                    "cue": cue,
                    "cue_position": position,
                    "clip_tokens": self.count_tokens(draft.text) if draft.text else None,
                    "attempt": attempt,
                    "accepted": accepted,
                    "reasons": reasons,
                    "p_no": verdict.p_no,
                    "mass": verdict.mass,
                    "keys": {stage: made.key for stage, made in by_stage.items()},
                    "models": {stage: made.model for stage, made in by_stage.items()},
                    "prompt_ids": {stage: made.prompt_id for stage, made in by_stage.items()},
                    **self.labels,
                }
            )
            if accepted:
                break
        return rows

    def reasons(self, draft: Draft, image: ImageItem, assignment: Assignment) -> list[str]:
        """All reasons against a draft; without a usable text, its problem alone."""
        if draft.problem is not None:
            return [draft.problem]
        caption = assignment.caption
        # A statement about the object alone keeps nothing of its caption.
        return rules.check(
            draft.text,
            caption="" if draft.is_statement else caption.text,
            obj=assignment.candidate.object,
            other_captions=[
                c.text for c in image.captions if draft.is_statement or c.id != caption.id
            ],
            max_tokens=self.max_tokens,
            count_tokens=self.count_tokens,
        )

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
            false = affirm(caption.text, candidate.object, key, draft.is_statement)
            texts[1:] = [false, *texts[2:]]
        return list(dict.fromkeys(texts))
