"""What might be in such a photo and is not mentioned: by an LLM, by co-occurrence, or at random."""

import abc
import asyncio
import collections
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from data_gen import answers
from data_gen.annotations import NOT_ANNOTATED, Cooccurrence, InstanceVerifier, expected, sayable
from data_gen.engines.probe import TOKENS_AN_OBJECT, Capabilities, Engine
from data_gen.labels import named_in
from data_gen.prompts import Prompt, lines, most_tokens, quoted
from data_gen.records import Candidate, ImageItem, shuffled
from negclip_jax.common.chat.messages import ChatRequest
from negclip_jax.common.errors import InputError
from negclip_jax.common.records import identity
from negclip_jax.common.strict_json import read_json
from negclip_jax.language import tables
from negclip_jax.language.mentions import mentioned
from negclip_jax.language.negation import cue_of
from negclip_jax.language.questions import deny
from negclip_jax.language.vocabulary import canonical, content

# What photos hold and captions leave out, the oftenest first, in the scenes that have it; of the
# likeliest ones so many are asked about.
_UNSAID = tuple(name for (name,) in tables.rows("unsaid"))
_LIKELY, _ASKED_FIRST = 4, 2
SAMPLES = 2  # an answer that is no list is asked for once more
_YES_NO = re.compile(
    r"(is|are|was|were|does|do|did|can|could|has|have|will|would|isn't|aren't)\b[^?]{3,120}\?",
    re.IGNORECASE,
)


class Proposer(Protocol):
    """Names candidates for images, unfiltered."""

    async def propose(self, images: Sequence[ImageItem]) -> list[list[Candidate]]:
        """Those of each image; what is asked for them may share a request."""


class EachAlone(abc.ABC):
    """A proposer that looks at one image at a time."""

    async def propose(self, images: Sequence[ImageItem]) -> list[list[Candidate]]:
        return list(await asyncio.gather(*(self.propose_one(image) for image in images)))

    @abc.abstractmethod
    async def propose_one(self, image: ImageItem) -> list[Candidate]:
        """Those of one image."""


def _by(request: ChatRequest, prompt: Prompt) -> dict[str, Any]:
    """Fields of a candidate that say which request named it."""
    return {"source": "llm", "key": request.key, "model": request.model, "prompt_id": prompt.id}


@dataclass(frozen=True)
class LLMProposer(EachAlone):
    """One request for all captions of an image, or of several.

    `prompt`: "propose" for objects or "questions" for yes/no questions. `many`: "propose_many", by
    which images share a request; what its answer lacks for one of them is asked by `prompt`.
    """

    engine: Engine
    can: Capabilities
    prompt: Prompt
    number: int
    temperature: float
    top_p: float
    many: Prompt | None = None

    async def propose(self, images: Sequence[ImageItem]) -> list[list[Candidate]]:
        found: dict[str, list[Candidate]] = {}
        if self.many is not None:
            for answered in await asyncio.gather(*map(self._jointly, self._parts(images))):
                found |= answered
        left = [image for image in images if image.image_id not in found]
        alone = await super().propose(left)
        found |= {image.image_id: c for image, c in zip(left, alone, strict=True)}
        return [found[image.image_id] for image in images]

    def _parts(self, images: Sequence[ImageItem]) -> list[list[ImageItem]]:
        """The images that share a request: two at least.

        An answer is known by the first caption: an image without words in it, or with the same
        ones as another, is asked about alone.
        """
        first = [" ".join(answers.bare("".join(image.texts[:1]))) for image in images]
        told = (words and first.count(words) == 1 for words in first)
        images = list(itertools.compress(images, told))
        sizes = [
            most_tokens(lines(i.texts)) + self.can.list_tokens(i.texts, self.number) for i in images
        ]
        parts = self.can.parts(self.many, sizes)
        return [[images[place] for place in part] for part in parts if len(part) > 1]

    async def _jointly(self, images: Sequence[ImageItem]) -> dict[str, list[Candidate]]:
        """Candidates by image, of those that the answer has."""
        texts = [image.texts for image in images]
        request = self.can.request_lists(
            "propose", self.many, texts, self.number, temperature=self.temperature, top_p=self.top_p
        )
        result = await self.engine.generate(request)
        lists = answers.numbered_lists(result.text, [captions[0] for captions in texts])
        by = _by(request, self.many)
        return {
            image.image_id: [Candidate(item, **by) for item in items[: 2 * self.number]]
            for image, items in zip(images, lists, strict=True)
            if items
        }

    async def propose_one(self, image: ImageItem) -> list[Candidate]:
        asks = self.prompt.name == "questions"
        messages = self.prompt.fill(captions=lines(image.texts), number=str(self.number))
        size = self.number * TOKENS_AN_OBJECT * (3 if asks else 1)
        for sample in range(SAMPLES):
            request = self.can.request(
                "propose",
                messages,
                max_tokens=size,
                schema=answers.LIST_SCHEMA if self.can.schema else None,
                sample=sample,
                temperature=self.temperature,
                top_p=self.top_p,
            )
            result = await self.engine.generate(request)
            by = _by(request, self.prompt)
            if result.error:
                return [Candidate("", reject_reason=result.error, **by)]
            if items := answers.string_list(result.text):
                items = items[: 2 * self.number]
                if asks:
                    return [Candidate("", question=" ".join(i.split()), **by) for i in items]
                return [Candidate(item, **by) for item in items]
        return [Candidate("", reject_reason="unparsable", **by)]


