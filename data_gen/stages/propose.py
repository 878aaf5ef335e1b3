"""What might be in such a photo and is not mentioned: by an LLM, by co-occurrence, or at random."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from data_gen.engines.base import Capabilities, Engine
from data_gen.prompts import Prompt, lines, quoted
from data_gen.replies import LIST_SCHEMA, string_list
from data_gen.rules import cue_of, mentioned, normalise_object
from data_gen.work import Candidate, ImageItem, shuffled
from negclip_jax.common.chat.messages import ChatRequest
from negclip_jax.common.errors import InputError
from negclip_jax.common.records import identity
from negclip_jax.common.strict_json import read_json
from negclip_jax.language.questions import deny
from negclip_jax.language.vocabulary import content

_TOKENS_AN_OBJECT = 12  # of a JSON list, generously
SAMPLES = 2  # an answer that is no list is asked for once more
_YES_NO = re.compile(
    r"(is|are|was|were|does|do|did|can|could|has|have|will|would|isn't|aren't)\b[^?]{3,120}\?",
    re.IGNORECASE,
)


class Proposer(Protocol):
    """Names candidates for an image, unfiltered."""

    async def propose(self, image: ImageItem) -> list[Candidate]: ...


class LLMProposer:
    """One request for all captions of an image."""

    def __init__(
        self,
        engine: Engine,
        can: Capabilities,
        prompt: Prompt,
        number: int,
        temperature: float,
        top_p: float,
    ):
        """`prompt`: "propose" for objects or "questions" for yes/no questions."""
        self._engine, self._model, self._prompt, self._number = engine, can.model, prompt, number
        self._sampling = {"temperature": temperature, "top_p": top_p}
        self._schema = LIST_SCHEMA if can.schema else None
        self._asks = prompt.name == "questions"

    async def propose(self, image: ImageItem) -> list[Candidate]:
        messages = self._prompt.fill(captions=lines(image.texts), number=str(self._number))
        size = self._number * _TOKENS_AN_OBJECT * (3 if self._asks else 1)
        for sample in range(SAMPLES):
            request = ChatRequest(
                "propose",
                self._model,
                messages,
                max_tokens=size,
                schema=self._schema,
                sample=sample,
                **self._sampling,
            )
            result = await self._engine.generate(request)
            about = {"source": "llm", "key": request.key, "model": self._model}
            about["prompt_id"] = self._prompt.id
            if result.error:
                return [Candidate("", reject_reason=result.error, **about)]
            items = string_list(result.text)
            if items:
                items = items[: 2 * self._number]
                if self._asks:
                    return [Candidate("", question=" ".join(i.split()), **about) for i in items]
                return [Candidate(item, **about) for item in items]
        return [Candidate("", reject_reason="unparsable", **about)]


class CaptionProposer:
    """The published script: one object for each caption, from that caption alone."""

    def __init__(
        self, engine: Engine, model: str, prompt: Prompt, temperature: float, top_p: float
    ):
        self._engine, self._model, self._prompt = engine, model, prompt
        self._sampling = {"temperature": temperature, "top_p": top_p}

    async def propose(self, image: ImageItem) -> list[Candidate]:
        found = []
        for caption in image.captions:
            messages = self._prompt.fill(caption=quoted(caption.text))
            request = ChatRequest(
                "propose", self._model, messages, max_tokens=256, **self._sampling
            )
            result = await self._engine.generate(request)
            name = " ".join(result.text.split()).rstrip(".")
            found.append(
                Candidate(
                    name,
                    "llm",
                    caption_id=caption.id,
                    key=request.key,
                    model=self._model,
                    prompt_id=self._prompt.id,
                    reject_reason=result.error or (None if name else "unparsable"),
                )
            )
        return found


class RandomProposer:
    """Objects from a list, drawn evenly by a hash of the image: no call at all."""

    def __init__(self, names: Sequence[str], number: int, seed: int, per_caption: bool):
        self._names, self._number, self._seed = sorted(names), number, seed
        self._per_caption = per_caption

    async def propose(self, image: ImageItem) -> list[Candidate]:
        if self._per_caption:
            return [
                Candidate(
                    shuffled(self._names, self._seed, "random", caption.id)[0],
                    "random",
                    caption_id=caption.id,
                )
                for caption in image.captions
            ]
        drawn = shuffled(self._names, self._seed, "random", image.image_id)[: self._number]
        return [Candidate(name, "random") for name in drawn]


class FileProposer:
    """Objects that a user or another program listed for each image."""

    def __init__(self, path: str):
        """`path`: JSON object of image id to list of names. Raises InputError for another."""
        content = read_json(Path(path), (dict, list))
        if isinstance(content, list) or not all(isinstance(n, list) for n in content.values()):
            raise InputError(f"{path} must be an object of image ids to lists of object names")
        self._names = {identity(image_id): names for image_id, names in content.items()}

    async def propose(self, image: ImageItem) -> list[Candidate]:
        return [
            Candidate(str(name), "file") for name in self._names.get(identity(image.image_id), ())
        ]


class CooccurrenceProposer:
    """Objects by how often they occur beside those that are annotated (`data_gen.cooccurrence`)."""

    def __init__(self, statistics, present: Mapping[str, frozenset[str]], number: int, seed: int):
        """`statistics`: a Cooccurrence; `present`: annotated objects by normalised image id."""
        self._statistics, self._present = statistics, present
        self._number, self._seed = number, seed

    async def propose(self, image: ImageItem) -> list[Candidate]:
        present = self._present.get(identity(image.image_id))
        if present is None:
            return []
        names = self._statistics.propose(
            present, image.texts, self._number, f"{self._seed}/{image.image_id}"
        )
        return [Candidate(name, "cooccurrence") for name in names]


def filtered(candidates: Sequence[Candidate], captions: Sequence[str]) -> list[Candidate]:
    """The candidates with a reason on those not worth a question.

    "unusable" (no nameable thing), "duplicate", and "mentioned" by any of the captions, also as a
    plural or by a synonym. Names become singular, lower-case nouns.
    """
    kept: list[Candidate] = []
    seen: set[tuple[str, str | None]] = set()
    for candidate in candidates:
        if candidate.reject_reason is None:
            name = normalise_object(candidate.object)
            if name is None:
                candidate = replace(candidate, reject_reason="unusable")
            elif (name, candidate.caption_id) in seen:
                candidate = replace(candidate, object=name, reject_reason="duplicate")
            elif mentioned(name, captions):
                candidate = replace(candidate, object=name, reject_reason="mentioned")
            else:
                seen.add((name, candidate.caption_id))
                candidate = replace(candidate, object=name)
        kept.append(candidate)
    return kept


class VQAProposer:
    """Pipeline vqa: the yes/no questions of VQAv2 about an image; a "no" is negated."""

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
