"""Whether a proposed object is in the photo: absent, present, or unsure; never a guess.

An answer that is neither yes nor no is `unsure`, and an error is an `error`: neither is ever taken
for an absence (the published script takes both for one; its rule is the method "substring").
"""

import asyncio
import collections
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from data_gen.annotations import NOT_ANNOTATED, UNSURE, InstanceVerifier, is_category, unsaid
from data_gen.answers import REFUSAL, many_masses, yes_no_mass, yes_or_no
from data_gen.engines.probe import TOP_LOGPROBS, Capabilities, Engine
from data_gen.images import Photo
from data_gen.prompts import Prompt
from data_gen.records import NAMED, Candidate, ImageItem, Verdict, shuffled
from negclip_jax.common.chat.messages import ChatRequest, ChatResult
from negclip_jax.common.errors import InputError
from negclip_jax.common.records import identity
from negclip_jax.language.inflection import noun
from negclip_jax.language.vocabulary import CATEGORIES

_OPTIONS = ("yes", "no")
Asked, Verdicts = Sequence[Candidate], list[Verdict]


@dataclass(frozen=True)
class Thresholds:
    """Shares of p_yes + p_no, and the least that the sum itself must be."""

    absent_at: float
    present_at: float
    mass: float

    def verdict(self, p_yes: float, p_no: float) -> str:
        """ "absent", "present" or "unsure"."""
        mass = p_yes + p_no
        if mass > 0 and mass >= self.mass:
            if p_no / mass >= self.absent_at:
                return "absent"
            if p_yes / mass >= self.present_at:
                return "present"
        return "unsure"


class Verifier(Protocol):
    async def verify(self, image: ImageItem, photo: Photo | None, candidates: Asked) -> Verdicts:
        """A verdict on each candidate of one image."""


def question_of(candidate: Candidate) -> str:
    """What the photo is asked: the candidate's own question, or whether there is such a thing."""
    if candidate.question is not None:
        return candidate.question
    word = noun(candidate.object)
    return f"{word.is_.capitalize()} there {word.a} in this image?"


def method_for(wished: str, can: Capabilities) -> str:
    """The method of a run: the wished one, or the best that the server was seen to support.

    One request for all questions about a photo, where the server answers several in one.

    Raises:
      InputError: "choice" is wished of a server that keeps to no list of answers.
    """
    if wished == "choice" and not can.choice:
        raise InputError(
            f"verify.method=choice: {can.model} was not seen to keep to a list of answers; leave "
            "it at auto, or take text"
        )
    if wished != "auto":
        return wished
    return "multi" if can.many else single_method(can)


def single_method(can: Capabilities) -> str:
    """The best way to ask one question."""
    return "logprobs" if can.logprobs else "choice" if can.choice else "text"


@dataclass(frozen=True)
class ModelVerifier:
    """One question a request, all about one photo in a row, so that servers compute it once.

    `method`: logprobs, choice, text or substring. `prompt`: "verify".
    """

    engine: Engine
    can: Capabilities
    prompt: Prompt
    thresholds: Thresholds
    method: str
    max_tokens: int

    async def verify(self, image: ImageItem, photo: Photo | None, candidates: Asked) -> Verdicts:
        return list(await asyncio.gather(*(self._one(photo, c) for c in candidates)))

    async def _one(self, photo: Photo | None, candidate: Candidate) -> Verdict:
        published = self.method == "substring"
        alone = f"Is there {candidate.object} in this image?"
        messages = self.prompt.fill(question=alone if published else question_of(candidate))
        extra: dict = {"max_tokens": self.max_tokens}
        if self.method == "logprobs":
            extra = {"max_tokens": 1 + self.can.blank_tokens, "top_logprobs": TOP_LOGPROBS}
        elif self.method == "choice":
            extra |= {"choice": _OPTIONS, "choice_by": self.can.choice}
        request = self.can.request("verify", messages, photo, **extra)
        result = await self.engine.generate(request)
        if result.error:
            return _asked(candidate, 0.0, 0.0, self, self.method, request, result)
        if self.method == "logprobs" and result.top is not None:
            p_yes, p_no = yes_no_mass(result.top)
        else:
            answer = yes_or_no(result.text)  # None where it is neither
            if published:
                answer = "yes" if "yes" in result.text.lower() else "no"
            p_yes, p_no = float(answer == "yes"), float(answer == "no")
        verdict = _asked(candidate, p_yes, p_no, self, self.method, request, result)
        if not (p_yes or p_no) and REFUSAL.search(result.text):
            verdict = replace(verdict, error_code="refusal")
        return replace(verdict, verdict="present" if p_yes else "absent") if published else verdict


