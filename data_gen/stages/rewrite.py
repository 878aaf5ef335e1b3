"""Drafts by an LLM or the grammar of templates; each is checked by all rules, or made once more."""

import asyncio
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from data_gen import rules
from data_gen.answers import clean, numbered, numbered_schema
from data_gen.engines.probe import Capabilities, Engine
from data_gen.prompts import STYLES, Prompt, most_tokens, quoted
from data_gen.records import Assignment, ImageItem, chance, shuffled
from negclip_jax.common.provenance import content_hash
from negclip_jax.language.foils import affirm, foil, template_foils
from negclip_jax.language.grammar import NATURAL, NOT_OF_TWO, THING, Grammar, Template
from negclip_jax.language.mentions import mentioned
from negclip_jax.language.negation import ALONE, cue_of
from negclip_jax.language.questions import merge_question
from negclip_jax.language.twins import of_scene, place_of
from negclip_jax.language.vocabulary import content

# So much more of another caption, as a share of the words of both, makes a text that one's.
_NEARER = 0.2


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be written for an image. `present`: objects known to be in the photo."""

    image: ImageItem
    assignments: Sequence[Assignment]
    present: Sequence[str]


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

    async def first(self, images: Sequence[Sequence[Assignment]]) -> list[list[Draft]]:
        """A draft for each assignment of each image."""

    async def again(self, assignment: Assignment, attempt: int, former: Draft) -> Draft:
        """Another draft; `attempt` counts from 1."""


@dataclass(frozen=True, kw_only=True)
class LLMWriter:
    """One request for all captions of the images (`many`), or one for each caption.

    What a joint answer lacks, or has at a wrong place, is asked again: of several images image by
    image, of one caption by caption. `one`: name of the prompt for a single caption.
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

    async def first(self, images: Sequence[Sequence[Assignment]]) -> list[list[Draft]]:
        drafts: dict[Assignment, Draft] = {}

        def left() -> list[list[Assignment]]:
            """Those without a draft, image by image; a question's has a prompt of its own."""
            return [
                [a for a in own if a not in drafts and a.candidate.question is None]
                for own in images
            ]

        async def ask(parts: Iterable[Sequence[Assignment]]) -> None:
            for found in await asyncio.gather(*map(self._jointly, parts)):
                drafts.update(found)

        if self.many:
            whole = [own for own in left() if own]
            sizes = [sum(map(self._size, own)) for own in whole]
            parts = self.can.parts(self.prompts["rewrite_many"], sizes)
            await ask([a for i in part for a in whole[i]] for part in parts if len(part) > 1)
            await ask(own for own in left() if len(own) > 1)
        alone = [a for own in images for a in own if a not in drafts]
        written = await asyncio.gather(*(self._one(a, 0) for a in alone))
        drafts.update(zip(alone, written, strict=True))
        return [[drafts[a] for a in own] for own in images]

    async def again(self, assignment: Assignment, attempt: int, former: Draft) -> Draft:
        return await self._one(assignment, attempt)

    def _row(self, assignment: Assignment) -> str:
        caption, name = quoted(assignment.caption.text), quoted(assignment.candidate.object)
        return f"Caption: {caption} Absent: {name} Way: {self._style(assignment, 0)}"

    def _size(self, assignment: Assignment) -> int:
        """Tokens of its row and of the answer to it."""
        return most_tokens(self._row(assignment)) + self.max_tokens

    async def _jointly(self, asked: Sequence[Assignment]) -> dict[Assignment, Draft]:
        """Drafts by one request, of those that could be read, perhaps of none."""
        rows = [f"{i}. {self._row(a)}" for i, a in enumerate(asked, 1)]
        prompt = self.prompts["rewrite_many"]
        request = self.can.request(
            "rewrite",
            prompt.fill(lines="\n".join(rows)),
            max_tokens=self.max_tokens * len(rows),
            schema=numbered_schema(len(rows)) if self.can.schema else None,
            temperature=self.temperature,
            top_p=self.top_p,
        )
        result = await self.engine.generate(request)
        items = None if result.error else numbered(result.text, len(rows))
        texts = [None if item is None else clean(item) for item in items or [None] * len(rows)]
        return {
            assignment: Draft(text, "llm", request.key, self.can.model, prompt.id)
            for assignment, text, moved in zip(asked, texts, misplaced(texts, asked), strict=True)
            if text is not None and not moved
        }

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

    async def first(self, images: Sequence[Sequence[Assignment]]) -> list[list[Draft]]:
        return [[self._write(a, ()) for a in assignments] for assignments in images]

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
            alone = template.position == ALONE
            if of_two and not alone:
                text = template.contrast(there, candidate.object, base, place_of(there, base))
            name = f"template:{template.name}"
            return Draft(text, name, template=template, is_statement=of_two or alone)
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

    async def first(self, images: Sequence[Sequence[Assignment]]) -> list[list[Draft]]:
        drafts: dict[Assignment, Draft] = {}
        for writer in (self.template, self.llm):
            asked = [[a for a in own if self._for(a) is writer] for own in images]
            for own, written in zip(asked, await writer.first(asked), strict=True):
                drafts.update(zip(own, written, strict=True))
        return [[drafts[a] for a in own] for own in images]

    async def again(self, assignment: Assignment, attempt: int, former: Draft) -> Draft:
        return await self._for(assignment).again(assignment, attempt, former)