@dataclass(frozen=True)
class CaptionProposer(EachAlone):
    """The published script: one object for each caption, from that caption alone."""

    engine: Engine
    can: Capabilities
    prompt: Prompt
    temperature: float
    top_p: float

    async def propose_one(self, image: ImageItem) -> list[Candidate]:
        found = []
        for caption in image.captions:
            messages = self.prompt.fill(caption=quoted(caption.text))
            sampling = {"temperature": self.temperature, "top_p": self.top_p}
            request = self.can.request("propose", messages, max_tokens=256, **sampling)
            result = await self.engine.generate(request)
            name = " ".join(result.text.split()).rstrip(".")
            problem = None if name else "unparsable"
            problem = result.error or ("markup" if answers.MARKUP.search(name) else problem)
            by = _by(request, self.prompt)
            found.append(Candidate(name, caption_id=caption.id, reject_reason=problem, **by))
        return found


@dataclass(frozen=True)
class RandomProposer(EachAlone):
    """Objects from a list, drawn evenly by a hash of the image: no call at all."""

    names: Sequence[str]
    number: int
    seed: int
    per_caption: bool

    async def propose_one(self, image: ImageItem) -> list[Candidate]:
        names = sorted(self.names)
        if self.per_caption:
            return [
                Candidate(shuffled(names, self.seed, "random", c.id)[0], "random", caption_id=c.id)
                for c in image.captions
            ]
        drawn = shuffled(names, self.seed, "random", image.image_id)[: self.number]
        return [Candidate(name, "random") for name in drawn]


class FileProposer(EachAlone):
    """Objects that a user or another program listed for each image."""

    def __init__(self, path: str):
        """`path`: JSON object of image id to list of names. Raises InputError for another."""
        content = read_json(Path(path), (dict, list))
        if isinstance(content, list) or not all(isinstance(n, list) for n in content.values()):
            raise InputError(f"{path} must be an object of image ids to lists of object names")
        self._names = {identity(image_id): names for image_id, names in content.items()}

    async def propose_one(self, image: ImageItem) -> list[Candidate]:
        names = self._names.get(identity(image.image_id), ())
        return [Candidate(str(name), "file") for name in names]


@dataclass(frozen=True)
class CooccurrenceProposer(EachAlone):
    """For each caption an object by what occurs beside those that are annotated.

    `number`: different objects of an image, at most; `times`: captions that each serves.
    """

    statistics: Cooccurrence
    boxes: InstanceVerifier
    number: int
    times: int
    seed: int

    async def propose_one(self, image: ImageItem) -> list[Candidate]:
        image_id = identity(image.image_id)
        present = self.boxes.present.get(image_id)
        if present is None:
            return [Candidate("", "cooccurrence", reject_reason=NOT_ANNOTATED)]
        there, doubted = self.boxes.certain(image), self.boxes.doubted(image_id)
        drawn, found = collections.Counter[str](), []
        for caption in image.captions:
            said, alone = sayable(there, caption.text)
            key = f"{self.seed}/{image.image_id}/{caption.id}"
            number = self.number + len(doubted)
            names = self.statistics.propose(present, image.texts, number, key, alone)
            names = [name for name in names if name not in doubted]
            full = len(drawn) >= self.number
            free = (n for n in names if drawn[n] < self.times and (drawn[n] or not full))
            if name := next(free, None):
                drawn[name] += 1
                other = self.statistics.there(said, alone, key) if alone else None
                found.append(Candidate(name, "cooccurrence", caption_id=caption.id, there=other))
        return found