@dataclass(frozen=True)
class ManyVerifier:
    """All questions about an image in one request.

    Answers may influence each other and have an order: the order is shuffled by a hash. What cannot
    be read, or is unsure by the probabilities that the server tells, is asked again, one by one, of
    `single`. `prompt`: "verify_many".
    """

    engine: Engine
    can: Capabilities
    prompt: Prompt
    thresholds: Thresholds
    single: ModelVerifier
    seed: int

    async def verify(self, image: ImageItem, photo: Photo | None, candidates: Asked) -> Verdicts:
        if len(candidates) < 2:
            return await self.single.verify(image, photo, candidates)
        order = shuffled(candidates, self.seed, image.image_id)
        questions = [question_of(candidate) for candidate in order]
        request = self.can.request_many("verify", self.prompt, questions, photo)
        result = await self.engine.generate(request)
        verdicts, open_ = [], []
        for candidate, masses in zip(order, many_masses(result, len(order)), strict=True):
            verdict = masses and _asked(candidate, *masses, self, "multi", request, result)
            if verdict is None or verdict.verdict == UNSURE:
                open_.append(candidate)
            else:
                verdicts.append(verdict)
        return verdicts + await self.single.verify(image, photo, open_)


def _asked(
    candidate: Candidate,
    p_yes: float,
    p_no: float,
    verifier: ModelVerifier | ManyVerifier,
    method: str,
    request: ChatRequest,
    result: ChatResult,
) -> Verdict:
    """The verdict of a model."""
    return Verdict(
        candidate.object,
        "error" if result.error else verifier.thresholds.verdict(p_yes, p_no),
        p_yes,
        p_no,
        method,
        candidate.question,
        request.model,
        verifier.prompt.id,
        request.key,
        result.prompt_tokens,
        result.completion_tokens,
        result.error,
    )


@dataclass(frozen=True)
class AnnotationVerifier:
    """What instance annotations can tell; the rest goes to another verifier, if there is one."""

    annotations: InstanceVerifier
    otherwise: Verifier | None

    async def verify(self, image: ImageItem, photo: Photo | None, candidates: Asked) -> Verdicts:
        verdicts, open_ = [], []
        for candidate in candidates:
            verdict, p_yes = "unsure", 0.5
            if candidate.question is None:
                verdict, p_yes = self.annotations.verdict(image.image_id, candidate.object)
            if verdict == "unsure" and self.otherwise is not None:
                open_.append(candidate)
                continue
            is_known = identity(image.image_id) in self.annotations.present
            row = Verdict(
                candidate.object, verdict, p_yes, 1 - p_yes, "instances", candidate.question
            )
            verdicts.append(row if is_known else replace(row, error_code=NOT_ANNOTATED))
        return verdicts + (await self.otherwise.verify(image, photo, open_) if open_ else [])


@dataclass(frozen=True)
class VoteVerifier:
    """VQAv2's own answers: "no" by enough of the ten annotators is an absence, no call needed."""

    min_no_votes: int

    async def verify(self, image: ImageItem, photo: Photo | None, candidates: Asked) -> Verdicts:
        asked = {question.text: question for question in image.questions}
        verdicts = []
        for candidate in candidates:
            votes = asked[candidate.question]
            verdict = "present" if votes.yes >= self.min_no_votes else "unsure"
            verdict = "absent" if votes.no >= self.min_no_votes else verdict
            shares = votes.yes / votes.votes, votes.no / votes.votes
            verdicts.append(Verdict(candidate.object, verdict, *shares, "vqa", candidate.question))
        return verdicts


@dataclass(frozen=True)
class UntilEnough:
    """Asks a few questions, looks, and asks more only if captions would be left without an object.

    Many images are in work at once, so that waiting for a wave costs a server nothing. A fifth
    fewer questions at the published share of absent objects, for the same pairs. `wave`: questions
    at a time.
    """

    verifier: Verifier
    wave: int
    captions_per_object: int

    async def verify(self, image: ImageItem, photo: Photo | None, candidates: Asked) -> Verdicts:
        """Verdicts on what captions name, then on proposals; on all where too few are absent."""
        enough = math.ceil(len(image.captions) / self.captions_per_object)
        named = [candidate for candidate in candidates if candidate.source == NAMED]
        verdicts = await self.verifier.verify(image, photo, named) if named else []
        proposed = [candidate for candidate in candidates if candidate.source != NAMED]
        present = [v.object for v in verdicts if v.verdict == "present"]
        proposed = by_demand(proposed, present, image.texts)
        while proposed and sum(v.verdict == "absent" for v in verdicts[len(named) :]) < enough:
            some, proposed = proposed[: self.wave], proposed[self.wave :]
            verdicts += await self.verifier.verify(image, photo, some)
        return verdicts


def by_demand(
    candidates: Sequence[Candidate], present: Sequence[str], captions: Sequence[str]
) -> list[Candidate]:
    """The candidates in the order in which they are worth a question.

    COCO's categories and others take turns, as often as captions leave such things unsaid that are
    there: an absent object and a present one are exchanged within their kind.
    """
    kinds = collections.Counter(is_category(unsaid(present, text)) for text in captions)
    places, asked = {}, collections.Counter()
    for place, candidate in enumerate(candidates):
        kind = candidate.object in CATEGORIES
        asked[kind] += 1
        places[place] = asked[kind] / (kinds[kind] or 0.01)
    return [candidates[place] for place in sorted(places, key=lambda i: (places[i], i))]
