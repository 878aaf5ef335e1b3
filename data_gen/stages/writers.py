"""Who rewrites a caption: an LLM, the grammar of templates, or a mix of the two."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from data_gen import rules
from data_gen.engines.base import Capabilities, Engine
from data_gen.prompts import STYLES, Prompt, quoted
from data_gen.replies import numbered, numbered_schema
from data_gen.work import Assignment, ImageItem, chance, shuffled
from negclip_jax.common.chat.messages import ChatRequest
from negclip_jax.language.grammar import NATURAL, Grammar, Template
from negclip_jax.language.questions import merge_question


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


class Writer(Protocol):
    """Writes drafts."""

    async def first(self, image: ImageItem, assignments: Sequence[Assignment]) -> list[Draft]:
        """A draft for each assignment of one image."""

    async def again(self, assignment: Assignment, attempt: int, former: Draft) -> Draft:
        """Another draft; `attempt` counts from 1."""


class LLMWriter:
    """One request for all captions of an image, or one for each caption."""

    def __init__(
        self,
        engine: Engine,
        can: Capabilities,
        prompts: Mapping[str, Prompt],
        *,
        many: bool,
        one: str,
        max_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
    ):
        """`one`: name of the prompt for a single caption; `many`: use "rewrite_many" first."""
        self._engine, self._model, self._many = engine, can.model, many
        self._keeps_schema = can.schema
        self._prompt, self._prompt_many = prompts[one], prompts["rewrite_many"]
        self._merge = prompts["merge"]
        self._max_tokens, self._seed = max_tokens, seed
        self._sampling = {"temperature": temperature, "top_p": top_p}

    async def first(self, image: ImageItem, assignments: Sequence[Assignment]) -> list[Draft]:
        about_objects = all(a.candidate.question is None for a in assignments)
        if self._many and about_objects and len(assignments) > 1:
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
        request = ChatRequest(
            "rewrite",
            self._model,
            self._prompt_many.fill(lines="\n".join(rows)),
            max_tokens=self._max_tokens * len(rows),
            schema=numbered_schema(len(rows)) if self._keeps_schema else None,
            **self._sampling,
        )
        result = await self._engine.generate(request)
        items = None if result.error else numbered(result.text, len(rows))
        about = {"key": request.key, "model": self._model, "prompt_id": self._prompt_many.id}

        async def draft(assignment: Assignment, item: str | None) -> Draft:
            if item is None:  # this one, or all of them, could not be read
                return await self._one(assignment, 0)
            return Draft(rules.clean(item), "llm", **about)

        answers = items or [None] * len(rows)
        pairs = zip(assignments, answers, strict=True)
        return list(await asyncio.gather(*(draft(a, item) for a, item in pairs)))

    async def _one(self, assignment: Assignment, attempt: int) -> Draft:
        candidate, caption = assignment.candidate, quoted(assignment.caption.text)
        if candidate.question is not None:
            prompt = self._merge
            messages = prompt.fill(caption=caption, question=quoted(candidate.question))
        else:
            prompt = self._prompt
            published = prompt.name == "rewrite_caption"  # it names the object inside a sentence
            name = candidate.object if published else quoted(candidate.object)
            style = self._style(assignment, attempt)
            messages = prompt.fill(caption=caption, object=name, style=style)
        stage = "merge" if candidate.question is not None else "rewrite"
        request = ChatRequest(
            stage,
            self._model,
            messages,
            max_tokens=self._max_tokens,
            sample=attempt,
            **self._sampling,
        )
        result = await self._engine.generate(request)
        problem = result.error or ("truncated" if result.finish_reason == "length" else None)
        text = "" if result.error else rules.clean(result.text)
        return Draft(text, "llm", request.key, self._model, prompt.id, problem)

    def _style(self, assignment: Assignment, attempt: int) -> str:
        return shuffled(STYLES, self._seed, assignment.caption.id)[attempt % len(STYLES)]


class TemplateWriter:
    """The grammar of `language.grammar`: no model, always correct in form, less natural."""

    def __init__(self, seed: int, grammar: Grammar = NATURAL):
        self._seed, self._grammar = seed, grammar

    async def first(self, image: ImageItem, assignments: Sequence[Assignment]) -> list[Draft]:
        return [self._write(a, ()) for a in assignments]

    async def again(self, assignment: Assignment, attempt: int, former: Draft) -> Draft:
        return self._write(assignment, (former.rewriter.removeprefix("template:"),))

    def _write(self, assignment: Assignment, avoid: tuple[str, ...]) -> Draft:
        caption, candidate = assignment.caption, assignment.candidate
        key = f"{self._seed}/{caption.id}/{candidate.question or candidate.object}"
        if candidate.question is None:
            written = self._grammar.rewrite(caption.text, candidate.object, key, avoid)
            if written is None:
                return Draft("", "template", problem="held_out")
            text, template = written
            return Draft(text, f"template:{template.name}", template=template)
        text = merge_question(caption.text, candidate.question)
        return Draft(text or "", "template:merge", problem=None if text else "unmergeable")


class MixedWriter:
    """A share of the captions, chosen by a hash, goes to the grammar, the others to an LLM."""

    def __init__(self, llm: Writer, template: Writer, share: float, seed: int):
        """`share`: of the grammar, between 0 and 1."""
        self._llm, self._template, self._share, self._seed = llm, template, share, seed

    def _for(self, assignment: Assignment) -> Writer:
        low = chance(self._seed, "writer", assignment.caption.id) < self._share
        return self._template if low else self._llm

    async def first(self, image: ImageItem, assignments: Sequence[Assignment]) -> list[Draft]:
        drafts: dict[int, Draft] = {}
        for writer in (self._template, self._llm):
            places = [i for i, a in enumerate(assignments) if self._for(a) is writer]
            written = await writer.first(image, [assignments[i] for i in places])
            drafts.update(zip(places, written, strict=True))
        return [drafts[i] for i in range(len(assignments))]

    async def again(self, assignment: Assignment, attempt: int, former: Draft) -> Draft:
        return await self._for(assignment).again(assignment, attempt, former)