def misplaced(texts: Sequence[str | None], assignments: Sequence[Assignment]) -> list[bool]:
    """Which texts say what another assignment asks for than the one at whose place they stand.

    They have more of another caption, or no less of it and its object, but not their own.
    """
    objects = [a.candidate.object for a in assignments]
    absent = {word for name in objects for word in content(name)}
    captions = [set(content(a.caption.text)) - absent for a in assignments]
    found = []
    for place, text in enumerate(texts):
        text = text or ""
        said = set(content(text)) - absent
        has = [len(said & words) / max(len(said | words), 1) for words in captions]
        is_nearer = max(has) > has[place] + _NEARER
        # Looked for among all objects only where its own is missing: that is most of the work.
        names_other = not mentioned(objects[place], [text]) and any(
            share >= has[place] - _NEARER and mentioned(name, [text])
            for share, name in zip(has, objects, strict=True)
        )
        found.append(is_nearer or names_other)
    return found


@dataclass(frozen=True)
class RewriteStage:
    """Drafts, checks, and drafts again what was rejected."""

    writer: Writer
    count_tokens: Callable[[str], int]  # of CLIP, start and end token included
    max_tokens: int  # CLIP's context length
    enforce: bool  # False accepts everything but markup and records the reasons all the same
    tries: int  # drafts of one caption, at most
    foils: int  # false captions of an accepted pair, at most
    seed: int
    labels: Mapping[str, Any] = field(default_factory=dict)  # columns `pipeline` and `run_id`
    grammar: Grammar = NATURAL  # of foils
    # "edit": the caption changed as little as possible; "template": the template of the pair, where
    # it has one, said of what is there.
    foils_by: str = "edit"
    affirm: bool = False  # whether the second foil says that the absent object is there

    async def run(self, works: Sequence[Work]) -> list[list[dict[str, Any]]]:
        """Rows of the table of pairs for each image, one a draft."""
        drafts = await self.writer.first([work.assignments for work in works])
        return list(await asyncio.gather(*map(self._rows, works, drafts)))

    async def _rows(self, work: Work, drafts: Sequence[Draft]) -> list[dict[str, Any]]:
        settled = map(functools.partial(self._settle, work), work.assignments, drafts)
        return [row for rows in await asyncio.gather(*settled) for row in rows]

    async def _settle(
        self, work: Work, assignment: Assignment, draft: Draft
    ) -> list[dict[str, Any]]:
        """The rows of one caption: its first draft, and further ones until one is accepted."""
        caption, candidate, verdict = assignment.caption, assignment.candidate, assignment.verdict
        image, rows = work.image, []
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
                    "foils": self._foils(assignment, draft, work.present) if accepted else [],
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
        # A statement about the object alone keeps nothing of its caption.
        kept = None if draft.is_statement else assignment.caption
        return rules.check(
            draft.text,
            caption=kept.text if kept else "",
            obj=assignment.candidate.object,
            other_captions=[c.text for c in image.captions if not kept or c.id != kept.id],
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