@dataclass(frozen=True)
class OthersProposer:
    """Adds to an LLM's names what captions of other photos name, by what occurs beside the photo's.

    Such objects are there elsewhere, so that denying them is not always true. `number`: of COCO's
    categories, and as many others. Before them come a few that are often there and left unsaid:
    absent, they are denied, present, they are what false texts deny.
    """

    proposer: Proposer
    statistics: Cooccurrence
    number: int
    seed: int

    async def propose(self, images: Sequence[ImageItem]) -> list[list[Candidate]]:
        found = await self.proposer.propose(images)
        return [self._with_others(i, named) for i, named in zip(images, found, strict=True)]

    def _with_others(self, image: ImageItem, found: list[Candidate]) -> list[Candidate]:
        named = frozenset(map(canonical, named_in(image.texts)))
        if all(candidate.reject_reason for candidate in found):  # an error, to be asked again
            return found
        key = f"{self.seed}/{image.image_id}"
        around = expected(named, tuple(image.texts)) & frozenset(self.statistics.names)
        likely = [n for n in _UNSAID if n in around and not mentioned(n, image.texts)][:_LIKELY]
        likely = shuffled(likely, key)[:_ASKED_FIRST]
        others = []
        for alone in (False, True):
            number = self.number + len(likely)
            drawn = self.statistics.propose(named, image.texts, number, key, alone)
            fresh = [name for name in drawn if name not in likely][: self.number]
            others.append([Candidate(name, "cooccurrence") for name in fresh])
        known = [c for c in found if (answers.normalise_object(c.object) or "") in self.statistics]
        turns = itertools.zip_longest(*others, known)
        first = [Candidate(name, "cooccurrence") for name in likely]
        first += [candidate for turn in turns for candidate in turn if candidate is not None]
        return first + [candidate for candidate in found if candidate not in known]


class VQAProposer(EachAlone):
    """Pipeline vqa: the yes/no questions of VQAv2 about an image; a "no" is negated."""

    async def propose_one(self, image: ImageItem) -> list[Candidate]:
        return [Candidate("", "vqa", question=question.text) for question in image.questions]


def focus(question: str) -> str | None:
    """What the answer "no" denies: "Is the man wearing a hat?" gives "hat".

    From the grammar of the question where that is known, else its last content word. Not usable,
    hence None: other questions, choices ("a cat or a dog"), and questions that negate themselves.
    """
    text = " ".join(question.split())
    if not _YES_NO.fullmatch(text) or " or " in text.lower() or cue_of(text):
        return None
    if denial := deny(text):
        return denial.focus
    return next(reversed(content(text)), None)


def filtered(candidates: Sequence[Candidate], captions: Sequence[str]) -> list[Candidate]:
    """The candidates with a reason on those not worth a question.

    "unusable" (no nameable thing, no yes/no question), "duplicate", and "mentioned" by any of the
    captions, also as a plural or by a synonym. Names become singular, lower-case nouns, questions
    get their focus as name.
    """
    kept: list[Candidate] = []
    seen: set[Any] = set()
    for candidate in candidates:
        if candidate.reject_reason is None:
            question, reason = candidate.question, None
            if question is None:
                name = answers.normalise_object(candidate.object)
                key: Any = (name, candidate.caption_id)
            else:
                name, key = focus(question), question.lower()
            if name is None:
                reason = "unusable"
            elif key in seen:
                reason = "duplicate"
            elif mentioned(name, captions):
                reason = "mentioned"
            if reason is None or question is not None:
                seen.add(key)
            # A question's candidate has no object of its own.
            candidate = replace(candidate, object=name or candidate.object, reject_reason=reason)
        kept.append(candidate)
    return kept
